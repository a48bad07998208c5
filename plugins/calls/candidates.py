"""ICE candidates: passed on to the other participant without asking PostgreSQL or Redis about each (contract 6)."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from uuid import UUID

from handlers.limits.rates import Limits
from handlers.sockets.hub import Hub, Peer
from handlers.wire.errors import RateLimited
from models import calls
from models.calls import ANSWER_SECONDS, RING_SECONDS, Call
from models.database import Database
from plugins.calls import frames, shapes
from plugins.calls.refusals import CallNotFound, InvalidState, NotParticipant, why_not
from plugins.calls.waiting import RING_BYTES, PendingOffers, answer_key

FRESH = 10.0  # seconds a call is believed to be live without asking; the news of its end come much sooner
FORGET = 600.0  # seconds after which a call that nobody sent a candidate of is not remembered


@dataclass(slots=True)
class _LiveCall:
    """A live call as this instance remembers it. Times are monotonic."""

    call: Call
    caller: UUID
    callee: UUID
    checked: float
    rings_until: float  # as long as that, the caller's candidates are kept for sockets that open later
    answer_until: float  # as long as that, the callee's are kept behind their answer
    left: int = 0  # candidates that may pass here before more are set aside in the database
    sent: int = 0
    ring_bytes: int = 0  # payloads of the caller while it rings


class Candidates:
    """Passes candidates on, and remembers for that whose live calls are whose."""

    def __init__(self, db: Database, hub: Hub, pending: PendingOffers, limits: Limits) -> None:
        self._db, self._hub, self._pending, self._limits = db, hub, pending, limits
        self._live: dict[UUID, _LiveCall] = {}

    def learn(self, call: Call, offer_bytes: int = 0) -> None:
        """Remember a live call. Raises InvalidState when the account of one of the two is gone."""
        if call.caller_id is None or call.callee_id is None:
            raise InvalidState(fields={"call_id": str(call.id), "status": call.status})
        now = time.monotonic()
        rings = call.status == "ringing"
        live = self._live.get(call.id)
        if live is None:
            rings_until, answer_until = (now + RING_SECONDS, 0.0) if rings else (0.0, now + ANSWER_SECONDS)
            live = _LiveCall(call, call.caller_id, call.callee_id, now, rings_until, answer_until)
            self._live[call.id] = live
        elif rings:
            live.rings_until = now + RING_SECONDS
        else:
            self.answered(call.id)
        live.checked = now
        live.ring_bytes += offer_bytes

    def answered(self, call_id: UUID) -> None:
        """The call rings no more: the caller's candidates need not be kept for sockets that open later, the callee's
        follow their answer."""
        live = self._live.get(call_id)
        if live is not None and live.rings_until:
            live.rings_until, live.answer_until = 0.0, time.monotonic() + ANSWER_SECONDS

    def arrived(self, peer: Peer, call_id: UUID) -> bool:
        """A participant beats: a caller whose socket was sent the answer has it. True if it may still wait for them."""
        live = self._live.get(call_id)
        if live is None or peer.session.user_id != live.caller or live.answer_until < time.monotonic():
            return False
        if not peer.has_sent(answer_key(call_id)):
            return False
        live.answer_until = 0.0
        return True

    def forget(self, call_id: UUID) -> None:
        self._live.pop(call_id, None)

    def forget_silent(self) -> None:
        """Forget the calls that nobody asked about for long."""
        horizon = time.monotonic() - FORGET
        for call_id in [call_id for call_id, live in self._live.items() if live.checked < horizon]:
            del self._live[call_id]

    def take(self, peer: Peer, candidate: shapes.Candidate) -> Awaitable[None] | None:
        """Pass a candidate on to the other participant."""
        live = self._live.get(candidate.call_id)
        if live is None or live.checked < time.monotonic() - FRESH:
            return self._after_asking(peer, candidate)
        if self._limits.on and live.left == 0:
            return self._after_reserving(peer, candidate, live)
        self._pass(peer, candidate, live)
        return None

    async def _after_asking(self, peer: Peer, candidate: shapes.Candidate) -> None:
        call = await calls.get(self._db, candidate.call_id)
        if call is None or not call.live:
            self.forget(candidate.call_id)
            raise await why_not(self._db, candidate.call_id, peer.session.user_id)
        self.learn(call)
        live = self._live[call.id]
        if self._limits.on and live.left == 0:
            await self._after_reserving(peer, candidate, live)
        else:
            self._pass(peer, candidate, live)

    async def _after_reserving(self, peer: Peer, candidate: shapes.Candidate, live: _LiveCall) -> None:
        self._other(peer, live)  # a stranger uses nothing up
        granted = await calls.reserve_candidates(self._db, candidate.call_id)
        if not granted:
            raise RateLimited(RING_SECONDS)
        live.left += granted
        self._pass(peer, candidate, live)

    def _other(self, peer: Peer, live: _LiveCall) -> UUID:
        sender = peer.session.user_id
        if sender == live.caller:
            return live.callee
        if sender != live.callee:
            raise NotParticipant
        if live.call.silent:
            raise CallNotFound
        return live.caller

    def _pass(self, peer: Peer, candidate: shapes.Candidate, live: _LiveCall) -> None:
        other, now = self._other(peer, live), time.monotonic()
        rings = other == live.callee and live.rings_until > now
        if rings:
            # Also of a silent call, and whether the callee is online or not: the caller must not learn which.
            size = live.ring_bytes + len(candidate.encrypted_payload)
            if size > RING_BYTES:
                raise RateLimited(RING_SECONDS)
            live.ring_bytes = size
        live.left -= 1
        live.sent += 1
        if live.call.silent:
            return
        own = frames.fields(live.call, peer.session.user_id, other, candidate.encrypted_payload)
        frame: frames.IceCandidate = {"type": "ice_candidate", **own}
        if not rings and (other == live.callee or live.answer_until < now):
            self._hub.send(other, frame)
            return
        # A device of theirs may come later, so it is kept as well. By its key a socket shows it once; sockets outlive
        # calls, and each call counts its candidates from one.
        key = f"{live.call.id}/{peer.peer_id}/{live.sent}"
        self._hub.send(other, frame, key=key)
        if rings:
            self._pending.add(live.call.id, other, key, frame)
        else:
            self._pending.add_to_answer(live.call.id, other, key, frame)
