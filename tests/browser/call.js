// One call as a tab has it: WebRTC through a relay only, with a microphone and a camera; its signalling is encrypted.

const WAYS = {
  udp: (url) => url.startsWith('turn:') && url.endsWith('transport=udp'),
  tcp: (url) => url.startsWith('turn:') && url.endsWith('transport=tcp'),
  tls: (url) => url.startsWith('turns:'),
};
const LOUD = 100; // of the 255 of an AnalyserNode: far above the noise, well below a tone
const NO_MORE_CANDIDATES = { candidate: '', sdpMid: '0', sdpMLineIndex: 0 };

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Call {
  #phone;
  #peer;
  #connection;
  #described; // resolves when the server has our description: candidates may follow
  #sent; // resolves when the last candidate so far has been sent

  note = null; // what the other side wrote, once it has come

  constructor(phone, peer, callId, connection) {
    this.#phone = phone;
    this.#peer = peer;
    this.callId = callId;
    this.#connection = connection;
    this.#sent = new Promise((resolve) => {
      this.#described = resolve;
    });
  }

  /** The call on our side, with microphone and camera open and nothing said yet. */
  static async begin(phone, peer, callId, { over, video }) {
    const { urls, username, credential } = await phone.turnCredentials();
    const connection = new RTCPeerConnection({
      iceServers: [{ urls: urls.filter(WAYS[over]), username, credential }],
      iceTransportPolicy: 'relay',
    });
    const call = new Call(phone, peer, callId, connection);
    call.type = video ? 'video' : 'audio';
    connection.onicecandidate = ({ candidate }) => call.#sendCandidate(candidate?.toJSON() ?? NO_MORE_CANDIDATES);
    connection.ontrack = ({ streams }) => {
      document.getElementById('theirs').srcObject = streams[0];
    };
    const mine = await navigator.mediaDevices.getUserMedia({ audio: true, video });
    document.getElementById('mine').srcObject = mine;
    for (const track of mine.getTracks()) connection.addTrack(track, mine);
    return call;
  }

  /** Send the offer; the server's answer. */
  async ring(note) {
    await this.#connection.setLocalDescription();
    const ack = await this.#describe('call_offer', note, { to_user_id: this.#peer, call_type: this.type });
    this.#hearAnswer();
    return ack;
  }

  /** Answer an offer; the server's answer to that. */
  async take(offer, note) {
    this.note = offer.note;
    await this.#connection.setRemoteDescription({ type: 'offer', sdp: offer.sdp });
    await this.#connection.setLocalDescription();
    const ack = await this.#describe('call_answer', note);
    this.#hearCandidates();
    return ack;
  }

  heartbeat() {
    return this.#phone.send('call_heartbeat', { call_id: this.callId });
  }

  hangup() {
    this.#end();
    return this.#phone.send('call_hangup', { call_id: this.callId });
  }

  /** Wait until the other side, or the server, ends the call; that frame. */
  async hungUp() {
    const frame = await this.#phone.expect('call_hangup', { call_id: this.callId });
    this.#end();
    return frame;
  }

  /** What has come so far, and by which way; null before there is a way. */
  async report() {
    const stats = await this.#connection.getStats();
    const all = [...stats.values()];
    const inbound = (kind) => all.find((entry) => entry.type === 'inbound-rtp' && entry.kind === kind);
    const transport = all.find((entry) => entry.type === 'transport');
    const pair = stats.get(transport?.selectedCandidatePairId);
    if (!pair) return null;
    const [local, remote] = [stats.get(pair.localCandidateId), stats.get(pair.remoteCandidateId)];
    const [audio, video] = [inbound('audio'), inbound('video')];
    return {
      pair: [local.candidateType, remote.candidateType],
      relay_protocol: local.relayProtocol,
      // Concealed samples are made up, for packets that have not come.
      samples_heard: (audio?.totalSamplesReceived ?? 0) - (audio?.concealedSamples ?? 0),
      energy_heard: audio?.totalAudioEnergy ?? 0,
      frames_seen: video?.framesDecoded ?? 0,
      picture: [video?.frameWidth ?? 0, video?.frameHeight ?? 0],
    };
  }

  /** The pitch, in hertz, of the loudest that one hears; waits for a sound. */
  async pitch() {
    const context = new AudioContext();
    const analyser = new AnalyserNode(context, { fftSize: 8192, smoothingTimeConstant: 0 });
    context.createMediaStreamSource(document.getElementById('theirs').srcObject).connect(analyser);
    const spectrum = new Uint8Array(analyser.frequencyBinCount);
    do {
      await pause(100);
      analyser.getByteFrequencyData(spectrum);
    } while (Math.max(...spectrum) < LOUD);
    await context.close();
    return (spectrum.indexOf(Math.max(...spectrum)) * context.sampleRate) / analyser.fftSize;
  }

  #end() {
    for (const { track } of this.#connection.getSenders()) track.stop();
    this.#connection.close();
  }

  async #describe(type, note, fields) {
    const { sdp } = this.#connection.localDescription;
    const payload = await this.#phone.encrypt(this.#peer, { sdp, note });
    const ack = await this.#phone.send(type, { call_id: this.callId, encrypted_payload: payload, ...fields });
    this.#described();
    return ack;
  }

  #sendCandidate(candidate) {
    // One after the other: encrypting takes a moment, and the one that says that there are no more has to be the last.
    this.#sent = this.#sent.then(async () => {
      const payload = await this.#phone.encrypt(this.#peer, candidate);
      this.#phone.post('ice_candidate', { call_id: this.callId, encrypted_payload: payload });
    });
  }

  async #hearAnswer() {
    const answer = await this.#next('call_answer');
    this.note = answer.note;
    await this.#connection.setRemoteDescription({ type: 'answer', sdp: answer.sdp });
    await this.#hearCandidates();
  }

  async #hearCandidates() {
    for (;;) {
      const candidate = await this.#next('ice_candidate');
      if (this.#connection.signalingState === 'closed') return;
      await this.#connection.addIceCandidate(candidate);
    }
  }

  async #next(type) {
    const frame = await this.#phone.expect(type, { call_id: this.callId });
    return this.#phone.decrypt(frame.from_user_id, frame.encrypted_payload);
  }
}
