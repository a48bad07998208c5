"""Delivery: sends one frame to a group of users on all instances, encoded once, in order."""

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

GROUP_CHANNEL = "ws:groups"  # every instance subscribes to it
# Users with sockets elsewhere to whom a frame is published one by one; for more it is published once on GROUP_CHANNEL.
MAX_DIRECT = 16
SLICE = 256  # users written to in one turn of the loop: some 2 ms
BATCH = 16  # queued frames that a socket of a large group receives at once, in one system call
TURN = 4 << 20  # bytes written in one turn of the loop: some 4 ms
MAX_WAITING = 64  # queued frames of one large group; beyond this no more should be sent to it

Members = Callable[[UUID, int, int], Awaitable[Collection[UUID]]]
HiddenFrom = Callable[[UUID, int, str], Awaitable[Container[UUID]]]
Charge = Callable[[UUID, int, int], None]  # sender, number of recipients, bytes for each
ANY_SEQ = 2**63 - 1  # the seq of frames for all present members


class _GroupFrame(NamedTuple):
    """A frame for a group. ``members`` is None if it came from another instance: then they are looked up, and only
    sockets here receive it. ``began`` (monotonic) is the time of the event, or when it was received. With a ``scope``
    the members in ``unseeing``, also looked up, receive the payload ``hidden`` instead."""

    kind: str
    began: float
    access: int
    seq: int
    members: Collection[UUID] | None
    payload: bytes
    skip: str
    without: UUID | None
    droppable: bool
    scope: str = ""
    unseeing: Container[UUID] = ()
    hidden: bytes = b""


def _share_recipients(one: _GroupFrame, other: _GroupFrame) -> bool:
    """True if two frames go to the same users in one form. If someone joined in between, their access differs."""
    if one.scope or other.scope:
        return False
    return one.members is other.members and (one.access, one.without) == (other.access, other.without)


def _hidden(frame: Frame) -> bytes:
    """Encode the form of an event for members who may not see it: only its place in the chat."""
    return encode({"type": "hidden", **{name: frame[name] for name in ("chat_id", "seq", "created_at")}})


def _charge_nothing(_sender: UUID, _people: int, _size: int) -> None:
    """Charge nothing."""


async def _hidden_from_none(_group: UUID, _access: int, _scope: str) -> Container[UUID]:
    return ()


class Delivery:
    """Sends frames to groups of users. ``members`` returns the members of a group since an ``access`` version of it who
    were in it at a ``seq``; ``hidden_from`` returns those who may not see frames with a ``scope``. In this module a
    scope is any word without spaces.

    Small groups are written to at once. A large group, or a frame that is large for its group, gets a queue and a task,
    which writes to one slice of the members at a time. In each turn of the loop one slice of one group is written, and
    groups take turns, so that others are served in between. Frames of one group never overtake each other here.

    On ``ws:groups`` a message is ``{origin} {kind} {group} {access} {seq} {peer to skip} {user to leave
    out}\\n{frame}``. ``kind`` is ``send`` or ``drop``, with a scope ``send:{scope}``.
    """

    def __init__(
        self,
        hub: Hub,
        bus: Bus,
        members: Members,
        hidden_from: HiddenFrom = _hidden_from_none,
        charge: Charge = _charge_nothing,
    ) -> None:
        self._hub, self._bus, self._members, self._hidden_from = hub, bus, members, hidden_from
        self._charge = charge
        self._origin = hub.instance_id.hex
        self._queues: dict[UUID, deque[_GroupFrame]] = {}
        self._turn = asyncio.Lock()  # first come, first served
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Receive frames from other instances until the block ends; queued frames are sent before."""
        await self._bus.subscribe(GROUP_CHANNEL, self._receive)
        try:
            yield
        finally:
            self._bus.unsubscribe(GROUP_CHANNEL)
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def waiting(self) -> int:
        """Return the number of frames that are queued for large groups."""
        return sum(map(len, self._queues.values()))

    def is_behind(self, group: UUID) -> bool:
        """True if so many frames are queued for this group that no more should be sent now."""
        return len(self._queues.get(group, ())) >= MAX_WAITING

    def send(
        self,
        group: UUID,
        access: int,
        members: Collection[UUID],
        frame: Frame,
        *,
        by: UUID | None = None,
        skip: str = "",
        without: UUID | None = None,
        droppable: bool = False,
        began: float | None = None,
    ) -> None:
        """Send a frame to every socket of the members, on all instances, except the socket with the peer_id ``skip``
        and those of the user ``without``. ``began`` (monotonic) is the time of the event, by default now. The user
        ``by`` is charged; None if the server is the sender, or does not know it."""
        if without is not None:
            members = [member for member in members if member != without]
        kind, began = frame["type"], time.monotonic() if began is None else began
        payload = encode(frame)
        if by is not None:
            self._charge(by, len(members), len(payload))
        waits = self._must_queue(group, members, payload)
        others: list[UUID] = []
        if not waits:
            others = self._hub.write_all(members, kind, text_frame(payload), skip, droppable)
            self._hub.metrics.sample_delivery("group", began)
            if not others:
                return  # all members are only here, as for most frames: nothing to publish
        group_frame = _GroupFrame(
            kind, began, access, frame.get("seq", ANY_SEQ), members, payload, skip, without, droppable
        )
        if waits:
            self._queue(group, group_frame)
        else:
            self._publish(group, group_frame, others)

    def _must_queue(self, group: UUID, members: Collection[UUID], payload: bytes) -> bool:
        people = len(members)
        return people > SLICE or people * len(payload) > TURN or group in self._queues

    def _put(self, group: UUID, group_frame: _GroupFrame) -> None:
        assert group_frame.members is not None
        if self._must_queue(group, group_frame.members, group_frame.payload):
            self._queue(group, group_frame)
            return
        others, unseeing = self._write(group_frame.members, group_frame, text_frame(group_frame.payload))
        self._hub.metrics.sample_delivery("group", group_frame.began)
        self._publish(group, group_frame, others, unseeing)

    def _write(
        self, members: Collection[UUID], group_frame: _GroupFrame, frame: bytes
    ) -> tuple[list[UUID], list[UUID]]:
        """Write a frame, or its hidden form, to some members. Returns the members with sockets elsewhere: those who
        receive the frame, and those who receive the hidden form."""
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
        """Look up the members since ``access`` at each frame's ``seq``, and send them the frames. The user ``by`` is
        charged. Members who may not see a frame with an attribute ``scope`` receive it as ``hidden``. Frames that are
        lost because PostgreSQL is down reach clients through ``/sync``."""
        began = time.monotonic()
        for frame in frames:
            scope, seq = getattr(frame, "scope", ""), frame.get("seq", ANY_SEQ)
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
                self.send(group, access, members, frame, by=by, began=began)

    def _publish(
        self, group: UUID, group_frame: _GroupFrame, others: list[UUID], unseeing: Sequence[UUID] = ()
    ) -> None:
        if len(others) + len(unseeing) <= MAX_DIRECT:
            for user_id in others:
                self._hub.publish(user_id, group_frame.payload, group_frame.skip, group_frame.droppable)
            for user_id in unseeing:
                self._hub.publish(user_id, group_frame.hidden, group_frame.skip, group_frame.droppable)
        else:
            kind = "drop" if group_frame.droppable else "send"
            if group_frame.scope:
                kind += f":{group_frame.scope}"
            without = "" if group_frame.without is None else group_frame.without
            head = (
                f"{self._origin} {kind} {group} {group_frame.access} {group_frame.seq} {group_frame.skip} {without}\n"
            )
            self._bus.publish(GROUP_CHANNEL, head.encode() + group_frame.payload)

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
                batch = [queue.popleft()]
                # Frames to the same users; members of frames from other instances are looked up by their access.
                while queue and len(batch) < BATCH and _share_recipients(first, queue[0]):
                    batch.append(queue.popleft())
                try:
                    await self._send_batch(group, batch)
                except Exception as error:  # PostgreSQL is down; clients see the gap, and sync
                    log.warning("group_frame_lost", cause=type(error).__name__)
        finally:
            del self._queues[group]

    async def _send_batch(self, group: UUID, batch: Sequence[_GroupFrame]) -> None:
        first = batch[0]
        here = first.members
        everyone = list(await self._members(group, first.access, first.seq) if here is None else here)
        if here is None and first.without is not None:
            everyone = [member for member in everyone if member != first.without]
        if here is None and first.scope:
            first = first._replace(unseeing=await self._hidden_from(group, first.access, first.scope))
            batch = [first]  # a frame with a scope is sent alone
        frames = [text_frame(group_frame.payload) for group_frame in batch]
        others: list[UUID] = []
        unseeing: list[UUID] = []
        step = max(1, min(SLICE, TURN // sum(map(len, frames))))
        for start in range(0, len(everyone), step):
            part = everyone[start : start + step]
            async with self._turn:
                for group_frame, frame in zip(batch, frames, strict=True):
                    elsewhere, hidden = self._write(part, group_frame, frame)
                others += elsewhere  # the same for every frame
                unseeing += hidden
                await asyncio.sleep(0)
        self._hub.metrics.sample_delivery("large_group", first.began)
        if here is not None:
            for group_frame in batch:
                self._publish(group, group_frame, others, unseeing)

    def _receive(self, _: str, message: bytes) -> None:
        head, _newline, payload = message.partition(b"\n")
        origin, kind, group, access, seq, skip, without = head.decode().split(" ")
        if origin == self._origin:
            return
        group_id = UUID(group)
        if self.is_behind(group_id):
            log.warning("group_frame_lost", cause="too many wait")
            return
        left_out, began = UUID(without) if without else None, time.monotonic()
        kind, _colon, scope = kind.partition(":")
        group_frame = _GroupFrame(
            type_of(payload), began, int(access), int(seq), None, payload, skip, left_out, kind == "drop"
        )
        if scope:
            group_frame = group_frame._replace(scope=scope, hidden=_hidden(orjson.loads(payload)))
        self._queue(group_id, group_frame)
