"""Delivery: one frame to all who belong together, on all instances, built once and in the order it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Container, Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

import orjson
import structlog

from handlers.sockets.bus import Bus
from handlers.sockets.hub import Hub, text_frame, type_of
from handlers.wire.frames import Frame
from handlers.wire.shapes import encode

log = structlog.get_logger(__name__)

CHANNEL = "ws:groups"  # heard by every instance
FEW = 16  # users who aren't only here to whom a frame is published one by one; for more it is published once, to all
SLICE = 256  # sockets written to in one turn of the loop: some 2 ms
TOGETHER = (
    16  # frames that a socket of a large group gets at once, when so many wait: they go to the kernel in one call
)
TURN = 4 << 20  # bytes written in one turn of the loop, however large the frames: some 4 ms
BEHIND = 64  # frames that may wait for one large group; then nothing more is taken for it

Members = Callable[[UUID, int, int], Awaitable[Collection[UUID]]]
HiddenFrom = Callable[[UUID, int, str], Awaitable[Container[UUID]]]
Charge = Callable[[UUID, int, int], None]  # who sends, to how many people, and how many bytes to each
PRESENT = 2**63 - 1  # the seq of what is sent to whoever is there now


class _GroupFrame(NamedTuple):
    """A frame on its way to a group. ``members`` is None when it came from another instance: then they are looked up,
    and only sockets here are written to. ``began`` (monotonic) is when it happened, or was heard of. With a ``scope``
    the members in ``unseeing``, looked up likewise, get the payload ``hidden`` instead."""

    kind: str
    began: float
    access: int
    seq: int
    members: Collection[UUID] | None
    payload: bytes
    skip: str
    but: UUID | None
    droppable: bool
    scope: str = ""
    unseeing: Container[UUID] = ()
    hidden: bytes = b""


def _alike(one: _GroupFrame, other: _GroupFrame) -> bool:
    """Whether two frames go to the same people in one form: nobody came between them, or their access would differ."""
    if one.scope or other.scope:
        return False
    return one.members is other.members and (one.access, one.but) == (other.access, other.but)


def _hidden(frame: Frame) -> bytes:
    """The encoded form in which an event reaches those who may not see it: a place, and nothing else."""
    return encode({"type": "hidden", **{name: frame[name] for name in ("chat_id", "seq", "created_at")}})


def _free(_sender: UUID, _people: int, _size: int) -> None:
    """Charge for nothing."""


async def _from_nobody(_group: UUID, _access: int, _scope: str) -> Container[UUID]:
    return ()


class Delivery:
    """Sends frames to groups of users. ``members`` gives those of a group, as they are since some ``access`` of it, who
    were there at some ``seq``; ``hidden_from`` those who may not see what a frame with that ``scope`` tells. To this
    module a scope is a word without blanks.

    Small groups are written to at once. A large one, or a frame that is large for its group, gets a queue and a task,
    which writes to a slice of it at a time. Of all groups one slice is written in each turn of the loop, by turns, so
    that however many groups are busy others are served in between; frames of one group never overtake each other here.

    On ``ws:groups`` a message is ``{origin} {kind} {group} {access} {seq} {peer to skip} {user to leave
    out}\\n{frame}``. ``kind`` is ``send`` or ``drop``, with a scope ``send:{scope}``.
    """

    def __init__(
        self, hub: Hub, bus: Bus, members: Members, hidden_from: HiddenFrom = _from_nobody, charge: Charge = _free
    ) -> None:
        self._hub, self._bus, self._members, self._hidden_from = hub, bus, members, hidden_from
        self._charge = charge
        self._origin = hub.instance_id.hex
        self._queues: dict[UUID, deque[_GroupFrame]] = {}
        self._turn = asyncio.Lock()  # first come, first served
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hear other instances until the block ends; what waits then is sent first."""
        await self._bus.subscribe(CHANNEL, self._hear)
        try:
            yield
        finally:
            self._bus.unsubscribe(CHANNEL)
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def waiting(self) -> int:
        """How many frames wait for large groups."""
        return sum(map(len, self._queues.values()))

    def behind(self, group: UUID) -> bool:
        """Whether so much waits for this group that nothing more should be sent for now."""
        return len(self._queues.get(group, ())) >= BEHIND

    def tell(
        self,
        group: UUID,
        access: int,
        members: Collection[UUID],
        frame: Frame,
        *,
        by: UUID | None = None,
        skip: str = "",
        but: UUID | None = None,
        droppable: bool = False,
        began: float | None = None,
    ) -> None:
        """Send a frame to every socket of the members, on all instances, but the one called ``skip``, and those of the
        user ``but``. What it tells of happened at ``began`` (monotonic), or just now. The user ``by`` is charged for
        it; None where the server itself sends, or a sender that it doesn't know."""
        if but is not None:
            members = [member for member in members if member != but]
        kind, began = frame["type"], time.monotonic() if began is None else began
        payload = encode(frame)
        if by is not None:
            self._charge(by, len(members), len(payload))
        waits = self._waits(group, members, payload)
        others: list[UUID] = []
        if not waits:
            others = self._hub.write_all(members, kind, text_frame(payload), skip, droppable)
            self._hub.metrics.written("group", began)
            if not others:
                return  # all are here, as they are for most frames: nothing more is built for those
        group_frame = _GroupFrame(
            kind, began, access, frame.get("seq", PRESENT), members, payload, skip, but, droppable
        )
        if waits:
            self._queue(group, group_frame)
        else:
            self._publish(group, group_frame, others)

    def _waits(self, group: UUID, members: Collection[UUID], payload: bytes) -> bool:
        people = len(members)
        return people > SLICE or people * len(payload) > TURN or group in self._queues

    def _put(self, group: UUID, group_frame: _GroupFrame) -> None:
        assert group_frame.members is not None
        if self._waits(group, group_frame.members, group_frame.payload):
            self._queue(group, group_frame)
            return
        others, unseeing = self._write(group_frame.members, group_frame, text_frame(group_frame.payload))
        self._hub.metrics.written("group", group_frame.began)
        self._publish(group, group_frame, others, unseeing)

    def _write(
        self, members: Collection[UUID], group_frame: _GroupFrame, frame: bytes
    ) -> tuple[list[UUID], list[UUID]]:
        """Write a frame to some members, or its hidden form. The members who aren't only here: of those who get the one
        and of those who get the other."""
        if not group_frame.scope:
            return self._hub.write_all(members, group_frame.kind, frame, group_frame.skip, group_frame.droppable), []
        hiding = {member for member in members if member in group_frame.unseeing}
        seeing = [member for member in members if member not in hiding]
        hidden = text_frame(group_frame.hidden)
        return (
            self._hub.write_all(seeing, group_frame.kind, frame, group_frame.skip, group_frame.droppable),
            self._hub.write_all(hiding, "hidden", hidden, group_frame.skip, group_frame.droppable),
        )

    async def announce(self, group: UUID, access: int, frames: Iterable[Frame], *, by: UUID | None = None) -> None:
        """Send frames to those who are members since ``access`` and were there at the frame's ``seq``, and charge the
        user ``by``. A frame with an attribute ``scope`` reaches some of them as ``hidden``. What can't be sent, since
        PostgreSQL is away, clients find by ``/sync``."""
        began = time.monotonic()
        for frame in frames:
            scope, seq = getattr(frame, "scope", ""), frame.get("seq", PRESENT)
            try:
                members = await self._members(group, access, seq)
                unseeing = await self._hidden_from(group, access, scope) if scope else ()
            except Exception as error:
                log.warning("group_frame_lost", cause=type(error).__name__)
                return
            if unseeing:
                group_frame = _GroupFrame(frame["type"], began, access, seq, members, encode(frame), "", None, False)
                if by is not None:
                    self._charge(by, len(members), len(group_frame.payload))
                self._put(group, group_frame._replace(scope=scope, unseeing=unseeing, hidden=_hidden(frame)))
            else:
                self.tell(group, access, members, frame, by=by, began=began)

    def _publish(
        self, group: UUID, group_frame: _GroupFrame, others: list[UUID], unseeing: Sequence[UUID] = ()
    ) -> None:
        if len(others) + len(unseeing) <= FEW:
            for user_id in others:
                self._hub.publish(user_id, group_frame.payload, group_frame.skip, group_frame.droppable)
            for user_id in unseeing:
                self._hub.publish(user_id, group_frame.hidden, group_frame.skip, group_frame.droppable)
        else:
            kind = "drop" if group_frame.droppable else "send"
            if group_frame.scope:
                kind += f":{group_frame.scope}"
            but = "" if group_frame.but is None else group_frame.but
            head = f"{self._origin} {kind} {group} {group_frame.access} {group_frame.seq} {group_frame.skip} {but}\n"
            self._bus.publish(CHANNEL, head.encode() + group_frame.payload)

    def _queue(self, group: UUID, group_frame: _GroupFrame) -> None:
        queue = self._queues.get(group)
        if queue is None:
            queue = self._queues[group] = deque()
            task = asyncio.get_running_loop().create_task(self._work(group, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        queue.append(group_frame)

    async def _work(self, group: UUID, queue: deque[_GroupFrame]) -> None:
        try:
            while queue:
                first = queue[0]
                together = [queue.popleft()]
                # Frames to the same people; those from elsewhere are looked up by their access.
                while queue and len(together) < TOGETHER and _alike(first, queue[0]):
                    together.append(queue.popleft())
                try:
                    await self._send(group, together)
                except Exception as error:  # PostgreSQL is away; clients see the gap, and sync
                    log.warning("group_frame_lost", cause=type(error).__name__)
        finally:
            del self._queues[group]

    async def _send(self, group: UUID, together: Sequence[_GroupFrame]) -> None:
        first = together[0]
        here = first.members
        everyone = list(await self._members(group, first.access, first.seq) if here is None else here)
        if here is None and first.but is not None:
            everyone = [member for member in everyone if member != first.but]
        if here is None and first.scope:
            first = first._replace(unseeing=await self._hidden_from(group, first.access, first.scope))
            together = [first]  # a frame with a scope goes by itself
        frames = [text_frame(group_frame.payload) for group_frame in together]
        others: list[UUID] = []
        unseeing: list[UUID] = []
        step = max(1, min(SLICE, TURN // sum(map(len, frames))))
        for start in range(0, len(everyone), step):
            part = everyone[start : start + step]
            async with self._turn:
                for group_frame, frame in zip(together, frames, strict=True):
                    elsewhere, hidden = self._write(part, group_frame, frame)
                others += elsewhere  # the same of every frame
                unseeing += hidden
                await asyncio.sleep(0)
        self._hub.metrics.written("large_group", first.began)
        if here is not None:
            for group_frame in together:
                self._publish(group, group_frame, others, unseeing)

    def _hear(self, _: str, message: bytes) -> None:
        head, _newline, payload = message.partition(b"\n")
        origin, kind, group, access, seq, skip, but = head.decode().split(" ")
        if origin == self._origin:
            return
        group_id = UUID(group)
        if self.behind(group_id):
            log.warning("group_frame_lost", cause="too many wait")
            return
        left_out, began = UUID(but) if but else None, time.monotonic()
        kind, _colon, scope = kind.partition(":")
        group_frame = _GroupFrame(
            type_of(payload), began, int(access), int(seq), None, payload, skip, left_out, kind == "drop"
        )
        if scope:
            group_frame = group_frame._replace(scope=scope, hidden=_hidden(orjson.loads(payload)))
        self._queue(group_id, group_frame)
