"""Signalling: who may do what to a call, and who hears of it. The row decides; frames follow the commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog

from config.settings import Rate
from handlers.bus import Bus
from handlers.errors import ApiError, Conflict, Forbidden, InvalidRequest, NotFound, RateLimited
from handlers.hub import Hub, Peer
from handlers.limits import Limits
from handlers.socket import Answer
from models import calls
from models.calls import RING_SECONDS, Call
from models.database import Database, Unavailable
from plugins.calls import shapes
from plugins.calls.waiting import Waiting

log = structlog.get_logger(__name__)

ENDED = "calls:ended"  # the Redis channel on which instances tell each other which calls they need not know any more
CANDIDATES = 300  # a call, contract section 6; a phone with many networks gathers a few dozen
FRESH = 10.0  # seconds a call is believed to be live without asking; the news on ENDED comes much sooner
SLACK = 0.1  # seconds after the ring's end: the row's clock is PostgreSQL's


class NotParticipant(Forbidden):
    code, message = "not_participant", "Only the two of a call may do this."


class CallNotFound(NotFound):
    code, message = "call_not_found", "There is no such call."


class InvalidState(Conflict):
    code, message = "invalid_state", "The call is in a state that does not allow this."


class CallIdConflict(Conflict):
    code, message = "call_id_conflict", "This call_id belongs to another call."


class UserNotFound(NotFound):
    code, message = "user_not_found", "There is no such user."


class CannotCallSelf(InvalidRequest):
    code, message = "cannot_call_self", "One can't call oneself."


class Glare(Conflict):
    code, message = "glare", "The other side is calling you already."


@dataclass(slots=True)
class _Known:
    """A live call as this instance remembers it, so that a candidate asks neither PostgreSQL nor Redis."""

    caller: UUID
    callee: UUID
    silent: bool
    checked: float = 0.0
    candidates: int = 0
    rings_until: float = 0.0  # as long as that, the caller's candidates are kept for sockets that open later


class Calls:
    def __init__(self, db: Database, hub: Hub, bus: Bus, waiting: Waiting, limits: Limits, offers: Rate) -> None:
        self._db, self._hub, self._bus, self._waiting = db, hub, bus, waiting
        self._limits, self._offers = limits, offers
        self._known: dict[UUID, _Known] = {}
        self._rings: dict[UUID, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        for ring in self._rings.values():
            ring.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Frames from clients ------------------------------------------------------------------------------------------

    async def offer(self, peer: Peer, offer: shapes.Offer) -> Answer:
        """Ring the callee. The ack says whether any of their sockets took it, and when the ring ends."""
        caller = peer.session.user_id
        if offer.to_user_id == caller:
            raise CannotCallSelf
        await self._limits.spend("offers", str(caller), self._offers)
        rung = await calls.ring(self._db, offer.call_id, caller, offer.to_user_id, offer.call_type)
        if rung is None:
            raise UserNotFound
        call = rung.call
        expires = call.started_at + timedelta(seconds=RING_SECONDS)
        if not rung.new:
            if call.id != offer.call_id:
                raise Glare(fields={"call_id": str(call.id)})
            if (call.caller_id, call.callee_id) != (caller, offer.to_user_id):
                raise CallIdConflict
            return {"call_id": call.id, "status": call.status, "expires_at": expires, "repeated": True}
        for old in rung.superseded:
            self._end(old, "superseded", by=peer)
        self._remember(call)
        loop = asyncio.get_running_loop()
        self._rings[call.id] = loop.call_later(RING_SECONDS + SLACK, self._ring_over, call.id)
        frame = {
            "type": "call_offer",
            "call_id": call.id,
            "from_user_id": caller,
            "to_user_id": offer.to_user_id,
            "call_type": offer.call_type,
            "encrypted_payload": offer.encrypted_payload,
            "expires_at": expires,
        }
        delivered = False
        if not call.silent:
            # Kept before it is sent: a socket that opens in between gets it one way or the other, and shows it once.
            await self._waiting.begin(call.id, str(call.id), frame)
            delivered = await self._hub.deliver(offer.to_user_id, frame, key=str(call.id))
        return {"call_id": call.id, "status": call.status, "expires_at": expires, "delivered": delivered}

    async def answer(self, peer: Peer, answer: shapes.Answer) -> Answer:
        """Accept a ringing call; the first of the callee's devices wins, and the others stop ringing."""
        callee = peer.session.user_id
        call = await calls.answer(self._db, answer.call_id, callee)
        if call is None:
            raise await self._why_not(answer.call_id, callee)
        self._stop_ring(call.id)
        self._remember(call).rings_until = 0.0
        await self._waiting.end(call.id)
        frame = {
            "type": "call_answer",
            "call_id": call.id,
            "from_user_id": callee,
            "to_user_id": call.caller_id,
            "call_type": call.call_type,
            "encrypted_payload": answer.encrypted_payload,
        }
        if call.caller_id is not None:
            self._hub.send(call.caller_id, frame)
        self._hub.send(callee, _hangup(call, "answered_elsewhere"), skip=peer.peer_id)
        return {"call_id": call.id, "status": call.status}

    def candidate(self, peer: Peer, candidate: shapes.Candidate) -> Answer | Awaitable[Answer]:
        """Pass an ICE candidate on to the other participant."""
        known = self._known.get(candidate.call_id)
        if known is None or known.checked < time.monotonic() - FRESH:
            return self._candidate_unknown(peer, candidate)
        if known.rings_until > time.monotonic() and peer.session.user_id == known.caller:
            return self._candidate_ringing(peer, candidate, known)
        self._pass(peer, candidate, known)
        return None

    async def _candidate_ringing(self, peer: Peer, candidate: shapes.Candidate, known: _Known) -> Answer:
        """While it rings another of the callee's devices may wake, so the caller's candidates are kept as well."""
        key, frame = self._pass(peer, candidate, known)
        if not known.silent:
            await self._waiting.add(candidate.call_id, key, frame)
        return None

    async def _candidate_unknown(self, peer: Peer, candidate: shapes.Candidate) -> Answer:
        call = await calls.get(self._db, candidate.call_id)
        if call is None or not call.live:
            self._known.pop(candidate.call_id, None)
            raise await self._why_not(candidate.call_id, peer.session.user_id)
        known = self._remember(call)
        if call.status == "ringing" and peer.session.user_id == known.caller:
            return await self._candidate_ringing(peer, candidate, known)
        self._pass(peer, candidate, known)
        return None

    def _pass(self, peer: Peer, candidate: shapes.Candidate, known: _Known) -> tuple[str, dict[str, object]]:
        """Send it to the other one; its key and the frame."""
        sender = peer.session.user_id
        if sender == known.caller:
            other = known.callee
        elif sender == known.callee:
            if known.silent:
                raise CallNotFound
            other = known.caller
        else:
            raise NotParticipant
        known.candidates += 1
        if self._limits.on and known.candidates > CANDIDATES:
            raise RateLimited(RING_SECONDS)
        frame: dict[str, object] = {
            "type": "ice_candidate",
            "call_id": candidate.call_id,
            "from_user_id": sender,
            "to_user_id": other,
            "encrypted_payload": candidate.encrypted_payload,
        }
        # Only what is kept for sockets that open later can come to one twice.
        key = f"{peer.peer_id}/{known.candidates}" if known.rings_until > time.monotonic() else ""
        if not known.silent:
            self._hub.send(other, frame, key=key)
        return key, frame

    async def hangup(self, peer: Peer, hangup: shapes.Hangup) -> Answer:
        """End a call. Of a finished one it is acked and changes nothing."""
        user_id = peer.session.user_id
        call = await calls.hang_up(self._db, hangup.call_id, user_id, hangup.reason)
        if call is None:
            call = await calls.get(self._db, hangup.call_id)
            if call is None or call.live or not call.concerns(user_id):
                raise await self._why_not(hangup.call_id, user_id)
        else:
            self._end(call, call.end_reason or "hangup", by=peer, payload=hangup.encrypted_payload)
        return {"call_id": call.id, "status": call.status, "end_reason": call.end_reason}

    async def heartbeat(self, peer: Peer, heartbeat: shapes.Heartbeat) -> Answer:
        """Keep an answered call alive."""
        if not await calls.beat(self._db, heartbeat.call_id, peer.session.user_id):
            raise await self._why_not(heartbeat.call_id, peer.session.user_id)
        return {"call_id": heartbeat.call_id}

    async def _why_not(self, call_id: UUID, user_id: UUID) -> ApiError:
        call = await calls.get(self._db, call_id)
        if call is None:
            return CallNotFound()
        if not call.concerns(user_id):
            # Whom a silent call is kept from gets the same answer as about a call that never was.
            return CallNotFound() if user_id == call.callee_id else NotParticipant()
        return InvalidState(fields={"call_id": str(call_id), "status": call.status})

    # The end of a call --------------------------------------------------------------------------------------------

    def _end(self, call: Call, reason: str, by: Peer | None = None, payload: str | None = None) -> None:
        """Tell every socket of both, but the one that did it, that the call is over."""
        self._stop_ring(call.id)
        self._known.pop(call.id, None)
        self._drop(call.id)
        self._bus.publish(ENDED, str(call.id).encode())
        sender = by.session.user_id if by else None
        for user_id in (call.caller_id, call.callee_id):
            if user_id is None or not call.concerns(user_id):
                continue
            own = user_id == sender
            told = f"{reason}_elsewhere" if own and reason == "declined" else reason
            frame = _hangup(call, told, sender, None if own else payload)
            self._hub.send(user_id, frame, skip=by.peer_id if own and by else "")

    def _drop(self, call_id: UUID) -> None:
        """Let nothing wait for a call that is over; nobody waits for that."""
        task = asyncio.get_running_loop().create_task(self._waiting.end(call_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def hear_ended(self, _: str, message: bytes) -> None:
        """Another instance ended a call."""
        call_id = UUID(message.decode())
        self._known.pop(call_id, None)
        self._stop_ring(call_id)

    def _ring_over(self, call_id: UUID) -> None:
        self._rings.pop(call_id, None)
        task = asyncio.get_running_loop().create_task(self._expire(call_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _expire(self, call_id: UUID) -> None:
        try:
            call = await calls.expire(self._db, call_id)
        except Unavailable:
            log.warning("call_timeout_left_to_sweep")
            return
        if call is not None:
            self._end(call, "timeout")

    async def sweep(self) -> None:
        """End what rang or was silent too long, and forget calls that nobody asked about."""
        for call in await calls.sweep(self._db):
            self._end(call, "timeout" if call.end_reason == "timeout" else "connection_lost")
        stale = time.monotonic() - 60 * FRESH
        for call_id in [call_id for call_id, known in self._known.items() if known.checked < stale]:
            del self._known[call_id]

    # What this instance remembers -----------------------------------------------------------------------------------

    def _remember(self, call: Call) -> _Known:
        known = self._known.get(call.id)
        if known is None:
            if call.caller_id is None or call.callee_id is None:
                raise InvalidState  # the other account is gone
            known = self._known[call.id] = _Known(call.caller_id, call.callee_id, call.silent)
        known.checked = time.monotonic()
        known.rings_until = known.checked + RING_SECONDS if call.status == "ringing" else 0.0
        return known

    def _stop_ring(self, call_id: UUID) -> None:
        ring = self._rings.pop(call_id, None)
        if ring is not None:
            ring.cancel()


def _hangup(call: Call, reason: str, sender: UUID | None = None, payload: str | None = None) -> dict[str, object]:
    frame: dict[str, object] = {
        "type": "call_hangup",
        "call_id": call.id,
        "reason": reason,
        "call_type": call.call_type,
    }
    if sender is not None:
        frame["from_user_id"] = sender
    if payload is not None:
        frame["encrypted_payload"] = payload
    return frame
