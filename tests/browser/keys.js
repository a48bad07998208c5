// The keys of an account, and a cipher for tests that IdentityCipher in cipher.py speaks as well.
//
// A payload is {identity key of the sender, 32 bytes}{nonce, 12 bytes}{AES-256-GCM of the message as JSON}. The key is
// HKDF-SHA-256 of the X25519 secret of the two identities, without salt, for the use that INFO names. The additional
// data are "{user id of the sender} {user id of the recipient}", so that a payload cannot be sent back, or on to others.
//
// This shows that the server carries what it can't read, and no more: one key for ever has no forward secrecy, and an
// old payload can be sent again. Real clients use Signal.

const INFO = 'mimu test cipher';
const KEY_BYTES = 32;
const NONCE_BYTES = 12;

const utf8 = (text) => new TextEncoder().encode(text);
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
export const b64 = (bytes) => btoa(String.fromCharCode(...bytes));
export const unb64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

const publicPart = async (pair) => new Uint8Array(await crypto.subtle.exportKey('raw', pair.publicKey));

export async function fingerprint(identityKey) {
  return hex(new Uint8Array(await crypto.subtle.digest('SHA-256', identityKey)));
}

/** The identity key of a prekey bundle; throws unless the fingerprint and the signature in it hold. */
export async function checkedIdentity(bundle) {
  const identityKey = unb64(bundle.identity_key);
  const { public_key: prekey, signature } = bundle.signed_prekey;
  const signer = await crypto.subtle.importKey('raw', unb64(bundle.signing_public_key), 'Ed25519', false, ['verify']);
  const holds = await crypto.subtle.verify('Ed25519', signer, unb64(signature), unb64(prekey));
  if (!holds || (await fingerprint(identityKey)) !== bundle.fingerprint) throw new Error('the bundle is forged');
  return identityKey;
}

export class Keys {
  #identity;
  #signing;

  /** The private halves can't be exported, so they never leave the browser. */
  static async generate() {
    const keys = new Keys();
    keys.#identity = await crypto.subtle.generateKey('X25519', false, ['deriveBits']);
    keys.#signing = await crypto.subtle.generateKey('Ed25519', false, ['sign', 'verify']);
    keys.identityKey = await publicPart(keys.#identity);
    return keys;
  }

  /** The key fields of `POST /auth/register`. */
  async registration() {
    const prekey = async (key_id) => {
      const pair = await crypto.subtle.generateKey('X25519', false, ['deriveBits']);
      return { key_id, public_key: b64(await publicPart(pair)) };
    };
    const signed = await prekey(1);
    const signature = await crypto.subtle.sign('Ed25519', this.#signing.privateKey, unb64(signed.public_key));
    return {
      identity_key: b64(this.identityKey),
      fingerprint: await fingerprint(this.identityKey),
      signing_public_key: b64(await publicPart(this.#signing)),
      registration_id: 1 + Math.floor(Math.random() * 16_000),
      signed_prekey: { ...signed, signature: b64(new Uint8Array(signature)) },
      one_time_prekeys: await Promise.all([1, 2, 3].map(prekey)),
    };
  }

  /** Encrypt for the owner of `theirKey`, whose user id is `to`; as base64. */
  async encrypt(theirKey, from, to, message) {
    const iv = crypto.getRandomValues(new Uint8Array(NONCE_BYTES));
    const cipher = { name: 'AES-GCM', iv, additionalData: utf8(`${from} ${to}`) };
    const key = await this.#sharedWith(theirKey);
    const sealed = await crypto.subtle.encrypt(cipher, key, utf8(JSON.stringify(message)));
    return b64(new Uint8Array([...this.identityKey, ...iv, ...new Uint8Array(sealed)]));
  }

  /** The sender's identity key and the message. Whose key it is, people find out by comparing fingerprints. */
  async decrypt(from, to, payload) {
    const bytes = unb64(payload);
    const theirKey = bytes.slice(0, KEY_BYTES);
    const iv = bytes.slice(KEY_BYTES, KEY_BYTES + NONCE_BYTES);
    const cipher = { name: 'AES-GCM', iv, additionalData: utf8(`${from} ${to}`) };
    const key = await this.#sharedWith(theirKey);
    const plain = await crypto.subtle.decrypt(cipher, key, bytes.slice(KEY_BYTES + NONCE_BYTES));
    return { theirKey, message: JSON.parse(new TextDecoder().decode(plain)) };
  }

  async #sharedWith(theirKey) {
    const theirs = await crypto.subtle.importKey('raw', theirKey, 'X25519', false, []);
    const secret = await crypto.subtle.deriveBits({ name: 'X25519', public: theirs }, this.#identity.privateKey, 256);
    const material = await crypto.subtle.importKey('raw', secret, 'HKDF', false, ['deriveKey']);
    const derivation = { name: 'HKDF', hash: 'SHA-256', salt: new Uint8Array(), info: utf8(INFO) };
    return crypto.subtle.deriveKey(derivation, material, { name: 'AES-GCM', length: 256 }, false, ['encrypt', 'decrypt']);
  }
}
