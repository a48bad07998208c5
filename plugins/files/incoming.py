"""Incoming: the bytes of one request, on their way into the storage."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from handlers.wire.errors import NotFound
from models import files
from models.database import Database, Row
from models.storage import Progress, StorageAway, StorageFull, Writer
from plugins.files.refusals import ChecksumMismatch, UploadLocked, refusing

if TYPE_CHECKING:
    from hashlib import _Hash

log = structlog.get_logger(__name__)

ALGORITHMS = ("sha1", "sha256", "md5")


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the bytes of one request must hash to, or none of them count (tus)."""

    algorithm: str
    digest: bytes
    found: _Hash = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", hashlib.new(self.algorithm, usedforsecurity=False))


class Incoming:
    """A Sink. There is one for a file at a time: who comes later ends it, and goes on from where it stood."""

    def __init__(
        self, db: Database, row: Row, writer: Writer, checksum: Checksum | None, closed: Callable[[Incoming], None]
    ) -> None:
        self._db, self._writer, self._checksum, self._closed = db, writer, checksum, closed
        self.file_id: UUID = row["id"]
        self.size: int = row["size"]
        # Of bytes with a checksum all count or none, and a file sent whole is not gone on with.
        self._keeps = row["resumable"] and checksum is None
        self._noted = writer.offset
        self._stood: int = row["received"]  # what the row says
        self._lock = asyncio.Lock()
        self._open = True
        self.room = self.size - writer.offset
        self.lost: Callable[[], Awaitable[object]] | None = None  # what is done when it is not finished

    @property
    def offset(self) -> int:
        return self._writer.offset

    async def write(self, blocks: list[bytes]) -> None:
        async with self._lock:
            if not self._open:
                raise UploadLocked
            if self._checksum is not None:
                await asyncio.to_thread(self._checksum.found.update, b"".join(blocks))
            with refusing():
                progress = await self._writer.write(blocks)
            if progress is not None and self._keeps:
                await self._note(progress)

    async def finish(self) -> None:
        """All has come: it is safe in the storage when this returns. Raises ChecksumMismatch."""
        async with self._lock:
            if not self._open:
                raise UploadLocked
            noted = False
            try:
                if self._checksum is not None and self._checksum.found.digest() != self._checksum.digest:
                    raise ChecksumMismatch
                with refusing():
                    progress = await self._writer.pause()
                await self._note(progress)
                noted = True
            finally:
                await self._close(noted=noted)
                if not noted and self.lost is not None:
                    await self.lost()

    async def abandon(self, blocks: Sequence[bytes] = ()) -> None:
        """After these nothing will come; what has come is kept where it can be gone on with."""
        async with self._lock:
            if not self._open:
                return
            noted = False
            try:
                if self._keeps and self.lost is None:
                    if blocks:
                        await self._writer.write(blocks)
                    await self._note(await self._writer.pause())
                    noted = True
            except (StorageAway, StorageFull, NotFound) as error:
                log.warning("upload_not_kept", cause=type(error).__name__)
            finally:
                await self._close(noted=noted)
                if self.lost is not None:
                    await self.lost()

    async def _note(self, progress: Progress) -> None:
        whole = progress.received == self.size and self._writer.offset == self.size
        digest = self._writer.digest if whole else None
        if progress.received == self._noted and digest is None:
            return
        if not await files.note(self._db, self.file_id, self._stood, progress, digest):
            raise NotFound("The upload has ended, or is continued elsewhere.")
        self._noted = self._stood = progress.received

    async def _close(self, *, noted: bool) -> None:
        self._open = False
        self._closed(self)
        await self._writer.close(noted=noted)
