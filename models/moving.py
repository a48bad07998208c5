"""Moving files to another storage: each is copied, read back there, and compared with the SHA-256 in the database.

Servers may run on the old storage meanwhile. A file never changes once it is complete, and an object or a file appears
under its key only when it is whole; so a second run copies what is new, and takes a file of the right size for copied.
What is deleted meanwhile must not stay in the new storage, which has no row of it to be swept by: a journal has the key
of each file before its bytes are copied, and the next run removes those that the database has no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import asyncpg

from models.storage import Storage, StorageAway

AT_ONCE = 4  # files: each takes 10 to 20 MB of memory on its way into S3 and back, and a place on the disk between
PAGE = 1000  # rows, and lines of the journal, at a time

Tell = Callable[[str], None]


class MoveError(Exception):
    """Files can't be moved; the text is for the operator."""


@dataclass
class Moved:
    """What came of it. ``missing`` has the keys of files that the old storage lacks, ``damaged`` of those that are not
    what they were: the new one has none of these."""

    copied: int = 0
    bytes: int = 0
    present: int = 0
    removed: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


class Journal:
    """The keys whose bytes were copied to one storage, or were about to be; for one process at a time."""

    def __init__(self, file: IO[str], folder: Path) -> None:
        self._file, self._path, self.folder = file, Path(file.name), folder

    def note(self, key: str) -> None:
        self._file.write(key + "\n")
        self._file.flush()

    def pages(self) -> Iterator[list[str]]:
        """All keys, some at a time; a line that a crash has cut off is none."""
        with self._path.open(encoding="ascii", errors="replace") as lines:
            page = []
            for line in lines:
                if len(line) == 33:
                    page.append(line.strip())
                if len(page) == PAGE:
                    yield page
                    page = []
            yield page

    def done(self) -> None:
        """All is moved, and the servers are on the new storage from now on."""
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def journal(folder: Path, name: str) -> Iterator[Journal]:
    """The journal ``name`` in a folder, which is made, with room for files on their way. Raises MoveError when another
    process has it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / name).open("a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MoveError("files are being moved there already, by another process") from None
        file.write("\n")  # after a line that a crash has cut off
        way = folder / f"{name}.files"  # what a killed run left there is copied again
        shutil.rmtree(way, ignore_errors=True)
        way.mkdir(mode=0o700)
        try:
            yield Journal(file, way)
        finally:
            shutil.rmtree(way, ignore_errors=True)


async def _count_complete(connection: asyncpg.Connection) -> int:
    """How many complete files the database has."""
    count: int = await connection.fetchval("SELECT count(*) FROM files WHERE state = 'complete'")
    return count


async def complete(connection: asyncpg.Connection) -> AsyncIterator[tuple[str, int, bytes]]:
    """Key, size and SHA-256 of each complete file, by their keys; a page at a time, so no transaction stays open."""
    last = ""
    while rows := await connection.fetch(
        """SELECT storage_key, size, sha256 FROM files WHERE state = 'complete' AND storage_key > $1
           ORDER BY storage_key LIMIT $2""",
        last,
        PAGE,
    ):
        for row in rows:
            yield row["storage_key"], row["size"], row["sha256"]
        last = rows[-1]["storage_key"]


async def lacking(connection: asyncpg.Connection, target: Storage) -> Moved:
    """What would be copied: nothing is changed. Raises StorageAway."""
    moved = Moved()
    async for key, size, _ in complete(connection):
        if await target.size(key) == size:
            moved.present += 1
        else:
            moved.copied, moved.bytes = moved.copied + 1, moved.bytes + size
    return moved


async def move(
    connection: asyncpg.Connection, source: Storage, target: Storage, notes: Journal, tell: Tell, *, verify: bool
) -> Moved:
    """Copy what the target lacks; with ``verify`` what is there is read, too. Raises StorageAway, StorageFull, OSError.

    Again is the same: what broke off goes on where it was."""
    moved, total = Moved(), await _count_complete(connection)
    moved.removed = await _forget(connection, target, notes, tell)
    files, turn = complete(connection), asyncio.Lock()

    async def some() -> None:
        while True:
            async with turn:
                one = await anext(files, None)
            if one is None:
                return
            await _one(*one, source, target, notes, moved, verify=verify)
            done = moved.copied + moved.present + len(moved.missing) + len(moved.damaged)
            tell(f"{done} of {total} files, {moved.bytes / 1e6:.0f} MB copied")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())
    except ExceptionGroup as failed:
        one = failed.exceptions[0]  # is reason enough
        raise one from one.__cause__
    moved.missing = await _still_known(connection, moved.missing)  # the others were deleted meanwhile
    return moved


async def _one(
    key: str, size: int, sha256: bytes, source: Storage, target: Storage, notes: Journal, moved: Moved, *, verify: bool
) -> None:
    if await target.size(key) == size and (not verify or await target.digest(key) == sha256):
        moved.present += 1
        return
    way = notes.folder / key
    try:
        try:
            found = await source.copy_out(key, way)
        except FileNotFoundError:
            moved.missing.append(key)
            return
        if found != sha256:
            moved.damaged.append(key)
            return
        notes.note(key)
        await target.copy_in(key, way)
    finally:
        way.unlink(missing_ok=True)
    if await target.digest(key) != sha256:
        await target.remove(key, None)
        raise StorageAway(f"{key} is not there what it was here")
    moved.copied, moved.bytes = moved.copied + 1, moved.bytes + size


async def _forget(connection: asyncpg.Connection, target: Storage, notes: Journal, tell: Tell) -> int:
    """Remove from the target what an earlier run has copied and the database has no more; how many files."""
    removed = 0
    for keys in notes.pages():
        gone = await connection.fetch(
            """SELECT DISTINCT key FROM unnest($1::text[]) AS key
               WHERE NOT EXISTS (SELECT 1 FROM files WHERE storage_key = key)""",
            keys,
        )
        for (key,) in gone:
            if await target.size(key) is None:
                continue
            await target.remove(key, None)
            removed += 1
            tell(f"{removed} files removed that were deleted meanwhile")
    return removed


async def _still_known(connection: asyncpg.Connection, keys: list[str]) -> list[str]:
    rows = await connection.fetch("SELECT storage_key FROM files WHERE storage_key = ANY ($1)", keys)
    return sorted(key for (key,) in rows)


async def unfinished(connection: asyncpg.Connection) -> int:
    """How many uploads are under way, whose parts only the old storage has."""
    count: int = await connection.fetchval("SELECT count(*) FROM files WHERE state = 'uploading'")
    return count


async def forget_unfinished(connection: asyncpg.Connection) -> int:
    """Forget uploads that are under way; how many. Clients begin them again."""
    return int((await connection.execute("DELETE FROM files WHERE state = 'uploading'")).rpartition(" ")[2])
