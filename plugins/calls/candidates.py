"""ICE candidates: passed on to the other participant without asking PostgreSQL or Redis about each (contract 6)."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from uuid import UUID

from handlers.errors import RateLimited
from handlers.hub import Hub, Peer
from handlers.limits import Limits
from handlers.socket import Answer
from models import calls
from models.calls import RING_SECONDS, Call
from models.database import Database
from plugins.calls import shapes
from plugins.calls.refusals import CallNotFound, InvalidState, NotParticipant, why_not
from plugins.calls.waiting import Waiting

FRESH = 10.0  # seconds a call is believed to be live without asking; the news of its end come much sooner
FORGET = 600.0  # seconds after which a call that nobody sent a candidate of is not remembered


@dataclass(slots=True)
class _Known:
    """A live call as this instance remembers it."""

    caller: UUID
    callee: UUID
    silent: bool
    checked: float  # monotonic
    rings_until: float  # as long as that, the caller's candidates are kept for sockets that open later
    left: int = 0  # candidates that may pass here before more are set aside in the database
    sent: int = 0


class Candidates:
    """Passes candidates on, and remembers for that whose live calls are whose."""

    def __init__(self, db: Database, hub: Hub, waiting: Waiting, limits: Limits) -> None:
        self._db, self._hub, self._waiting, self._limits = db, hub, waiting, limits
        self._known: dict[UUID, _Known] = {}

    def learn(self, call: Call) -> None:
        """Remember a live call. Raises InvalidState when the account of one of the two is gone."""
        if call.caller_id is None or call.callee_id is None:
            raise InvalidState
        now = time.monotonic()
        rings_until = now + RING_SECONDS if call.status == "ringing" else 0.0
        known = self._known.get(call.id)
        if known is None:
            self._known[call.id] = _Known(call.caller_id, call.callee_id, call.silent, now, rings_until)
        else:
            known.checked, known.rings_until = now, rings_until

    def answered(self, call_id: UUID) -> None:
        """The call rings no more: nothing needs to be kept for sockets that open later."""
        known = self._known.get(call_id)
        if known is not None:
            known.rings_until = 0.0

    def forget(self, call_id: UUID) -> None:
        self._known.pop(call_id, None)

    def forget_silent(self) -> None:
        """Forget the calls that nobody asked about for long."""
        horizon = time.monotonic() - FORGET
        for call_id in [call_id for call_id, known in self._known.items() if known.checked < horizon]:
            del self._known[call_id]

    def take(self, peer: Peer, candidate: shapes.Candidate) -> Answer | Awaitable[Answer]:
        """Pass a candidate on to the other participant."""
        known = self._known.get(candidate.call_id)
        if known is None or known.checked < time.monotonic() - FRESH:
            return self._after_asking(peer, candidate)
        if self._limits.on and known.left == 0:
            return self._after_reserving(peer, candidate, known)
        self._pass(peer, candidate, known)
        return None

    async def _after_asking(self, peer: Peer, candidate: shapes.Candidate) -> Answer:
        call = await calls.get(self._db, candidate.call_id)
        if call is None or not call.live:
            self.forget(candidate.call_id)
            raise await why_not(self._db, candidate.call_id, peer.session.user_id)
        self.learn(call)
        known = self._known[call.id]
        if self._limits.on and known.left == 0:
            return await self._after_reserving(peer, candidate, known)
        self._pass(peer, candidate, known)
        return None

    async def _after_reserving(self, peer: Peer, candidate: shapes.Candidate, known: _Known) -> Answer:
        self._other(peer, known)  # a stranger uses nothing up
        granted = await calls.reserve_candidates(self._db, candidate.call_id)
        if not granted:
            raise RateLimited(RING_SECONDS)
        known.left += granted
        self._pass(peer, candidate, known)
        return None

    def _other(self, peer: Peer, known: _Known) -> UUID:
        sender = peer.session.user_id
        if sender == known.caller:
            return known.callee
        if sender != known.callee:
            raise NotParticipant
        if known.silent:
            raise CallNotFound
        return known.caller

    def _pass(self, peer: Peer, candidate: shapes.Candidate, known: _Known) -> None:
        other = self._other(peer, known)
        known.left -= 1
        known.sent += 1
        if known.silent:
            return
        frame: dict[str, object] = {
            "type": "ice_candidate",
            "call_id": candidate.call_id,
            "from_user_id": peer.session.user_id,
            "to_user_id": other,
            "encrypted_payload": candidate.encrypted_payload,
        }
        if other == known.callee and known.rings_until > time.monotonic():
            # Another of the callee's devices may wake, so it is kept as well. By its key a socket shows it once.
            key = f"{peer.peer_id}/{known.sent}"
            self._hub.send(other, frame, key=key)
            self._waiting.add(candidate.call_id, other, key, frame)
        else:
            self._hub.send(other, frame)
