"""S3: objects in a bucket. Clients put and get them by signed addresses; resumable uploads pass through this server.

A file is the object ``abcd…`` by its key. A resumable upload is stored in parts of one size (multipart.py); what has
come of the next part, when a request ends, waits in ``tails/abcd…/N``; N is how far the upload has come. Not under the
file's own name: to servers that keep objects in folders, an object and what lies under it are a clash.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

import structlog

from config.storage import StorageSettings
from models.storage import Hashes, Link, PendingUpload, Progress, StorageAway, proven
from models.storage.local import private, troubles
from models.storage.multipart import Multipart
from models.storage.objects import Objects
from models.storage.requests import Part, Requests
from models.storage.sigv4 import Signer

log = structlog.get_logger(__name__)
T = TypeVar("T")

PUT_SECONDS = 3600  # the largest file at 5 Mbit/s
GET_SECONDS = 300  # to begin with: S3 looks at the time when a request comes, not while it is answered
# S3 takes parts of 5 MiB and more, 10,000 of them; a larger part costs more when a connection breaks.
PART_SIZE, MAX_PARTS = 8 << 20, 10_000
READ_SIZE = 8 << 20  # of an object that is hashed: what one costs in memory
ONE_PUT = 64 << 20  # a file up to this size is copied in with one request
FRESH = 1.0  # seconds; what begins asks whether the storage is there, for what is retried takes long to fail

_OPAQUE = {"response-content-type": "application/octet-stream", "response-content-disposition": "attachment"}


class S3Storage:
    def __init__(self, settings: StorageSettings, folder: Path) -> None:
        assert settings.s3_endpoint and settings.s3_access_key and settings.s3_secret_key
        self._create = settings.s3_create_bucket
        self._spools = folder
        self.hashes = Hashes()
        self._well = 0.0
        access, secret = settings.s3_access_key, settings.s3_secret_key.get_secret_value()

        def signer(endpoint: str) -> Signer:
            style = settings.s3_path_style
            return Signer(endpoint, settings.s3_bucket, settings.s3_region, access, secret, style)

        self._public = signer(settings.s3_public_endpoint or settings.s3_endpoint)
        self._requests = Requests(signer(settings.s3_endpoint))
        self.multipart, self.objects = Multipart(self._requests), Objects(self._requests)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await asyncio.to_thread(lambda: self._spools.mkdir(mode=0o700, parents=True, exist_ok=True))
        try:
            await self.check()
        except StorageAway as error:
            # Everything but files works without it; it is asked again before each upload.
            log.warning("storage_away", cause=str(error))
        try:
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        """Wait for the requests under way, and end the threads that send them."""
        await self._requests.close()

    async def check(self) -> None:
        if time.monotonic() - self._well > FRESH:
            await self.multipart.bucket(create=self._create)
            self._well = time.monotonic()

    async def room(self) -> int | None:
        return None  # a bucket has no end that could be asked for

    def put_link(self, place: PendingUpload) -> Link | None:
        # All of these are signed: another length or type is refused, and so is a second try once the object is there,
        # which nobody may change after it was checked.
        headers = {"Content-Type": "application/octet-stream", "If-None-Match": "*"}
        signed = {**headers, "Content-Length": str(place.size)}
        url = self._public.sign("PUT", proven(place.key), PUT_SECONDS, headers=signed)
        return Link("PUT", url, headers, PUT_SECONDS)

    def part_size(self, size: int) -> int:
        return max(PART_SIZE, -(-size // MAX_PARTS))

    def content(self, key: str, method: str) -> Link:
        return Link(method, self._public.sign(method, proven(key), GET_SECONDS, query=_OPAQUE), {}, GET_SECONDS)

    async def begin(self, place: PendingUpload) -> str | None:
        await self.check()
        return await self.multipart.begin(proven(place.key)) if place.size > place.part_size else None

    async def abort(self, place: PendingUpload, upload_id: str) -> None:
        await self.multipart.abort(proven(place.key), upload_id)

    async def writer(self, place: PendingUpload) -> S3Writer:
        await self.check()
        spool = await self.run(lambda: tempfile.TemporaryFile(dir=self._spools))  # noqa: SIM115  # the writer closes it
        writer = S3Writer(self, place, spool)
        try:
            await writer.fetch_tail()
        except BaseException:
            await writer.close(noted=False)
            raise
        return writer

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work on the local disk, to its end even when nobody waits for it any more."""

        def translated() -> T:
            with troubles():
                return work()

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, translated))

    async def settle(self, place: PendingUpload) -> int | None:
        key = proven(place.key)
        if place.resumable and place.received < place.size:
            return None
        await self.check()
        if place.etags and place.upload_id is not None:
            await self.multipart.complete(key, place.upload_id, place.etags)
        if place.resumable:
            await self.remove_tails(key)
        return await self.size(key)

    async def size(self, key: str) -> int | None:
        return await self.objects.size(proven(key))

    async def digest(self, key: str) -> bytes:
        found = hashlib.sha256()
        async for block in self._blocks(key, await self._known(key)):
            await asyncio.to_thread(found.update, block)
        return found.digest()

    async def _known(self, key: str) -> int:
        """The size of a file. Raises FileNotFoundError."""
        size = await self.size(key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def _blocks(self, key: str, size: int) -> AsyncIterator[bytes]:
        for start in range(0, size, READ_SIZE):
            yield await self.objects.read(proven(key), start, min(start + READ_SIZE, size))

    async def remove(self, key: str, upload_id: str | None) -> None:
        await self.check()
        if upload_id is not None:
            await self.multipart.abort(proven(key), upload_id)
        await self.remove_tails(key)
        await self.objects.remove(proven(key))

    async def copy_out(self, key: str, target: Path) -> bytes:
        found, size = hashlib.sha256(), await self._known(key)
        file = await self.run(lambda: open(target, "xb", opener=private))  # noqa: SIM115  # closed below
        try:
            async for block in self._blocks(key, size):
                await self.run(functools.partial(file.write, block))
                await asyncio.to_thread(found.update, block)
            await self.run(file.flush)
            await self.run(lambda: os.fsync(file.fileno()))
        finally:
            file.close()
        return found.digest()

    async def copy_in(self, key: str, source: Path) -> None:
        await self.check()
        name = proven(key)
        with source.open("rb") as file:
            size = await asyncio.to_thread(lambda: os.fstat(file.fileno()).st_size)
            if size <= ONE_PUT:
                await self.objects.put(name, Part(file, size))
                return
            upload_id, step = await self.multipart.begin(name), self.part_size(size)
            try:
                parts = [Part(file, min(step, size - start), start) for start in range(0, size, step)]
                tags = [
                    await self.multipart.part(name, upload_id, number, part) for number, part in enumerate(parts, 1)
                ]
                await self.multipart.complete(name, upload_id, tags)
            except BaseException:
                with contextlib.suppress(StorageAway):
                    await self.multipart.abort(name, upload_id)
                raise

    async def remove_tails(self, key: str, kept: str | None = None) -> None:
        # All are known before the first goes: a list that is read on while it shrinks would leave some out.
        for name in [name async for name in self.objects.listed(f"tails/{proven(key)}/")]:
            if name != kept:
                await self.objects.remove(name)


class S3Writer:
    """Collects a part in a file without a name, and puts it when it is full."""

    def __init__(self, storage: S3Storage, place: PendingUpload, spool: IO[bytes]) -> None:
        self._storage, self._place, self._spool = storage, place, spool
        self._hash = storage.hashes.take(place.key, place.received)
        self._etags = place.etags
        self._parted = min(len(place.etags) * place.part_size, place.received)
        self._spooled = 0

    @property
    def offset(self) -> int:
        return self._parted + self._spooled

    @property
    def digest(self) -> bytes | None:
        return None if self._hash is None else self._hash.digest()

    def _tail(self, offset: int) -> str:
        return f"tails/{proven(self._place.key)}/{offset}"

    async def fetch_tail(self) -> None:
        """Get back what has come of the next part."""
        length = self._place.received - self._parted
        if length:
            try:
                tail = await self._storage.objects.read(self._tail(self._place.received), 0, length)
            except FileNotFoundError as error:
                raise StorageAway("part of an upload is lost") from error
            await self._storage.run(lambda: self._keep(tail))
            self._spooled = length

    def _keep(self, data: bytes | memoryview) -> None:
        self._spool.seek(self._spooled)
        self._spool.write(data)

    async def write(self, blocks: Sequence[bytes]) -> Progress | None:
        rest = memoryview(b"".join(blocks))
        progress = None
        while rest:
            piece = rest[: self._place.part_size - self._spooled]

            def keep(piece: memoryview = piece) -> None:
                self._keep(piece)
                if self._hash is not None:
                    self._hash.update(piece)

            await self._storage.run(keep)
            self._spooled += len(piece)
            rest = rest[len(piece) :]
            if self._spooled == self._place.part_size and self.offset < self._place.size:
                await self._put_part()
                progress = Progress(self._parted, self._etags)
        return progress

    async def _put_part(self) -> None:
        place = self._place
        assert place.upload_id is not None
        await self._storage.run(self._spool.flush)
        part = Part(self._spool, self._spooled)  # type: ignore[arg-type]  # BinaryIO is IO[bytes] by another name
        etag = await self._storage.multipart.part(place.key, place.upload_id, len(self._etags) + 1, part)
        self._etags = (*self._etags, etag)
        self._parted += self._spooled
        self._spooled = 0

    async def pause(self) -> Progress:
        whole = self.offset == self._place.size
        if self._spooled and whole and self._etags:
            await self._put_part()
        elif self._spooled:
            await self._put_object(proven(self._place.key) if whole else self._tail(self.offset))
        return Progress(self.offset, self._etags)

    async def _put_object(self, name: str) -> None:
        def read() -> bytes:
            self._spool.seek(0)
            return self._spool.read(self._spooled)

        data = await self._storage.run(read)
        await self._storage.objects.put(name, data)

    async def close(self, *, noted: bool) -> None:
        if noted and self._hash is not None:
            self._storage.hashes.keep(self._place.key, self.offset, self._hash)
        self._hash = None
        await self._storage.run(self._spool.close)
        if noted:
            with contextlib.suppress(StorageAway):  # the file's removal finds them, too
                await self._storage.remove_tails(self._place.key, self._tail(self.offset))
