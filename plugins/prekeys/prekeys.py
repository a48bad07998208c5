"""Bundles: the keys to open a Signal session (X3DH, PQXDH) with a user who is offline."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from config.values import Rate
from handlers.alerts import Alerts
from handlers.limits.rates import Limits
from handlers.sockets.hub import Hub, Peer
from handlers.wire import signal_keys as keys
from handlers.wire.errors import Conflict, Fault, InvalidRequest, NotFound
from handlers.wire.shapes import b64
from models import prekeys, users
from models.database import Database, Row
from plugins.prekeys.shapes import Bundle, Supply, Upload, prekeys_low

MAX_UNUSED = 1000  # keys of a kind; at 100 a week enough for months, and more only fill our disk


class Prekeys:
    def __init__(
        self,
        db: Database,
        hub: Hub,
        alerts: Alerts,
        limits: Limits,
        per_target: Rate,
        in_all: Rate,
        *,
        libsignal: bool = False,
    ) -> None:
        self._libsignal = libsignal
        self._db, self._hub, self._alerts, self._limits = db, hub, alerts, limits
        self._per_target, self._in_all = per_target, in_all

    async def bundle(self, caller: UUID, user: UUID | str, *, signal_form: bool) -> Bundle:
        """Return a bundle with a one-time prekey that no other caller receives. The caller's own contains none.

        With ``signal_form`` curve keys have Signal's type byte, 33 bytes. Raises NotFound, RateLimited.
        """
        owner = await users.identity(self._db, user)
        if owner is None:
            raise NotFound("There is no such user.")
        one_time = kyber = None
        own = owner.id == caller
        if not own:
            await self._limits.spend("bundles", str(caller), self._in_all, shown=True)
            await self._limits.spend("bundle", f"{caller}:{owner.id}", self._per_target, shown=True)
        signed = await prekeys.signed_prekey(self._db, owner.id)
        if signed is None:
            raise NotFound("This user has no keys.")
        if own:
            kyber = await prekeys.last_resort(self._db, owner.id)
        else:
            one_time = await prekeys.claim(self._db, owner.id)
            kyber = await prekeys.claim_kyber(self._db, owner.id)
            await self._notify_if_low(owner.id)
        prefix = keys.SIGNAL_TYPE if signal_form else b""
        bundle: Bundle = {
            "identity_key": b64(prefix + owner.identity_key),
            "signing_public_key": b64(owner.signing_public_key),
            "registration_id": owner.registration_id,
            "fingerprint": owner.fingerprint,
            "signed_prekey": _key(signed, prefix),
            "one_time_prekey": _key(one_time, prefix) if one_time else None,
        }
        if kyber is not None:
            bundle["kyber_prekey"] = _key(kyber, b"")
        return bundle

    async def _notify_if_low(self, owner: UUID) -> None:
        remaining = await prekeys.left(self._db, owner, prekeys.LOW)
        if remaining < prekeys.LOW:
            self._hub.send(owner, prekeys_low(remaining))
            self._alerts.prekeys_low(owner)

    async def greet(self, peer: Peer) -> None:
        """Notify a new socket if its owner has no one-time prekeys left: they were withdrawn
        (models/postgres/epochs.py), or the device was offline when the last one was fetched."""
        if await prekeys.used_up(self._db, peer.session.user_id):
            peer.send(prekeys_low(0))

    async def supply(self, user_id: UUID) -> Supply:
        """Return how many keys are left, and the current signed prekey."""
        remaining = await prekeys.remaining(self._db, user_id)
        signed = await prekeys.signed_prekey(self._db, user_id)
        return {
            "one_time_remaining": remaining.one_time,
            "kyber_remaining": remaining.kyber,
            "signed_prekey": {"key_id": signed["key_id"], "created_at": signed["created_at"]} if signed else None,
        }

    async def upload(self, user_id: UUID, request: Upload) -> Supply:
        """Add keys, all or none. Returns the supply. Keys that are stored already stay as they are.

        Raises InvalidRequest, and Conflict for a key id of another key, or a signed key that was replaced before.
        """
        owner = await users.identity_of(self._db, user_id)
        if owner is None:
            raise NotFound("There is no such user.")
        faults = keys.find_faults(request, owner.identity_key, owner.signing_public_key, libsignal=self._libsignal)
        wanted = self._libsignal and request.signed_prekey and not request.last_resort_kyber_prekey
        if wanted and await prekeys.last_resort(self._db, user_id) is None:
            faults.append(keys.missing_last_resort())
        if faults:
            raise InvalidRequest("Some fields are not valid.", details=faults)
        try:
            await prekeys.add(self._db, user_id, request, at_most=MAX_UNUSED)
        except prekeys.Reused as reused:
            raise Conflict(f"A key or a key id in {reused.kind} was used before.") from None
        except prekeys.TooMany as many:
            fault = Fault(many.kind, f"you have {many.left} unused ones; the server keeps at most {MAX_UNUSED}")
            raise InvalidRequest("Some fields are not valid.", details=[fault]) from None
        return await self.supply(user_id)


def _key(row: Row, prefix: bytes) -> Any:
    key = {"id": row["id"], "key_id": row["key_id"], "public_key": b64(prefix + row["public_key"])}
    if "signature" in row.keys():  # noqa: SIM118  # `in` on a Record checks its values
        key["signature"] = b64(row["signature"])
    return key
