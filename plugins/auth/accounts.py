"""Accounts: registration, login, and a password reset that requires the owner's keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import struct
import time
from datetime import UTC, datetime

from config.keyring import Keyring
from handlers.http.base import Client
from handlers.passwords import Match, Passwords
from handlers.revocations import Revocations
from handlers.tokens import Session
from handlers.wire import signal_keys as keys
from handlers.wire.errors import Conflict, Fault, InvalidCredentials, InvalidRequest, ProofRequired
from handlers.wire.shapes import b64
from models import prekeys, sessions, subscriptions, tombstones, users
from models.database import Database, Row
from plugins.auth.refusals import IdentityKeyTaken, InvalidProof, PublicIdTaken
from plugins.auth.sessions import Sessions
from plugins.auth.shapes import ChangePassword, Login, Register, ResetPassword, SignedIn, is_reserved

CHALLENGE_SECONDS = 300  # contract section 2
MAX_KEYS = 100  # of a kind in one registration

TAKEN_ERRORS = {"public_id": PublicIdTaken, "identity_key": IdentityKeyTaken}


class Accounts:
    def __init__(
        self,
        db: Database,
        passwords: Passwords,
        sessions: Sessions,
        revocations: Revocations,
        keyring: Keyring,
        *,
        libsignal: bool = False,
    ) -> None:
        self._db = db
        self._passwords = passwords
        self._sessions = sessions
        self._revocations = revocations
        self._keyring = keyring
        self._libsignal = libsignal

    async def available(self, public_id: str) -> bool:
        """True if an account could be registered under this public id now."""
        return not is_reserved(public_id) and await users.available(self._db, public_id)

    def validate(self, request: Register) -> None:
        """Check what spans several fields. Raises InvalidRequest with all faults."""
        faults = keys.find_faults(request, request.identity_key, request.signing_public_key, libsignal=self._libsignal)
        if self._libsignal and request.last_resort_kyber_prekey is None:
            faults.append(keys.missing_last_resort())
        if request.fingerprint != hashlib.sha256(request.identity_key).hexdigest():
            faults.insert(0, Fault("fingerprint", "must be the SHA-256 of identity_key in hex"))
        if faults:
            raise InvalidRequest("Some fields are not valid.", details=faults)

    async def register(self, request: Register, client: Client) -> SignedIn:
        """Create an account with its keys and first session in one transaction. Raises Conflict."""
        account = users.NewUser(
            public_id=request.public_id,
            password_hash=await self._passwords.hash(request.password),
            identity_key=request.identity_key,
            signing_public_key=request.signing_public_key,
            registration_id=request.registration_id,
            fingerprint=request.fingerprint,
            display_name=request.display_name,
            language=request.language,
        )
        try:
            async with self._db.transaction():
                user_id = await users.create(self._db, account)
                await self._check_inheritance(request)
                await prekeys.add(self._db, user_id, request, at_most=MAX_KEYS)
                signed_in = await self._sessions.open(user_id, request.public_id, request.fingerprint, client)
        except users.Taken as taken:
            raise TAKEN_ERRORS[taken.field] from None
        except prekeys.Reused as reused:
            raise Conflict(f"The same key appears twice in {reused.kind}.") from None
        await self._sessions.cache_token(signed_in.session_id, signed_in.refresh_token)
        return signed_in

    async def _check_inheritance(self, request: Register) -> None:
        """Check what a new account may take over from an erased one: never the public id, the identity key only with a
        proof, and subscriptions only if it has the buyer's key. Raises PublicIdTaken, IdentityKeyTaken.

        Every bundle contains the signature of a signed prekey, so a prekey that was used before proves nothing.
        """
        name = tombstones.of_name(request.public_id)
        identity = tombstones.of_identity(request.identity_key)
        prekey = tombstones.of_prekey(request.signed_prekey.public_key)
        buried = await tombstones.buried(self._db, (name, identity, prekey))
        if name in buried:
            raise PublicIdTaken
        proven = prekey not in buried and keys.proves_identity(request.identity_key, request.signed_prekey)
        if identity in buried and not proven:
            raise IdentityKeyTaken
        bought = await subscriptions.bought_before(self._db, request.fingerprint)
        if bought:
            withheld = [  # subscriptions that stay hidden from the new account
                row["id"]
                for row in bought
                if not proven and (prekey in buried or not _is_buyer(request.signing_public_key, row))
            ]
            await subscriptions.withhold(self._db, request.fingerprint, withheld)

    async def login(self, request: Login, client: Client) -> SignedIn:
        """Open a session with the password. Raises InvalidCredentials, AccountSuspended."""
        account = await users.credentials(self._db, request.public_id)
        password_hash = account.password_hash if account else None
        match = await self._passwords.check(request.public_id.lower(), password_hash, request.password)
        if match is None or account is None:
            raise InvalidCredentials
        if match is Match.AS_SENT or self._passwords.needs_rehash(account.password_hash):
            fresh = await self._passwords.hash(request.password)
            await users.set_password(self._db, account.id, fresh, instead_of=account.password_hash)
        signed_in = await self._sessions.open(account.id, account.public_id, account.fingerprint, client)
        await self._sessions.cache_token(signed_in.session_id, signed_in.refresh_token)
        return signed_in

    async def change_password(self, session: Session, request: ChangePassword) -> None:
        """Set a new password and end every other session. Raises InvalidCredentials, Conflict."""
        account = await users.credentials_of(self._db, session.user_id)
        if account is None or not await self._passwords.check(
            account.public_id.lower(), account.password_hash, request.old_password
        ):
            raise InvalidCredentials
        password_hash = await self._passwords.hash(request.new_password)
        async with self._db.transaction():
            # Only if the confirmed password is still current: a reset may have come between.
            if not await users.set_password(self._db, account.id, password_hash, instead_of=account.password_hash):
                raise Conflict("The password was changed by another request at the same time.")
            ended = await sessions.end_all(self._db, account.id, but=session.session_id)
        self._revocations.announce(ended)

    # Password reset -----------------------------------------------------------------------------------------------

    def challenge(self, identity_key: bytes) -> ProofRequired:
        """Return the error for a reset without proof. It is the same for known and unknown keys; nothing is stored."""
        body = os.urandom(16) + struct.pack(">Q", int(time.time()) + CHALLENGE_SECONDS)
        sealed = body + self._keyring.derive("reset", body + identity_key)
        challenge = base64.urlsafe_b64encode(sealed).decode()
        return ProofRequired(fields={"challenge": challenge, "expires_in": CHALLENGE_SECONDS})

    def _open_challenge(self, challenge: str, identity_key: bytes) -> tuple[bytes, datetime] | None:
        """Return the nonce and expiry of a challenge; None if we did not issue it for this key, or it has expired."""
        try:
            sealed = base64.b64decode(challenge, altchars=b"-_", validate=True)
        except ValueError:
            return None
        if len(sealed) != 56:
            return None
        body, mac = sealed[:24], sealed[24:]
        if not any(hmac.compare_digest(mac, m) for m in self._keyring.derivations("reset", body + identity_key)):
            return None
        expires = struct.unpack(">Q", body[16:])[0]
        return (body[:16], datetime.fromtimestamp(expires, UTC)) if expires > time.time() else None

    async def reset_password(self, request: ResetPassword, client: Client) -> SignedIn:
        """Set a new password if the owner signed the challenge, and end every session; rolled back for a suspended
        account.

        Raises InvalidProof, AccountSuspended.
        """
        assert request.challenge is not None
        opened = self._open_challenge(request.challenge, request.identity_key)
        owner = await users.identity_by_key(self._db, request.identity_key)
        if opened is None or owner is None or not _proves(owner, request):
            raise InvalidProof
        password_hash = await self._passwords.hash(request.new_password)
        async with self._db.transaction():
            if not await sessions.spend_challenge(self._db, *opened):
                raise InvalidProof
            await users.set_password(self._db, owner.id, password_hash)
            ended = await sessions.end_all(self._db, owner.id)
            signed_in = await self._sessions.open(owner.id, owner.public_id, owner.fingerprint, client)
        self._revocations.announce(ended)
        await self._sessions.cache_token(signed_in.session_id, signed_in.refresh_token)
        return signed_in


def _proves(owner: users.Identity, request: ResetPassword) -> bool:
    assert request.signature is not None
    digest = hashlib.sha256(request.new_password.encode()).hexdigest()
    message = f"mimu-reset-v1|{b64(request.identity_key)}|{request.challenge}|{digest}".encode()
    return keys.signed_by(owner.identity_key, owner.signing_public_key, request.signature, message)


def _is_buyer(signing_key: bytes, bought: Row) -> bool:
    """True if a subscription was bought with a signature by this key."""
    messages = keys.purchase_messages(bought["prid_hash"], bought["tier"])
    return any(keys.ed25519(signing_key, bought["signature"], message) for message in messages)
