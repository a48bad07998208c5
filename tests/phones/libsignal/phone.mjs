// A Signal device on libsignal: one JSON request a line on standard input, one JSON answer a line on standard output.
//
// {"id": 1, "do": "generate", ...} is answered with {"id": 1, "ok": {...}} or {"id": 1, "error": "..."}. Bytes are
// base64. Secrets live in this process only, and end with it.

import readline from 'node:readline';
import {
  CiphertextMessageType,
  IdentityChange,
  IdentityKeyPair,
  IdentityKeyStore,
  KEMKeyPair,
  KEMPublicKey,
  KyberPreKeyRecord,
  KyberPreKeyStore,
  PreKeyBundle,
  PreKeyRecord,
  PreKeySignalMessage,
  PreKeyStore,
  PrivateKey,
  ProtocolAddress,
  PublicKey,
  SessionStore,
  SignalMessage,
  SignedPreKeyRecord,
  SignedPreKeyStore,
  processPreKeyBundle,
  signalDecrypt,
  signalDecryptPreKey,
  signalEncrypt,
} from '@signalapp/libsignal-client';

const DEVICE = 1;
const LAST_RESORT = 10_000; // the key id of the Kyber prekey that is never used up

const b64 = (bytes) => Buffer.from(bytes).toString('base64');
const unb64 = (text) => new Uint8Array(Buffer.from(text, 'base64'));
const addressOf = (name) => ProtocolAddress.new(name, DEVICE);

class Identities extends IdentityKeyStore {
  pair = IdentityKeyPair.generate();
  registrationId = 1 + Math.floor(Math.random() * 16_000);
  known = new Map();

  async getIdentityKey() {
    return this.pair.privateKey;
  }
  async getLocalRegistrationId() {
    return this.registrationId;
  }
  async saveIdentity(address, key) {
    const before = this.known.get(address.name());
    this.known.set(address.name(), key);
    return before && !before.equals(key) ? IdentityChange.ReplacedExisting : IdentityChange.NewOrUnchanged;
  }
  async isTrustedIdentity(address, key) {
    const before = this.known.get(address.name());
    return !before || before.equals(key);
  }
  async getIdentity(address) {
    return this.known.get(address.name()) ?? null;
  }
}

class Sessions extends SessionStore {
  records = new Map();

  async saveSession(address, record) {
    this.records.set(address.toString(), record);
  }
  async getSession(address) {
    return this.records.get(address.toString()) ?? null;
  }
  async getExistingSessions(addresses) {
    return addresses.map((address) => this.records.get(address.toString()));
  }
}

class OneTime extends PreKeyStore {
  records = new Map();

  async savePreKey(id, record) {
    this.records.set(id, record);
  }
  async getPreKey(id) {
    if (!this.records.has(id)) throw new Error(`one-time prekey ${id} is unknown or used`);
    return this.records.get(id);
  }
  async removePreKey(id) {
    this.records.delete(id);
  }
}

class Signed extends SignedPreKeyStore {
  records = new Map();

  async saveSignedPreKey(id, record) {
    this.records.set(id, record);
  }
  async getSignedPreKey(id) {
    if (!this.records.has(id)) throw new Error(`signed prekey ${id} is unknown`);
    return this.records.get(id);
  }
}

class Kyber extends KyberPreKeyStore {
  records = new Map();

  async saveKyberPreKey(id, record) {
    this.records.set(id, record);
  }
  async getKyberPreKey(id) {
    if (!this.records.has(id)) throw new Error(`Kyber prekey ${id} is unknown or used`);
    return this.records.get(id);
  }
  async markKyberPreKeyUsed(id) {
    if (id !== LAST_RESORT) this.records.delete(id);
  }
}

const identities = new Identities();
const sessions = new Sessions();
const oneTime = new OneTime();
const signed = new Signed();
const kyber = new Kyber();
let self = null;

const publicPart = (record) => ({
  key_id: record.id(),
  public_key: b64(record.publicKey().serialize()),
  signature: b64(record.signature()),
});

async function newKyber(id) {
  const pair = KEMKeyPair.generate();
  const signature = identities.pair.privateKey.sign(pair.getPublicKey().serialize());
  const record = KyberPreKeyRecord.new(id, Date.now(), pair, signature);
  await kyber.saveKyberPreKey(id, record);
  return publicPart(record);
}

const requests = {
  async generate({ one_time, kyber: kyberCount }) {
    const signedKey = PrivateKey.generate();
    const signature = identities.pair.privateKey.sign(signedKey.getPublicKey().serialize());
    const signedRecord = SignedPreKeyRecord.new(1, Date.now(), signedKey.getPublicKey(), signedKey, signature);
    await signed.saveSignedPreKey(1, signedRecord);
    const oneTimeKeys = [];
    for (let id = 1; id <= one_time; id++) {
      const key = PrivateKey.generate();
      await oneTime.savePreKey(id, PreKeyRecord.new(id, key.getPublicKey(), key));
      oneTimeKeys.push({ key_id: id, public_key: b64(key.getPublicKey().serialize()) });
    }
    const kyberKeys = [];
    for (let id = 1; id <= kyberCount; id++) kyberKeys.push(await newKyber(id));
    return {
      identity_key: b64(identities.pair.publicKey.serialize()),
      registration_id: identities.registrationId,
      signed_prekey: publicPart(signedRecord),
      one_time_prekeys: oneTimeKeys,
      kyber_prekeys: kyberKeys,
      last_resort_kyber_prekey: await newKyber(LAST_RESORT),
    };
  },

  async known_as({ name }) {
    self = addressOf(name);
    return {};
  },

  async check({ bundle }) {
    const identity = PublicKey.deserialize(unb64(bundle.identity_key));
    const holds = (key) => identity.verify(unb64(key.public_key), unb64(key.signature));
    return { signed_prekey: holds(bundle.signed_prekey), kyber_prekey: holds(bundle.kyber_prekey) };
  },

  async process({ peer, bundle }) {
    const { signed_prekey: signedKey, one_time_prekey: oneTimeKey, kyber_prekey: kyberKey } = bundle;
    const prekeys = PreKeyBundle.new(
      bundle.registration_id,
      DEVICE,
      oneTimeKey ? oneTimeKey.key_id : null,
      oneTimeKey ? PublicKey.deserialize(unb64(oneTimeKey.public_key)) : null,
      signedKey.key_id,
      PublicKey.deserialize(unb64(signedKey.public_key)),
      unb64(signedKey.signature),
      PublicKey.deserialize(unb64(bundle.identity_key)),
      kyberKey.key_id,
      KEMPublicKey.deserialize(unb64(kyberKey.public_key)),
      unb64(kyberKey.signature),
    );
    await processPreKeyBundle(prekeys, addressOf(peer), self, sessions, identities);
    return {};
  },

  async encrypt({ peer, plaintext }) {
    const message = await signalEncrypt(unb64(plaintext), addressOf(peer), self, sessions, identities);
    return { type: message.type(), body: b64(message.serialize()) };
  },

  async decrypt({ peer, type, body }) {
    const address = addressOf(peer);
    if (type === CiphertextMessageType.PreKey) {
      const message = PreKeySignalMessage.deserialize(unb64(body));
      const stores = [sessions, identities, oneTime, signed, kyber];
      return { plaintext: b64(await signalDecryptPreKey(message, address, self, ...stores)) };
    }
    const message = SignalMessage.deserialize(unb64(body));
    return { plaintext: b64(await signalDecrypt(message, address, self, sessions, identities)) };
  },
};

for await (const line of readline.createInterface({ input: process.stdin })) {
  const { id, do: name, ...fields } = JSON.parse(line);
  let answer;
  try {
    answer = { id, ok: await requests[name](fields) };
  } catch (error) {
    answer = { id, error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
