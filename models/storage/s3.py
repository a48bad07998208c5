"""S3: objects in a bucket. Clients put and get them by signed URLs; resumable uploads pass through this server.

A file is the object ``abcd…`` by its key. A resumable upload is stored in parts of one size (multipart.py). When a
request ends, the received beginning of the next part is stored in ``tails/abcd…/N``; N is the offset of the upload. It
is not below the file's name: in servers that keep objects in folders an object can't also be a folder.
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
from models.storage import Hashes, Link, PendingUpload, Progress, StorageAway, checked_key
from models.storage.local import disk_errors, private
from models.storage.multipart import Multipart
from models.storage.objects import Objects
from models.storage.requests import Part, Requests
from models.storage.sigv4 import Signer

log = structlog.get_logger(__name__)
T = TypeVar("T")

PUT_SECONDS = 3600  # the largest file at 5 Mbit/s
GET_SECONDS = 300  # to begin a download: S3 checks the time when a request arrives, not while it responds
# S3 accepts parts of 5 MiB and more, up to 10,000; a larger part costs more when a connection breaks.
PART_SIZE, MAX_PARTS = 8 << 20, 10_000
READ_SIZE = 8 << 20  # bytes read at a time to hash an object; this much memory for each
ONE_PUT = 64 << 20  # a file up to this size is copied in with one request
CHECK_LIFE = 1.0  # seconds that a check is valid; new work checks the storage first, since retries take long to fail

_OPAQUE = {"response-content-type": "application/octet-stream", "response-content-disposition": "attachment"}


class S3Storage:
    def __init__(self, settings: StorageSettings, folder: Path) -> None:
        assert settings.s3_endpoint and settings.s3_access_key and settings.s3_secret_key
        self._create = settings.s3_create_bucket
        self._spools = folder
        self.hashes = Hashes()
        self._checked_at = 0.0
        access, secret = settings.s3_access_key, settings.s3_secret_key.get_secret_value()

        def signer(endpoint: str) -> Signer:
            style = settings.s3_path_style
            return Signer(endpoint, settings.s3_bucket, settings.s3_region, access, secret, style)

        self._public = signer(settings.s3_public_endpoint or settings.s3_endpoint)
        self.requests = Requests(signer(settings.s3_endpoint))
        self.multipart, self.objects = Multipart(self.requests), Objects(self.requests)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await asyncio.to_thread(lambda: self._spools.mkdir(mode=0o700, parents=True, exist_ok=True))
        try:
            await self.check()
        except StorageAway as error:
            # Everything but files works without it; each upload checks it again.
            log.warning("storage_away", cause=str(error))
        try:
            yield
        finally:
            await self.close()

    async def close(self) -> None:
        """Wait for the requests under way, and end the threads that send them."""
        await self.requests.close()

    async def check(self) -> None:
        if time.monotonic() - self._checked_at > CHECK_LIFE:
            await self.multipart.bucket(create=self._create)
            self._checked_at = time.monotonic()

    async def free_bytes(self) -> int | None:
        return None  # S3 reports no limit of a bucket

    def put_link(self, upload: PendingUpload) -> Link | None:
        # All of these are signed. S3 rejects another length or type, and a second upload once the object exists: it
        # must not change after it was checked.
        headers = {"Content-Type": "application/octet-stream", "If-None-Match": "*"}
        signed = {**headers, "Content-Length": str(upload.size)}
        url = self._public.sign("PUT", checked_key(upload.key), PUT_SECONDS, headers=signed)
        return Link("PUT", url, headers, PUT_SECONDS)

    def part_size(self, size: int) -> int:
        return max(PART_SIZE, -(-size // MAX_PARTS))

    def content(self, key: str, method: str) -> Link:
        return Link(method, self._public.sign(method, checked_key(key), GET_SECONDS, query=_OPAQUE), {}, GET_SECONDS)

    async def begin(self, upload: PendingUpload) -> str | None:
        await self.check()
        return await self.multipart.begin(checked_key(upload.key)) if upload.size > upload.part_size else None

    async def abort(self, upload: PendingUpload, upload_id: str) -> None:
        await self.multipart.abort(checked_key(upload.key), upload_id)

    async def writer(self, upload: PendingUpload) -> S3Writer:
        await self.check()
        spool = await self.run(lambda: tempfile.TemporaryFile(dir=self._spools))  # noqa: SIM115  # the writer closes it
        writer = S3Writer(self, upload, spool)
        try:
            await writer.fetch_tail()
        except BaseException:
            await writer.close(noted=False)
            raise
        return writer

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work on the local disk. It runs to its end even if the caller is cancelled."""

        def translated() -> T:
            with disk_errors():
                return work()

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, translated))

    async def settle(self, upload: PendingUpload) -> int | None:
        key = checked_key(upload.key)
        if upload.resumable and upload.received < upload.size:
            return None
        await self.check()
        if upload.etags and upload.upload_id is not None:
            await self.multipart.complete(key, upload.upload_id, upload.etags)
        if upload.resumable:
            await self.remove_tails(key)
        return await self.size(key)

    async def size(self, key: str) -> int | None:
        return await self.objects.size(checked_key(key))

    async def digest(self, key: str) -> bytes:
        hash_ = hashlib.sha256()
        async for block in self._blocks(key, await self._known_size(key)):
            await asyncio.to_thread(hash_.update, block)
        return hash_.digest()

    async def _known_size(self, key: str) -> int:
        """The size of a file. Raises FileNotFoundError."""
        size = await self.size(key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def _blocks(self, key: str, size: int) -> AsyncIterator[bytes]:
        for start in range(0, size, READ_SIZE):
            yield await self.objects.read(checked_key(key), start, min(start + READ_SIZE, size))

    async def remove(self, key: str, upload_id: str | None) -> None:
        await self.check()
        if upload_id is not None:
            await self.multipart.abort(checked_key(key), upload_id)
        await self.remove_tails(key)
        await self.objects.remove(checked_key(key))

    async def copy_out(self, key: str, target: Path) -> bytes:
        hash_, size = hashlib.sha256(), await self._known_size(key)
        file = await self.run(lambda: open(target, "xb", opener=private))  # noqa: SIM115  # closed below
        try:
            async for block in self._blocks(key, size):
                await self.run(functools.partial(file.write, block))
                await asyncio.to_thread(hash_.update, block)
            await self.run(file.flush)
            await self.run(lambda: os.fsync(file.fileno()))
        finally:
            file.close()
        return hash_.digest()

    async def copy_in(self, key: str, source: Path) -> None:
        await self.check()
        name = checked_key(key)
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
        # List all before removing the first: a listing that shrinks while it is read would skip some.
        for name in [name async for name in self.objects.listed(f"tails/{checked_key(key)}/")]:
            if name != kept:
                await self.objects.remove(name)


class S3Writer:
    """Collects a part in an unnamed temporary file, and puts it to S3 when it is full."""

    def __init__(self, storage: S3Storage, upload: PendingUpload, spool: IO[bytes]) -> None:
        self._storage, self._upload, self._spool = storage, upload, spool
        self._hash = storage.hashes.take(upload.key, upload.received)
        self._etags = upload.etags
        self._parted = min(len(upload.etags) * upload.part_size, upload.received)
        self._spooled = 0

    @property
    def offset(self) -> int:
        return self._parted + self._spooled

    @property
    def digest(self) -> bytes | None:
        return None if self._hash is None else self._hash.digest()

    def _tail(self, offset: int) -> str:
        return f"tails/{checked_key(self._upload.key)}/{offset}"

    async def fetch_tail(self) -> None:
        """Fetch the received beginning of the next part."""
        length = self._upload.received - self._parted
        if length:
            try:
                tail = await self._storage.objects.read(self._tail(self._upload.received), 0, length)
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
            piece = rest[: self._upload.part_size - self._spooled]

            def keep(piece: memoryview = piece) -> None:
                self._keep(piece)
                if self._hash is not None:
                    self._hash.update(piece)

            await self._storage.run(keep)
            self._spooled += len(piece)
            rest = rest[len(piece) :]
            if self._spooled == self._upload.part_size and self.offset < self._upload.size:
                await self._put_part()
                progress = Progress(self._parted, self._etags)
        return progress

    async def _put_part(self) -> None:
        upload = self._upload
        assert upload.upload_id is not None
        await self._storage.run(self._spool.flush)
        part = Part(self._spool, self._spooled)  # type: ignore[arg-type]  # BinaryIO is another name of IO[bytes]
        etag = await self._storage.multipart.part(upload.key, upload.upload_id, len(self._etags) + 1, part)
        self._etags = (*self._etags, etag)
        self._parted += self._spooled
        self._spooled = 0

    async def pause(self) -> Progress:
        whole = self.offset == self._upload.size
        if self._spooled and whole and self._etags:
            await self._put_part()
        elif self._spooled:
            await self._put_object(checked_key(self._upload.key) if whole else self._tail(self.offset))
        return Progress(self.offset, self._etags)

    async def _put_object(self, name: str) -> None:
        def read() -> bytes:
            self._spool.seek(0)
            return self._spool.read(self._spooled)

        data = await self._storage.run(read)
        await self._storage.objects.put(name, data)

    async def close(self, *, noted: bool) -> None:
        if noted and self._hash is not None:
            self._storage.hashes.keep(self._upload.key, self.offset, self._hash)
        self._hash = None
        await self._storage.run(self._spool.close)
        if noted:
            with contextlib.suppress(StorageAway):  # removing the file removes them, too
                await self._storage.remove_tails(self._upload.key, self._tail(self.offset))
