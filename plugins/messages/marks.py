"""Marks: send receipts to sockets, at most one frame in two seconds for each chat, over all instances."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator
from uuid import UUID

import orjson
import structlog

from handlers.sockets.bus import Bus
from handlers.sockets.hub import Hub, text_frame
from handlers.tasks import Worker
from handlers.wire.shapes import encode
from models.chats import receipts
from models.chats.receipts import CurrentMarks
from models.database import Database
from plugins.messages.shapes import Mark, Receipts

log = structlog.get_logger(__name__)

CHANNEL = "ws:receipts"  # subscribed to by every instance
INTERVAL = 2.0  # seconds between two frames of one chat (contract section 7)
CHATS_PER_READ = 64  # chats in one statement that reads marks
MAX_PAIRS = 8_192  # of a reader and a viewer that wait in one chat: some 900 KB of frames
MAX_ALL_PAIRS = 200_000  # that wait in all chats: some 50 MB
FRAMES_PER_TURN = 256  # frames in one turn of the event loop


class _PendingMarks:
    """For each viewer of a chat, the readers whose marks have moved since the last frame."""

    __slots__ = ("pairs", "readers")

    def __init__(self) -> None:
        self.readers: dict[UUID, set[UUID]] = {}
        self.pairs = 0

    def add(self, viewer: UUID, reader: UUID, room: int) -> bool:
        """Add a pair. Returns False if it is already there, or there is no room for it."""
        readers = self.readers.get(viewer)
        if self.pairs >= MAX_PAIRS or room <= 0 or (readers is not None and reader in readers):
            return False
        if readers is None:
            readers = self.readers[viewer] = set()
        readers.add(reader)
        self.pairs += 1
        return True


class Marks:
    """Sends ``receipts`` frames. Each instance gathers the changes for its own sockets, so that a socket receives at
    most one frame in ``INTERVAL`` seconds for each chat; the first one is sent at once.

    It gathers the readers that have moved, not their positions: marks are read when the frame is made. So a frame has
    the newest marks, and none of users who have left meanwhile or across a block. If changes are dropped, because too
    many wait or PostgreSQL or Redis is away, clients find the marks through ``/sync``.

    On ``ws:receipts`` a message is a JSON array: origin, chat, reader, viewers.
    """

    def __init__(self, db: Database, hub: Hub, bus: Bus) -> None:
        self._db, self._hub, self._bus = db, hub, bus
        self._origin = hub.instance_id.hex
        self._waiting: dict[UUID, _PendingMarks] = {}  # by chat, until INTERVAL after its last frame
        self._pairs = 0
        self._due: dict[UUID, None] = {}  # chats whose frame may be sent, in order
        self._worker = Worker("receipts", self._send_due)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send frames, and receive from other instances, until the block ends."""
        await self._bus.subscribe(CHANNEL, self._receive)
        async with self._worker.running():
            try:
                yield
            finally:
                self._bus.unsubscribe(CHANNEL)

    def announce(self, chat_id: UUID, reader: UUID, viewers: Collection[UUID]) -> None:
        """Send a reader's mark, which has moved, to the sockets of these viewers on all instances."""
        self._gather(chat_id, reader, viewers)
        elsewhere = self._hub.elsewhere(viewers)
        if elsewhere:
            self._bus.publish(CHANNEL, encode([self._origin, chat_id, reader, elsewhere]))

    def _receive(self, _: str, message: bytes) -> None:
        origin, chat_id, reader, viewers = orjson.loads(message)
        if origin != self._origin:
            self._gather(UUID(chat_id), UUID(reader), [UUID(viewer) for viewer in viewers])

    def _gather(self, chat_id: UUID, reader: UUID, viewers: Collection[UUID]) -> None:
        here = [viewer for viewer in viewers if self._hub.is_here(viewer)]
        if not here:
            return
        waiting = self._waiting.get(chat_id)
        if waiting is None:  # no frame in the last seconds
            waiting = self._waiting[chat_id] = _PendingMarks()
            self._make_due(chat_id)
        for viewer in here:
            if waiting.add(viewer, reader, MAX_ALL_PAIRS - self._pairs):
                self._pairs += 1

    def _make_due(self, chat_id: UUID) -> None:
        self._due[chat_id] = None
        self._worker.wake()

    def _may_send_again(self, chat_id: UUID) -> None:
        if self._waiting[chat_id].pairs:
            self._make_due(chat_id)
        else:
            del self._waiting[chat_id]

    async def _send_due(self) -> None:
        loop = asyncio.get_running_loop()
        while self._due:
            chats = list(itertools.islice(self._due, CHATS_PER_READ))
            taken = {chat_id: self._waiting[chat_id] for chat_id in chats}
            for chat_id, gathered in taken.items():
                del self._due[chat_id]
                self._waiting[chat_id] = _PendingMarks()
                self._pairs -= gathered.pairs
            try:
                await self._send(taken)
            except Exception as error:  # PostgreSQL is away; the next ones must still be sent
                log.warning("receipt_frames_lost", chats=len(chats), cause=type(error).__name__)
            for chat_id in chats:
                loop.call_later(INTERVAL, self._may_send_again, chat_id)

    async def _send(self, taken: dict[UUID, _PendingMarks]) -> None:
        places = {
            (chat_id, user_id)
            for chat_id, gathered in taken.items()
            for viewer, readers in gathered.readers.items()
            for user_id in (viewer, *readers)
        }
        standing = await receipts.current_marks(self._db, places)
        written = 0
        for chat_id, gathered in taken.items():
            for viewers, marks in _frames(chat_id, gathered, standing):
                frame: Receipts = {"type": "receipts", "chat_id": chat_id, "marks": marks}
                self._hub.write_all(viewers, "receipts", text_frame(encode(frame)), "", True)
                written += len(viewers)
                if written >= FRAMES_PER_TURN:
                    written = 0
                    await asyncio.sleep(0)


def _frames(chat_id: UUID, gathered: _PendingMarks, standing: CurrentMarks) -> Iterator[tuple[list[UUID], list[Mark]]]:
    """The marks of each frame, with the viewers who receive it; in a small chat one frame for all."""
    alike: dict[frozenset[UUID], list[UUID]] = defaultdict(list)
    for viewer, readers in gathered.readers.items():
        if (chat_id, viewer) in standing.marks and (chat_id, viewer) not in standing.deleted:
            seen = (reader for reader in readers if (chat_id, reader) in standing.marks)
            alike[frozenset(reader for reader in seen if (viewer, reader) not in standing.severed)].append(viewer)
    for shown, viewers in alike.items():
        if shown:
            marks: list[Mark] = []
            for reader in sorted(shown):
                delivered, read = standing.marks[chat_id, reader]
                marks.append({"user_id": reader, "delivered_seq": delivered, "read_seq": read})
            yield viewers, marks
