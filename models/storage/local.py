"""A local disk: files in a folder, written and read in threads, and safe on the disk before anybody is told so.

A file is ``ab/abcd…`` by its key, and ``ab/abcd….part`` while it is being received.
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
from models.storage import Busy, Hashes, Link, PendingUpload, Progress, StorageAway, StorageFull, proven

T = TypeVar("T")

READING = 8  # threads that wait for the disk: it has some requests under way at a time, more would wait in the kernel
SYNCING = 2  # that make it write: each keeps a processor busy that the loop may want
COPY_BYTES = 1 << 20  # read at a time when a file is copied
SYNC_BYTES = 8 << 20  # kill -9 costs an upload no more than two of these, and its end waits for no more to be written
# The disk may be PostgreSQL's as well, which stops when it is full: files leave it this much, or a part of a small one.
KEEP_FREE, KEEP_FREE_PART = 1 << 30, 0.05

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def troubles() -> Iterator[None]:
    """Tell errors of a disk as what they mean; that a file isn't there is told as it is."""
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
        self._reading = ThreadPoolExecutor(READING, "files")
        # They hash as well, which a processor is needed for.
        self.writing = ThreadPoolExecutor(processors(), "files-write", initializer=lower_priority)
        self.syncing = ThreadPoolExecutor(SYNCING, "files-sync", initializer=lower_priority)
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
        """Run blocking work in a thread, to its end even when nobody waits for it any more."""

        def translated() -> T:
            with troubles():
                return work()

        running = asyncio.get_running_loop().run_in_executor(threads or self._reading, translated)
        return await asyncio.shield(running)

    async def check(self) -> None:
        def look() -> None:
            tempfile.TemporaryFile(dir=self._folder).close()
            self.ask_for_room()

        try:
            await self.run(look)
        except FileNotFoundError as error:
            raise StorageAway("the folder is gone") from error

    def ask_for_room(self) -> None:
        """Raises StorageFull when the disk has less left than it is to keep."""
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < min(KEEP_FREE, disk.f_blocks * disk.f_frsize * KEEP_FREE_PART):
            raise StorageFull

    async def room(self) -> int | None:
        disk = await self.run(lambda: os.statvfs(self._folder))
        return disk.f_bavail * disk.f_frsize

    def path(self, key: str) -> Path:
        return self._folder / proven(key)[:2] / key

    def part(self, key: str) -> Path:
        return self.path(key).with_suffix(".part")

    def put_link(self, _: PendingUpload) -> Link | None:
        return None

    def part_size(self, _: int) -> int:
        return 0

    async def begin(self, _: PendingUpload) -> str | None:
        return None

    async def abort(self, _: PendingUpload, __: str) -> None:
        """There is nothing to take back."""

    async def writer(self, place: PendingUpload) -> LocalWriter:
        descriptor = await self.run(lambda: self._open(place))
        return LocalWriter(self, place, descriptor)

    def _open(self, place: PendingUpload) -> int:
        path = self.part(place.key)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _sync(self._folder)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Of other instances on this folder; in this one the plugin sees to it that there is one writer.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size < place.received:
                raise StorageAway("part of an upload is lost")
        except BlockingIOError:
            os.close(descriptor)
            raise Busy from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    async def settle(self, place: PendingUpload) -> int | None:
        if place.received < place.size:
            return None

        def publish() -> int | None:
            path, part = self.path(place.key), self.part(place.key)
            with contextlib.suppress(FileNotFoundError):
                part.rename(path)
                _sync(path.parent)
            return self._size(place.key)

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
    """Opens a new file that nobody else may read."""
    return os.open(path, flags, 0o600)


def write(blocks: Iterable[bytes], target: Path) -> bytes:
    """Write a new file, durably; its SHA-256."""
    found = hashlib.sha256()
    with open(target, "xb", opener=private, buffering=0) as file:
        for block in blocks:
            rest = memoryview(block)
            while rest:  # a disk that is nearly full takes less than it is given, and says why the next time
                rest = rest[file.write(rest) :]
            found.update(block)
        os.fsync(file.fileno())
    return found.digest()


def _sync(folder: Path) -> None:
    """Make names in a folder durable."""
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
    """Writes behind ``place.received``. The disk is told to keep it every SYNC_BYTES, while more is being written."""

    def __init__(self, storage: LocalStorage, place: PendingUpload, descriptor: int) -> None:
        self._storage, self._key, self._descriptor = storage, place.key, descriptor
        self._hash = storage.hashes.take(place.key, place.received)
        self.offset = place.received
        self._asked = place.received  # how far the disk was told to keep it
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
        if self.offset - self._asked < SYNC_BYTES:
            return None
        safe = await self._synced()
        self._asked = self.offset
        self._syncing = self.offset, asyncio.ensure_future(self._sync())
        return None if safe is None else Progress(safe)

    def _write(self, blocks: Sequence[bytes]) -> int:
        self._storage.ask_for_room()
        length = sum(map(len, blocks))
        written = os.pwritev(self._descriptor, blocks, self.offset)
        if written < length:  # a signal, or a disk that is nearly full; the rest tells which
            rest = memoryview(b"".join(blocks))
            while written < length:
                written += os.pwrite(self._descriptor, rest[written:], self.offset + written)
        if self._hash is not None:
            for block in blocks:
                self._hash.update(block)
        return length

    async def _sync(self) -> None:
        await self._storage.run(lambda: os.fdatasync(self._descriptor), self._storage.syncing)

    async def _synced(self) -> int | None:
        """Wait for what the disk was told last; how far that is."""
        syncing, self._syncing = self._syncing, None
        if syncing is None:
            return None
        offset, done = syncing
        await done
        return offset

    async def pause(self) -> Progress:
        await self._synced()

        def keep() -> None:
            # What a failed write, or an earlier writer, has left behind this is of no use.
            if os.fstat(self._descriptor).st_size > self.offset:
                os.ftruncate(self._descriptor, self.offset)
            os.fsync(self._descriptor)
            _sync(self._storage.part(self._key).parent)

        await self._run(keep, self._storage.syncing)
        return Progress(self.offset)

    async def close(self, *, noted: bool) -> None:
        with contextlib.suppress(StorageAway, StorageFull):
            await self._synced()
            if self._work is not None:
                await self._work  # its descriptor may not become another file's
        if noted and self._hash is not None:
            self._storage.hashes.keep(self._key, self.offset, self._hash)
        self._hash = None
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            await self._storage.run(lambda: os.close(descriptor))
