"""Signalling: who may do what with a call, and who is notified. The row decides; frames follow the commit."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta
from uuid import UUID

import structlog

from config.values import Rate
from handlers.alerts import Alerts
from handlers.limits.rates import Limits
from handlers.redis_service import REDIS_ERRORS
from handlers.sockets.bus import Bus
from handlers.sockets.hub import Hub, Peer, last_of
from models import calls
from models.calls import RING_SECONDS, Call
from models.database import Database, Unavailable
from plugins.calls import frames, shapes
from plugins.calls.candidates import Candidates
from plugins.calls.pending import PendingOffers, answer_key
from plugins.calls.refusals import CallIdConflict, CannotCallSelf, Glare, UserNotFound, explain_refusal
from plugins.calls.tally import Tally

log = structlog.get_logger(__name__)

CHANNEL = "calls:news"  # every instance subscribes: calls that were answered or have ended
SLACK = 0.1  # seconds after the ring's end, because PostgreSQL's clock decides


class Calls:
    """Handles the frames of calls, and sends frames to every socket of both participants."""

    def __init__(
        self,
        db: Database,
        hub: Hub,
        bus: Bus,
        alerts: Alerts,
        pending: PendingOffers,
        candidates: Candidates,
        limits: Limits,
        offers: Rate,
        tally: Tally,
    ) -> None:
        self._db, self._hub, self._bus, self._pending, self._candidates = db, hub, bus, pending, candidates
        self._alerts, self._limits, self._offers, self._tally = alerts, limits, offers, tally
        self._rings: dict[UUID, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        for ring in self._rings.values():
            ring.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Frames from clients ------------------------------------------------------------------------------------------

    async def offer(self, peer: Peer, offer: shapes.Offer) -> frames.Rings:
        """Ring the callee. The ack says if any of their sockets received the offer, and when the ring ends."""
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
        self._tally.started(call.call_type)
        for old in rung.superseded:
            self._end(old, "superseded", by=peer)
        self._candidates.remember(call, len(offer.encrypted_payload))
        loop = asyncio.get_running_loop()
        self._rings[call.id] = loop.call_later(RING_SECONDS + SLACK, self._expire_soon, call.id)
        delivered = False
        if not call.silent:
            callee = offer.to_user_id
            own = frames.fields(call, caller, callee, offer.encrypted_payload)
            ring: frames.CallOffer = {"type": "call_offer", **own, "expires_at": expires}
            self._pending.begin(call.id, callee, ring, contact=rung.contact)
            delivered = await self._hub.deliver(callee, ring, key=str(call.id))
            if not delivered:
                self._alerts.ring(call.id, callee, expires)
        return {
            "call_id": call.id,
            "status": call.status,
            "expires_at": expires,
            # This is presence, so hide it from callers who may not see the callee's.
            "delivered": delivered if rung.visible else None,
        }

    async def answer(self, peer: Peer, answer: shapes.Answer) -> frames.Answered:
        """Accept a ringing call. The first of the callee's devices wins, and the others stop ringing. The ack says if
        any socket of the caller received the answer, which also waits for sockets that open within a minute."""
        callee = peer.session.user_id
        answer_hash = hashlib.sha256(answer.encrypted_payload.encode()).digest()
        answered = await calls.answer(self._db, answer.call_id, callee, answer_hash)
        if answered is None:
            raise await explain_refusal(self._db, answer.call_id, callee)
        call, caller = answered.call, answered.call.caller_id
        delivered = False
        if answered.new:
            self._tally.answered(call.call_type)
            self._stop_ringing(call.id, peer)
            self._candidates.remember(call)
            self._bus.publish(CHANNEL, f"{call.id} answered".encode())
            own = frames.fields(call, caller, callee)
            elsewhere: frames.CallHangup = {"type": "call_hangup", **own, "reason": "answered_elsewhere"}
            self._hub.send(callee, elsewhere, skip=peer.peer_id, key=last_of(str(call.id)))
            if caller is not None:
                own = frames.fields(call, callee, caller, answer.encrypted_payload)
                frame: frames.CallAnswer = {"type": "call_answer", **own}
                self._pending.begin_answer(call.id, caller, frame)
                delivered = await self._hub.deliver(caller, frame, key=answer_key(call.id))
        elif caller is not None:
            delivered = await self._is_online(caller)
        ack: frames.Answered = {
            "call_id": call.id,
            "status": call.status,
            "delivered": delivered if answered.visible else None,
        }
        return ack if answered.new else {**ack, "repeated": True}

    async def _is_online(self, user_id: UUID) -> bool:
        """True if the user has an open socket; while Redis is away, on this instance."""
        try:
            return not await self._hub.absent([user_id])
        except REDIS_ERRORS:
            return False

    async def hangup(self, peer: Peer, hangup: shapes.Hangup) -> frames.HungUp:
        """End a call. A hangup of an ended call is acknowledged and changes nothing."""
        user_id = peer.session.user_id
        for _ in range(3):  # the offer may commit between the two statements
            call = await calls.hang_up(self._db, hangup.call_id, user_id, hangup.reason)
            if call is not None:
                self._end(call, call.end_reason or "hangup", by=peer, payload=hangup.encrypted_payload)
                break
            call = await calls.get(self._db, hangup.call_id)
            if call is None or not call.concerns(user_id) or not call.live:
                break
        if call is None or call.live or not call.concerns(user_id):
            raise await explain_refusal(self._db, hangup.call_id, user_id)
        return {"call_id": call.id, "status": call.status, "end_reason": call.end_reason}

    async def heartbeat(self, peer: Peer, heartbeat: shapes.Heartbeat) -> frames.Beaten:
        """Keep an answered call alive."""
        if not await calls.record_heartbeat(self._db, heartbeat.call_id, peer.session.user_id):
            raise await explain_refusal(self._db, heartbeat.call_id, peer.session.user_id)
        if self._candidates.confirm_answer(peer, heartbeat.call_id):
            self._pending.end_answer(heartbeat.call_id)
        return {"call_id": heartbeat.call_id}

    # The end of a ring, and of a call -------------------------------------------------------------------------------

    def _stop_ringing(self, call_id: UUID, by: Peer | None) -> None:
        """Stop the ring of a call that was answered or has ended, on any instance."""
        ring = self._rings.pop(call_id, None)
        if ring is not None:
            ring.cancel()
        self._pending.end_ring(call_id)
        self._alerts.ring_over(call_id, by.session.session_id if by else None)

    def _end(self, call: Call, reason: str, by: Peer | None = None, payload: str | None = None) -> None:
        """Count the end of a call, and notify every socket of both participants except the one that ended it."""
        self._tally.ended(call.status, call.end_reason)
        self._candidates.forget(call.id)
        self._stop_ringing(call.id, by)
        self._pending.end_answer(call.id)
        self._bus.publish(CHANNEL, f"{call.id} ended".encode())
        sender = by.session.user_id if by else None
        for user_id, other in ((call.caller_id, call.callee_id), (call.callee_id, call.caller_id)):
            if user_id is None or not call.concerns(user_id):
                continue
            own = user_id == sender
            shown = f"{reason}_elsewhere" if own and reason == "declined" else reason
            from_user_id = other if sender is None else sender
            fields = frames.fields(call, from_user_id, user_id, None if own else payload)
            frame: frames.CallHangup = {"type": "call_hangup", **fields, "reason": shown}
            # An offer that another instance is just sending must not ring after this.
            self._hub.send(user_id, frame, skip=by.peer_id if own and by else "", key=last_of(str(call.id)))

    def receive(self, _: str, message: bytes) -> None:
        """Receive the end or answer of a call from an instance. Its own messages come back, too, and change nothing."""
        call, _, state = message.decode().partition(" ")
        call_id = UUID(call)
        if state == "ended":
            self._candidates.forget(call_id)
        else:
            self._candidates.note_answered(call_id)
        ring = self._rings.pop(call_id, None)
        if ring is not None:
            ring.cancel()
        self._pending.ended_elsewhere(call_id, answered=state != "ended")

    def _expire_soon(self, call_id: UUID) -> None:
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

    def end_overdue(self, call: Call) -> None:
        """Notify the participants that a sweep has ended their call."""
        self._end(call, "timeout" if call.end_reason == "timeout" else "connection_lost")

    def forget_stale(self) -> None:
        """Forget calls of which no frame came for long."""
        self._candidates.forget_stale()
        self._pending.forget_stale()
