"""Delivery: one frame to all who belong together, on all instances, built once and in the order it was told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

import structlog

from handlers.bus import Bus
from handlers.hub import Frame, Hub, text_frame
from handlers.shapes import encode

log = structlog.get_logger(__name__)

CHANNEL = "ws:groups"  # heard by every instance
FEW = 16  # users who aren't only here to whom a frame is published one by one; for more it is published once, to all
SLICE = 256  # sockets written to in one turn of the loop: some 2 ms
TOGETHER = (
    16  # frames that a socket of a large group gets at once, when so many wait: they go to the kernel in one call
)
BEHIND = 64  # frames that may wait for one large group; then nothing more is taken for it

Members = Callable[[UUID, int], Awaitable[Collection[UUID]]]


class _Told(NamedTuple):
    """A frame on its way to a group. ``members`` is None when it came from another instance: then they are looked up,
    and only sockets here are written to."""

    access: int
    members: Collection[UUID] | None
    payload: bytes
    skip: str
    droppable: bool


def _alike(one: _Told, other: _Told) -> bool:
    return one.members is other.members and one.access == other.access


class Delivery:
    """Sends frames to groups of users. ``members`` gives those of a group, as they are since some ``access`` of it.

    Small groups are written to at once. A large one gets a queue and a task, which writes to a slice of it at a time,
    so that others are served in between; frames of one group never overtake each other here.

    On ``ws:groups`` a message is ``{origin} {kind} {group} {access} {peer to skip}\\n{frame}``.
    """

    def __init__(self, hub: Hub, bus: Bus, members: Members) -> None:
        self._hub, self._bus, self._members = hub, bus, members
        self._origin = hub.instance_id.hex
        self._queues: dict[UUID, deque[_Told]] = {}
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

    def behind(self, group: UUID) -> bool:
        """Whether so much waits for this group that nothing more should be told for now."""
        return len(self._queues.get(group, ())) >= BEHIND

    def tell(
        self,
        group: UUID,
        access: int,
        members: Collection[UUID],
        frame: Frame,
        *,
        skip: str = "",
        droppable: bool = False,
    ) -> None:
        """Send a frame to every socket of the members, on all instances, but the one called ``skip``."""
        told = _Told(access, members, encode(frame), skip, droppable)
        if len(members) > SLICE or group in self._queues:
            self._queue(group, told)
        else:
            self._publish(group, told, self._hub.write_all(members, text_frame(told.payload), skip, droppable))

    async def announce(self, group: UUID, access: int, frames: Iterable[Frame], *, also: UUID | None = None) -> None:
        """Tell frames to those who are members since ``access``, and to one who is no more. What can't be told, since
        PostgreSQL is away, clients find by ``/sync``."""
        frames = list(frames)
        if not frames:
            return
        try:
            members = await self._members(group, access)
        except Exception as error:
            log.warning("group_frame_lost", cause=type(error).__name__)
            return
        for frame in frames:
            self.tell(group, access, members, frame)
            if also is not None and also not in members:
                self._hub.send(also, frame)

    def _publish(self, group: UUID, told: _Told, others: list[UUID]) -> None:
        if len(others) <= FEW:
            for user_id in others:
                self._hub.publish(user_id, told.payload, told.skip, told.droppable)
        else:
            kind = "drop" if told.droppable else "send"
            head = f"{self._origin} {kind} {group} {told.access} {told.skip}\n"
            self._bus.publish(CHANNEL, head.encode() + told.payload)

    def _queue(self, group: UUID, told: _Told) -> None:
        queue = self._queues.get(group)
        if queue is None:
            queue = self._queues[group] = deque()
            task = asyncio.get_running_loop().create_task(self._work(group, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        queue.append(told)

    async def _work(self, group: UUID, queue: deque[_Told]) -> None:
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

    async def _send(self, group: UUID, together: Sequence[_Told]) -> None:
        here = together[0].members
        everyone = list(await self._members(group, together[0].access) if here is None else here)
        frames = [text_frame(told.payload) for told in together]
        others: list[UUID] = []
        for start in range(0, len(everyone), SLICE):
            part = everyone[start : start + SLICE]
            for told, frame in zip(together, frames, strict=True):
                elsewhere = self._hub.write_all(part, frame, told.skip, told.droppable)
            others += elsewhere  # the same of every frame
            await asyncio.sleep(0)
        if here is not None:
            for told in together:
                self._publish(group, told, others)

    def _hear(self, _: str, message: bytes) -> None:
        head, _newline, payload = message.partition(b"\n")
        origin, kind, group, access, skip = head.decode().split(" ")
        if origin == self._origin:
            return
        group_id = UUID(group)
        if self.behind(group_id):
            log.warning("group_frame_lost", cause="too many wait")
            return
        self._queue(group_id, _Told(int(access), None, payload, skip, kind == "drop"))
