"""Incoming bytes: one request's body on its way into the storage."""

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
from plugins.files.refusals import ChecksumMismatch, UploadLocked, storage_errors

if TYPE_CHECKING:
    from hashlib import _Hash

log = structlog.get_logger(__name__)

ALGORITHMS = ("sha1", "sha256", "md5")


@dataclass(frozen=True, slots=True)
class Checksum:
    """The hash that the bytes of one request must have; otherwise all of them are dropped (tus)."""

    algorithm: str
    digest: bytes
    hash: _Hash = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", hashlib.new(self.algorithm, usedforsecurity=False))


class Incoming:
    """A Sink for a file. A file has one at a time: a later request ends it, and continues at its offset."""

    def __init__(
        self, db: Database, row: Row, writer: Writer, checksum: Checksum | None, closed: Callable[[Incoming], None]
    ) -> None:
        self._db, self._writer, self._checksum, self._closed = db, writer, checksum, closed
        self.file_id: UUID = row["id"]
        self.size: int = row["size"]
        # Bytes with a checksum count only together, and a file that is sent in one request can't be continued.
        self._keeps = row["resumable"] and checksum is None
        self._noted = writer.offset
        self._stored_offset: int = row["received"]  # in the row
        self._lock = asyncio.Lock()
        self._open = True
        self.room = self.size - writer.offset
        self.on_abort: Callable[[], Awaitable[object]] | None = None  # called when the upload is not finished

    @property
    def offset(self) -> int:
        return self._writer.offset

    async def write(self, blocks: list[bytes]) -> None:
        async with self._lock:
            if not self._open:
                raise UploadLocked
            if self._checksum is not None:
                await asyncio.to_thread(self._checksum.hash.update, b"".join(blocks))
            with storage_errors():
                progress = await self._writer.write(blocks)
            if progress is not None and self._keeps:
                await self._note(progress)

    async def finish(self) -> None:
        """Finish after the last byte: when this returns, the bytes are durable. Raises ChecksumMismatch."""
        async with self._lock:
            if not self._open:
                raise UploadLocked
            noted = False
            try:
                if self._checksum is not None and self._checksum.hash.digest() != self._checksum.digest:
                    raise ChecksumMismatch
                with storage_errors():
                    progress = await self._writer.pause()
                await self._note(progress)
                noted = True
            finally:
                await self._close(noted=noted)
                if not noted and self.on_abort is not None:
                    await self.on_abort()

    async def abandon(self, blocks: Sequence[bytes] = ()) -> None:
        """Stop after these blocks. A resumable upload keeps the bytes that arrived."""
        async with self._lock:
            if not self._open:
                return
            noted = False
            try:
                if self._keeps and self.on_abort is None:
                    if blocks:
                        await self._writer.write(blocks)
                    await self._note(await self._writer.pause())
                    noted = True
            except (StorageAway, StorageFull, NotFound) as error:
                log.warning("upload_not_kept", cause=type(error).__name__)
            finally:
                await self._close(noted=noted)
                if self.on_abort is not None:
                    await self.on_abort()

    async def _note(self, progress: Progress) -> None:
        whole = progress.received == self.size and self._writer.offset == self.size
        digest = self._writer.digest if whole else None
        if progress.received == self._noted and digest is None:
            return
        if not await files.note(self._db, self.file_id, self._stored_offset, progress, digest):
            raise NotFound("The upload has ended, or another request continues it.")
        self._noted = self._stored_offset = progress.received

    async def _close(self, *, noted: bool) -> None:
        self._open = False
        self._closed(self)
        await self._writer.close(noted=noted)
