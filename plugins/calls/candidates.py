"""ICE candidates: forwarded to the other participant without a query to PostgreSQL or Redis for each (contract 6)."""

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
from plugins.calls.pending import RING_BYTES, PendingOffers, answer_key
from plugins.calls.refusals import CallNotFound, InvalidState, NotParticipant, explain_refusal

RECHECK_SECONDS = 10.0  # a call is assumed to be live without a query; the message about its end comes much sooner
FORGET_SECONDS = 600.0  # after which a call without candidates is forgotten


@dataclass(slots=True)
class _LiveCall:
    """A live call in the memory of this instance. Times are monotonic."""

    call: Call
    caller: UUID
    callee: UUID
    checked: float
    rings_until: float  # until then the caller's candidates are stored for sockets that open later
    answer_until: float  # until then the callee's candidates are stored after their answer
    left: int = 0  # candidates that may be forwarded before more are reserved in the database
    sent: int = 0
    ring_bytes: int = 0  # of the caller's payloads while it rings


class Candidates:
    """Forwards candidates, and remembers the participants of live calls for that."""

    def __init__(self, db: Database, hub: Hub, pending: PendingOffers, limits: Limits) -> None:
        self._db, self._hub, self._pending, self._limits = db, hub, pending, limits
        self._live: dict[UUID, _LiveCall] = {}

    def remember(self, call: Call, offer_bytes: int = 0) -> None:
        """Remember a live call. Raises InvalidState if the account of a participant is gone."""
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
            self.note_answered(call.id)
        live.checked = now
        live.ring_bytes += offer_bytes

    def note_answered(self, call_id: UUID) -> None:
        """Record that a call was answered: stop storing the caller's candidates for sockets that open later, and store
        the callee's after their answer."""
        live = self._live.get(call_id)
        if live is not None and live.rings_until:
            live.rings_until, live.answer_until = 0.0, time.monotonic() + ANSWER_SECONDS

    def confirm_answer(self, peer: Peer, call_id: UUID) -> bool:
        """Record from a heartbeat that the caller has the answer. Returns True if the answer may still be stored."""
        live = self._live.get(call_id)
        if live is None or peer.session.user_id != live.caller or live.answer_until < time.monotonic():
            return False
        if not peer.has_sent(answer_key(call_id)):
            return False
        live.answer_until = 0.0
        return True

    def forget(self, call_id: UUID) -> None:
        self._live.pop(call_id, None)

    def forget_stale(self) -> None:
        """Forget the calls of which no frame came for long."""
        horizon = time.monotonic() - FORGET_SECONDS
        for call_id in [call_id for call_id, live in self._live.items() if live.checked < horizon]:
            del self._live[call_id]

    def forward(self, peer: Peer, candidate: shapes.Candidate) -> Awaitable[None] | None:
        """Forward a candidate to the other participant."""
        live = self._live.get(candidate.call_id)
        if live is None or live.checked < time.monotonic() - RECHECK_SECONDS:
            return self._load_and_forward(peer, candidate)
        if self._limits.on and live.left == 0:
            return self._reserve_and_forward(peer, candidate, live)
        self._forward(peer, candidate, live)
        return None

    async def _load_and_forward(self, peer: Peer, candidate: shapes.Candidate) -> None:
        call = await calls.get(self._db, candidate.call_id)
        if call is None or not call.live:
            self.forget(candidate.call_id)
            raise await explain_refusal(self._db, candidate.call_id, peer.session.user_id)
        self.remember(call)
        live = self._live[call.id]
        if self._limits.on and live.left == 0:
            await self._reserve_and_forward(peer, candidate, live)
        else:
            self._forward(peer, candidate, live)

    async def _reserve_and_forward(self, peer: Peer, candidate: shapes.Candidate, live: _LiveCall) -> None:
        self._receiver(peer, live)  # raise before a user who is not in the call uses up candidates
        granted = await calls.reserve_candidates(self._db, candidate.call_id)
        if not granted:
            raise RateLimited(RING_SECONDS)
        live.left += granted
        self._forward(peer, candidate, live)

    def _receiver(self, peer: Peer, live: _LiveCall) -> UUID:
        sender = peer.session.user_id
        if sender == live.caller:
            return live.callee
        if sender != live.callee:
            raise NotParticipant
        if live.call.silent:
            raise CallNotFound
        return live.caller

    def _forward(self, peer: Peer, candidate: shapes.Candidate, live: _LiveCall) -> None:
        other, now = self._receiver(peer, live), time.monotonic()
        rings = other == live.callee and live.rings_until > now
        if rings:
            # Also for a silent call, and for an online callee: the caller must not learn the difference.
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
        # A device may open a socket later, so the frame is stored, too. Its key makes a socket send it only once;
        # sockets outlive calls, and each call counts its candidates from one.
        key = f"{live.call.id}/{peer.peer_id}/{live.sent}"
        self._hub.send(other, frame, key=key)
        if rings:
            self._pending.add(live.call.id, other, key, frame)
        else:
            self._pending.add_to_answer(live.call.id, other, key, frame)
