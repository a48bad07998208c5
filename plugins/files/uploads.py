"""Uploads: bytes on their way in, one writer a file at a time, and the check that they are what was announced."""

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
    refusing,
)
from plugins.files.shapes import Signed

READ_AT_ONCE = 2  # files read again to be hashed, at a time: each takes a core


class Uploads:
    def __init__(self, db: Database, storage: Storage, links: Links) -> None:
        self._db, self._storage, self._links = db, storage, links
        self._writing: dict[UUID, Incoming] = {}
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._reading = asyncio.Semaphore(READ_AT_ONCE)

    def _lock(self, file_id: UUID) -> asyncio.Lock:
        """Held while somebody decides what becomes of an upload."""
        return self._locks.setdefault(file_id, asyncio.Lock())

    async def put(self, file_id: UUID, signed: Signed, length: int | None) -> Incoming:
        """Take a whole file from whoever has its signed address. ``length`` is the request's, if it says. Raises
        NotFound, Forbidden, AlreadyUploaded, InvalidRequest."""
        async with self._lock(file_id):
            await self._end(file_id)
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
        """Go on with a resumable upload; None when all of it has come. Raises NotFound, OffsetMismatch."""
        async with self._lock(file_id):
            await self._end(file_id)
            row = await files.owned(self._db, file_id, owner, resumable=True)
            if row is None:
                raise NotFound("There is no such upload.")
            if row["received"] != offset:
                raise OffsetMismatch
            return None if row["received"] == row["size"] else await self._open(row, checksum)

    async def begin(self, owner: UUID, file_id: UUID, checksum: Checksum | None) -> Incoming | None:
        """Begin a resumable upload with the request that announced it. If that breaks, its client never learns what
        the upload is called, and it goes."""
        try:
            incoming = await self.patch(owner, file_id, 0, checksum)
        except BaseException:
            await self.delete(owner, file_id)
            raise
        if incoming is not None:
            incoming.lost = partial(self.delete, owner, file_id)
        return incoming

    async def _open(self, row: Row, checksum: Checksum | None) -> Incoming:
        place = files.pending_upload(row)
        with refusing():
            if place.resumable and place.upload_id is None:
                name = await self._storage.begin(place)
                if name is not None and not await files.begin(self._db, row["id"], name):
                    await self._storage.abort(place, name)
                    raise UploadLocked
                place = place._replace(upload_id=name)
            writer = await self._storage.writer(place)
        incoming = Incoming(self._db, row, writer, checksum, self._ended)
        self._writing[row["id"]] = incoming
        return incoming

    def _ended(self, incoming: Incoming) -> None:
        if self._writing.get(incoming.file_id) is incoming:
            del self._writing[incoming.file_id]

    async def _end(self, file_id: UUID) -> None:
        """End the request that is writing: its client came back by another way, or wants something else."""
        writing = self._writing.get(file_id)
        if writing is not None:
            await writing.abandon()

    async def stand(self, owner: UUID, file_id: UUID) -> Row:
        """A resumable upload as it stands, after whatever was writing has ended. Raises NotFound."""
        async with self._lock(file_id):
            await self._end(file_id)
            row = await files.owned(self._db, file_id, owner, resumable=True)
        if row is None:
            raise NotFound("There is no such upload.")
        if row["state"] == "uploading" and row["received"] == row["size"]:
            return await self.complete(owner, file_id)  # whoever sent the last bytes heard no answer
        return await self._lasting(row)

    async def complete(self, owner: UUID, file_id: UUID) -> Row:
        """Check a file that was uploaded, and let it be read; again is the same. Raises NotFound, NotUploaded,
        ContentMismatch."""
        async with self._lock(file_id):
            row = await files.owned(self._db, file_id, owner)
            if row is None:
                raise NotFound("There is no such file.")
            return await (self._lasting(row) if row["state"] == "complete" else self._complete(row))

    async def _lasting(self, row: Row) -> Row:
        """The same row, once the standby has it if the file is complete: the request that completed it may have been
        given up while it waited for that. Raises Unavailable."""
        if row["state"] == "complete":
            await self._db.replicated()
        return row

    async def _complete(self, row: Row) -> Row:
        with refusing():
            size = await self._storage.settle(files.pending_upload(row))
            if size is None:
                raise NotUploaded
            digest = row["received_sha256"]
            if digest is None and size == row["size"]:
                async with self._reading:
                    digest = await self._storage.digest(row["storage_key"])
        if size != row["size"] or row["sha256"] not in (None, digest):
            await self.delete(row["owner_id"], row["id"])
            raise ContentMismatch
        done = await files.complete(self._db, row["id"], digest)
        if done is None:
            # Another instance was asked, too; or it was deleted meanwhile.
            done = await files.owned(self._db, row["id"], row["owner_id"])
            if done is None or done["state"] != "complete":
                raise NotFound("There is no such file.")
            return await self._lasting(done)
        return done

    async def stop(self, owner: UUID, file_id: UUID) -> None:
        """Take a resumable upload back, with all that has come of it. Raises NotFound."""
        await self.stand(owner, file_id)
        await self.remove(owner, file_id)

    async def remove(self, owner: UUID, file_id: UUID) -> bool:
        """Delete a file, also one that is being uploaded; whether there was one."""
        async with self._lock(file_id):
            await self._end(file_id)
            return await self.delete(owner, file_id)

    async def delete(self, owner: UUID, file_id: UUID) -> bool:
        removal = await files.delete(self._db, file_id, owner)
        if removal is None:
            return False
        try:
            await self._storage.remove(removal.storage_key, removal.upload_id)
        except StorageAway:
            return True  # the row of the removal stays, and it is tried again
        await files.removed_at_once(self._db, removal.storage_key)
        return True
