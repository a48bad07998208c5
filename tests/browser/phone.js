// A client of the server in a web page: an account with its own keys, its socket, and one call at a time.

import { Call } from './call.js';
import { Keys, b64, checkedIdentity } from './keys.js';

export class Phone {
  #server;
  #keys;
  #publicId;
  #token;
  #line;
  #identities = new Map(); // the identity keys of peers, by user id

  said = []; // every plaintext and secret of this phone: none of it may be found on the server
  signalled = []; // the payloads of calls, which outlive nothing but the ringing

  constructor(server) {
    this.#server = server;
  }

  /** Make an account with fresh keys. */
  static async register(server, publicId, password) {
    const phone = new Phone(server);
    phone.#keys = await Keys.generate();
    phone.#publicId = publicId;
    const body = { public_id: publicId, password, ...(await phone.#keys.registration()) };
    const account = await phone.ask('POST', '/auth/register', body);
    phone.#token = account.access_token;
    phone.userId = account.user_id;
    phone.said.push(password, account.access_token, account.refresh_token);
    return phone;
  }

  /** One request, with the headers that a client sends; its JSON. */
  async ask(method, path, body) {
    const headers = { 'X-Client-Version': '1.0.0', 'X-Platform': 'web' };
    if (this.#token) Object.assign(headers, { Authorization: `Bearer ${this.#token}`, 'X-PrID': this.#publicId });
    if (body) headers['Content-Type'] = 'application/json';
    const answer = await fetch(this.#server + path, { method, headers, body: body && JSON.stringify(body) });
    const said = await answer.json();
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${said.error} (${answer.headers.get('X-Request-ID')})`);
    return said;
  }

  /** Open the socket; the server's first frame. */
  async connect() {
    this.#line = new Line(this.#server, this.#token);
    return this.#line.expect('ready');
  }

  send(type, fields) {
    return this.#line.send(type, fields);
  }

  /** Send a frame without waiting for its answer, of which there is none unless it is refused. */
  post(type, fields) {
    this.#line.post(type, fields);
  }

  expect(type, fields) {
    return this.#line.expect(type, fields);
  }

  async turnCredentials() {
    const turn = await this.ask('GET', '/calls/turn-credentials');
    this.said.push(turn.credential);
    return turn;
  }

  /** Encrypt a message for a user after their bundle or payload has arrived. */
  async encrypt(userId, message) {
    this.said.push(...Object.values(message).filter((value) => typeof value === 'string'));
    const payload = await this.#keys.encrypt(this.#identities.get(userId), this.userId, userId, message);
    this.signalled.push(payload);
    return payload;
  }

  async decrypt(userId, payload) {
    const { theirKey, message } = await this.#keys.decrypt(userId, this.userId, payload);
    const known = this.#identities.get(userId);
    if (known && b64(known) !== b64(theirKey)) throw new Error('another identity than before');
    this.#identities.set(userId, theirKey);
    return message;
  }

  /** Ring a user; `note` travels inside the encrypted offer, `over` is the way to the relay: udp, tcp or tls. */
  async ring(publicId, { over, video, note }) {
    const bundle = await this.ask('GET', `/users/${publicId}/prekeys`);
    const peer = (await this.ask('GET', `/users/${publicId}`)).user_id;
    this.#identities.set(peer, await checkedIdentity(bundle));
    this.call = await Call.begin(this, peer, crypto.randomUUID(), { over, video });
    return this.call.ring(note);
  }

  /** Wait for a call and take it; the server's answer. */
  async answer({ over, note }) {
    const { from_user_id: peer, call_id, call_type, encrypted_payload } = await this.expect('call_offer');
    const offer = await this.decrypt(peer, encrypted_payload);
    this.call = await Call.begin(this, peer, call_id, { over, video: call_type === 'video' });
    return this.call.take(offer, note);
  }
}

/** The socket, whose frames are sorted into answers and events to wait for. */
class Line {
  #socket;
  #number = 0;
  #answers = new Map();
  #frames = [];
  #waiting = [];
  #closed = null;

  constructor(server, token) {
    // A page can't set headers on a WebSocket, so the token goes in the list of subprotocols.
    this.#socket = new WebSocket(server.replace('http', 'ws') + '/ws', ['mimu.v1', `bearer.${token}`]);
    this.#socket.onmessage = ({ data }) => this.#sort(JSON.parse(data));
    this.#socket.onclose = ({ code }) => this.#end(code);
  }

  /** Send a frame; its ack. */
  send(type, fields) {
    const id = String((this.#number += 1));
    const answer = new Promise((resolve, reject) => this.#answers.set(id, { resolve, reject }));
    this.#socket.send(JSON.stringify({ type, id, ...fields }));
    return answer;
  }

  post(type, fields) {
    this.#socket.send(JSON.stringify({ type, ...fields }));
  }

  /** Take the first frame of that type whose fields are those given, waiting for it if it has not come yet. */
  async expect(type, fields = {}) {
    const wanted = Object.entries({ type, ...fields });
    for (;;) {
      const place = this.#frames.findIndex((frame) => wanted.every(([name, value]) => frame[name] === value));
      if (place >= 0) return this.#frames.splice(place, 1)[0];
      if (this.#closed !== null) throw new Error(`waited for ${type}, but the socket was closed with ${this.#closed}`);
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
  }

  #sort(frame) {
    const answer = this.#answers.get(frame.id);
    if (!answer) {
      this.#frames.push(frame);
      this.#wake();
      return;
    }
    this.#answers.delete(frame.id);
    if (frame.type === 'ack') answer.resolve(frame);
    else answer.reject(new Error(`${frame.code}: ${frame.message}`));
  }

  #end(code) {
    this.#closed = code;
    for (const { reject } of this.#answers.values()) reject(new Error(`the socket was closed with ${code}`));
    this.#wake();
  }

  #wake() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}
