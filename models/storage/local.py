"""A local disk: files in a folder, written and read in threads, and durable before they are confirmed.

The path of a file is ``ab/abcd…`` by its key, and ``ab/abcd….part`` while it is being received.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from config.threads import lower_priority, processors
from models.storage import Busy, Hashes, Link, PendingUpload, Progress, StorageAway, StorageFull, checked_key

T = TypeVar("T")

READ_THREADS = 8  # threads that wait for the disk; more requests would only wait in the kernel
SYNC_THREADS = 2  # threads that flush: each keeps a processor busy that the event loop may need
COPY_BYTES = 1 << 20  # read at a time when a file is copied
SYNC_BYTES = 8 << 20  # kill -9 costs an upload at most two of these, and its end waits for no more to be written
# PostgreSQL may share the disk, and stops when it is full: files leave this much free, or a part of a small disk.
KEEP_FREE, KEEP_FREE_PART = 1 << 30, 0.05

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Convert errors of a disk to StorageFull and StorageAway; FileNotFoundError passes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull from error
        raise StorageAway(type(error).__name__) from error


class LocalStorage:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reading = ThreadPoolExecutor(READ_THREADS, "files")
        # These threads hash as well, which needs a processor.
        self.writing = ThreadPoolExecutor(processors(), "files-write", initializer=lower_priority)
        self.syncing = ThreadPoolExecutor(SYNC_THREADS, "files-sync", initializer=lower_priority)
        self.hashes = Hashes()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.run(lambda: self._folder.mkdir(mode=0o700, parents=True, exist_ok=True))
        try:
            yield
        finally:
            for threads in (self._reading, self.writing, self.syncing):
                await asyncio.to_thread(threads.shutdown)

    async def run(self, work: Callable[[], T], threads: ThreadPoolExecutor | None = None) -> T:
        """Run blocking work in a thread. It runs to its end even if the caller is cancelled."""

        def translated() -> T:
            with disk_errors():
                return work()

        running = asyncio.get_running_loop().run_in_executor(threads or self._reading, translated)
        return await asyncio.shield(running)

    async def check(self) -> None:
        def look() -> None:
            tempfile.TemporaryFile(dir=self._folder).close()
            self.check_space()

        try:
            await self.run(look)
        except FileNotFoundError as error:
            raise StorageAway("the folder is gone") from error

    def check_space(self) -> None:
        """Raise StorageFull if the disk has less space left than it has to keep free."""
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < min(KEEP_FREE, disk.f_blocks * disk.f_frsize * KEEP_FREE_PART):
            raise StorageFull

    async def free_bytes(self) -> int | None:
        disk = await self.run(lambda: os.statvfs(self._folder))
        return disk.f_bavail * disk.f_frsize

    def path(self, key: str) -> Path:
        return self._folder / checked_key(key)[:2] / key

    def part(self, key: str) -> Path:
        return self.path(key).with_suffix(".part")

    def put_link(self, _: PendingUpload) -> Link | None:
        return None

    def part_size(self, _: int) -> int:
        return 0

    async def begin(self, _: PendingUpload) -> str | None:
        return None

    async def abort(self, _: PendingUpload, __: str) -> None:
        """Nothing to undo."""

    async def writer(self, upload: PendingUpload) -> LocalWriter:
        descriptor = await self.run(lambda: self._open(upload))
        return LocalWriter(self, upload, descriptor)

    def _open(self, upload: PendingUpload) -> int:
        path = self.part(upload.key)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _sync(self._folder)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Against other instances on this folder; in this one the plugin ensures that there is one writer.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size < upload.received:
                raise StorageAway("part of an upload is lost")
        except BlockingIOError:
            os.close(descriptor)
            raise Busy from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    async def settle(self, upload: PendingUpload) -> int | None:
        if upload.received < upload.size:
            return None

        def publish() -> int | None:
            path, part = self.path(upload.key), self.part(upload.key)
            with contextlib.suppress(FileNotFoundError):
                part.rename(path)
                _sync(path.parent)
            return self._size(upload.key)

        return await self.run(publish)

    async def size(self, key: str) -> int | None:
        return await self.run(lambda: self._size(key))

    def _size(self, key: str) -> int | None:
        try:
            return self.path(key).stat().st_size
        except FileNotFoundError:
            return None

    async def digest(self, key: str) -> bytes:
        def read() -> bytes:
            with self.path(key).open("rb", buffering=0) as file:
                return hashlib.file_digest(file, "sha256").digest()

        return await self.run(read, self.writing)

    @contextlib.asynccontextmanager
    async def content(self, key: str, _: str) -> AsyncIterator[LocalReader]:
        path = self.path(key)
        descriptor = await self.run(lambda: os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        try:
            yield LocalReader(self, descriptor)
        finally:
            await self.run(lambda: os.close(descriptor))

    async def remove(self, key: str, _: str | None) -> None:
        def unlink() -> None:
            self.part(key).unlink(missing_ok=True)
            self.path(key).unlink(missing_ok=True)

        await self.run(unlink)

    async def copy_out(self, key: str, target: Path) -> bytes:
        def copy() -> bytes:
            with self.path(key).open("rb", buffering=0) as file:
                return write(iter(lambda: file.read(COPY_BYTES), b""), target)

        return await self.run(copy, self.writing)

    async def copy_in(self, key: str, source: Path) -> None:
        def copy() -> None:
            path = self.path(key)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            with source.open("rb", buffering=0) as file:
                write(iter(lambda: file.read(COPY_BYTES), b""), new)
            new.replace(path)
            _sync(path.parent)
            _sync(self._folder)

        await self.run(copy, self.writing)


def private(path: str, flags: int) -> int:
    """Open a new file that only its owner may read."""
    return os.open(path, flags, 0o600)


def write(blocks: Iterable[bytes], target: Path) -> bytes:
    """Write a new file, durably. Returns its SHA-256."""
    hash_ = hashlib.sha256()
    with open(target, "xb", opener=private, buffering=0) as file:
        for block in blocks:
            rest = memoryview(block)
            while rest:  # a nearly full disk writes less than it should, and raises the error with the next write
                rest = rest[file.write(rest) :]
            hash_.update(block)
        os.fsync(file.fileno())
    return hash_.digest()


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalReader:
    def __init__(self, storage: LocalStorage, descriptor: int) -> None:
        self._storage, self._descriptor = storage, descriptor

    async def read(self, start: int, length: int) -> bytes:
        return await self._storage.run(lambda: os.pread(self._descriptor, length, start))


class LocalWriter:
    """Writes from ``upload.received`` on. It flushes every SYNC_BYTES in the background, while more is written."""

    def __init__(self, storage: LocalStorage, upload: PendingUpload, descriptor: int) -> None:
        self._storage, self._key, self._descriptor = storage, upload.key, descriptor
        self._hash = storage.hashes.take(upload.key, upload.received)
        self.offset = upload.received
        self._sync_offset = upload.received  # up to where a flush was started
        self._syncing: tuple[int, asyncio.Future[None]] | None = None
        self._work: asyncio.Future[Any] | None = None

    async def _run(self, work: Callable[[], T], threads: ThreadPoolExecutor) -> T:
        self._work = asyncio.ensure_future(self._storage.run(work, threads))
        return await asyncio.shield(self._work)

    @property
    def digest(self) -> bytes | None:
        return None if self._hash is None else self._hash.digest()

    async def write(self, blocks: Sequence[bytes]) -> Progress | None:
        self.offset += await self._run(lambda: self._write(blocks), self._storage.writing)
        if self.offset - self._sync_offset < SYNC_BYTES:
            return None
        durable = await self._wait_synced()
        self._sync_offset = self.offset
        self._syncing = self.offset, asyncio.ensure_future(self._sync())
        return None if durable is None else Progress(durable)

    def _write(self, blocks: Sequence[bytes]) -> int:
        self._storage.check_space()
        length = sum(map(len, blocks))
        written = os.pwritev(self._descriptor, blocks, self.offset)
        if written < length:  # a signal, or a nearly full disk, which raises with the rest
            rest = memoryview(b"".join(blocks))
            while written < length:
                written += os.pwrite(self._descriptor, rest[written:], self.offset + written)
        if self._hash is not None:
            for block in blocks:
                self._hash.update(block)
        return length

    async def _sync(self) -> None:
        await self._storage.run(lambda: os.fdatasync(self._descriptor), self._storage.syncing)

    async def _wait_synced(self) -> int | None:
        """Wait for the last flush. Returns the offset up to which it flushed; None if there was none."""
        syncing, self._syncing = self._syncing, None
        if syncing is None:
            return None
        offset, done = syncing
        await done
        return offset

    async def pause(self) -> Progress:
        await self._wait_synced()

        def keep() -> None:
            # Cut off what a failed write or an earlier writer left after the offset.
            if os.fstat(self._descriptor).st_size > self.offset:
                os.ftruncate(self._descriptor, self.offset)
            os.fsync(self._descriptor)
            _sync(self._storage.part(self._key).parent)

        await self._run(keep, self._storage.syncing)
        return Progress(self.offset)

    async def close(self, *, noted: bool) -> None:
        with contextlib.suppress(StorageAway, StorageFull):
            await self._wait_synced()
            if self._work is not None:
                await self._work  # before its descriptor can be reused for another file
        if noted and self._hash is not None:
            self._storage.hashes.keep(self._key, self.offset, self._hash)
        self._hash = None
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            await self._storage.run(lambda: os.close(descriptor))
