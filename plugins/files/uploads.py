"""Uploads: one writer per file at a time, and the check that the bytes are those that were announced."""

from __future__ import annotations

import asyncio
from functools import partial
from uuid import UUID
from weakref import WeakValueDictionary

from handlers.wire.errors import InvalidRequest, NotFound
from models import files
from models.database import Database, Row
from models.storage import Storage, StorageAway
from plugins.files.incoming import Checksum, Incoming
from plugins.files.links import Links
from plugins.files.refusals import (
    AlreadyUploaded,
    ContentMismatch,
    NotUploaded,
    OffsetMismatch,
    UploadLocked,
    storage_errors,
)
from plugins.files.shapes import Signed

MAX_HASHING = 2  # files read again to be hashed, at a time: each takes a core


class Uploads:
    def __init__(self, db: Database, storage: Storage, links: Links) -> None:
        self._db, self._storage, self._links = db, storage, links
        self._writing: dict[UUID, Incoming] = {}
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._hashing = asyncio.Semaphore(MAX_HASHING)

    def _lock(self, file_id: UUID) -> asyncio.Lock:
        """Return the lock that is held while the state of an upload changes."""
        return self._locks.setdefault(file_id, asyncio.Lock())

    async def put(self, file_id: UUID, signed: Signed, length: int | None) -> Incoming:
        """Receive a whole file at its signed URL. ``length`` is the request's Content-Length, if any. Raises NotFound,
        Forbidden, AlreadyUploaded, InvalidRequest."""
        async with self._lock(file_id):
            await self._stop_writing(file_id)
            row = await files.unfinished(self._db, file_id)
            if row is None or row["resumable"]:
                raise NotFound("There is no such upload.")
            self._links.check_upload(file_id, row["size"], signed)
            if row["received"] == row["size"]:
                raise AlreadyUploaded
            if length is not None and length < row["size"]:
                raise InvalidRequest(f"The body must have {row['size']} bytes.")
            return await self._open(row, None)

    async def patch(self, owner: UUID, file_id: UUID, offset: int, checksum: Checksum | None) -> Incoming | None:
        """Continue a resumable upload; None if all its bytes have arrived. Raises NotFound, OffsetMismatch."""
        async with self._lock(file_id):
            await self._stop_writing(file_id)
            row = await files.owned(self._db, file_id, owner, resumable=True)
            if row is None:
                raise NotFound("There is no such upload.")
            if row["received"] != offset:
                raise OffsetMismatch
            return None if row["received"] == row["size"] else await self._open(row, checksum)

    async def begin(self, owner: UUID, file_id: UUID, checksum: Checksum | None) -> Incoming | None:
        """Begin a resumable upload with the request that announced it. If the request breaks, the upload is deleted:
        its client never received the URL."""
        try:
            incoming = await self.patch(owner, file_id, 0, checksum)
        except BaseException:
            await self.delete(owner, file_id)
            raise
        if incoming is not None:
            incoming.on_abort = partial(self.delete, owner, file_id)
        return incoming

    async def _open(self, row: Row, checksum: Checksum | None) -> Incoming:
        upload = files.pending_upload(row)
        with storage_errors():
            if upload.resumable and upload.upload_id is None:
                name = await self._storage.begin(upload)
                if name is not None and not await files.begin(self._db, row["id"], name):
                    await self._storage.abort(upload, name)
                    raise UploadLocked
                upload = upload._replace(upload_id=name)
            writer = await self._storage.writer(upload)
        incoming = Incoming(self._db, row, writer, checksum, self._forget)
        self._writing[row["id"]] = incoming
        return incoming

    def _forget(self, incoming: Incoming) -> None:
        if self._writing.get(incoming.file_id) is incoming:
            del self._writing[incoming.file_id]

    async def _stop_writing(self, file_id: UUID) -> None:
        """End the request that is writing: its client has sent another request for the file."""
        writing = self._writing.get(file_id)
        if writing is not None:
            await writing.abandon()

    async def refresh(self, owner: UUID, file_id: UUID) -> Row:
        """End a request that is writing, and return the state of the resumable upload. Raises NotFound."""
        async with self._lock(file_id):
            await self._stop_writing(file_id)
            row = await files.owned(self._db, file_id, owner, resumable=True)
        if row is None:
            raise NotFound("There is no such upload.")
        if row["state"] == "uploading" and row["received"] == row["size"]:
            return await self.complete(owner, file_id)  # the request with the last bytes got no response
        return await self._wait_replicated(row)

    async def complete(self, owner: UUID, file_id: UUID) -> Row:
        """Check an uploaded file, and make it readable. Can be repeated. Raises NotFound, NotUploaded,
        ContentMismatch."""
        async with self._lock(file_id):
            row = await files.owned(self._db, file_id, owner)
            if row is None:
                raise NotFound("There is no such file.")
            return await (self._wait_replicated(row) if row["state"] == "complete" else self._complete(row))

    async def _wait_replicated(self, row: Row) -> Row:
        """Wait until the standby has a complete file, then return its row: the request that completed the file may have
        timed out while it waited for this. Raises Unavailable."""
        if row["state"] == "complete":
            await self._db.replicated()
        return row

    async def _complete(self, row: Row) -> Row:
        with storage_errors():
            size = await self._storage.settle(files.pending_upload(row))
            if size is None:
                raise NotUploaded
            digest = row["received_sha256"]
            if digest is None and size == row["size"]:
                async with self._hashing:
                    digest = await self._storage.digest(row["storage_key"])
        if size != row["size"] or row["sha256"] not in (None, digest):
            await self.delete(row["owner_id"], row["id"])
            raise ContentMismatch
        done = await files.complete(self._db, row["id"], digest)
        if done is None:
            # Another instance completed it, or it was deleted in the meantime.
            done = await files.owned(self._db, row["id"], row["owner_id"])
            if done is None or done["state"] != "complete":
                raise NotFound("There is no such file.")
            return await self._wait_replicated(done)
        return done

    async def cancel(self, owner: UUID, file_id: UUID) -> None:
        """Cancel a resumable upload, and delete its bytes. Raises NotFound."""
        await self.refresh(owner, file_id)
        await self.remove(owner, file_id)

    async def remove(self, owner: UUID, file_id: UUID) -> bool:
        """Delete a file, also one that is being uploaded. Returns False if there is none."""
        async with self._lock(file_id):
            await self._stop_writing(file_id)
            return await self.delete(owner, file_id)

    async def delete(self, owner: UUID, file_id: UUID) -> bool:
        removal = await files.delete(self._db, file_id, owner)
        if removal is None:
            return False
        try:
            await self._storage.remove(removal.storage_key, removal.upload_id)
        except StorageAway:
            return True  # the row of the removal stays, so the sweep tries again
        await files.removed_at_once(self._db, removal.storage_key)
        return True
