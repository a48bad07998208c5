"""Moving files to another storage: copy each file, read it back there, and compare it with the SHA-256 in the database.

Servers may run on the old storage in the meantime. A complete file never changes, and an object or a file appears under
its key only when it is whole; so a second run copies new files, and skips those that are there in the right size.
Files that are deleted in the meantime must not stay in the new storage, where no row would lead a sweep to them: a
journal has the key of each file before its bytes are copied, and the next run removes those without a row.
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

CONCURRENCY = 4  # files: each needs 10 to 20 MB of memory on its way into S3 and back, and disk space in between
PAGE = 1000  # rows, and lines of the journal, at a time

Report = Callable[[str], None]


class MoveError(Exception):
    """Files can't be moved; the text is for the operator."""


@dataclass
class Moved:
    """The result of a move. ``missing`` has the keys of files that the old storage lacks, ``damaged`` of those whose
    bytes have changed: none of these is in the new storage."""

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
        """Yield all keys, a page at a time; a line that a crash has cut off does not count."""
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
        """Delete the journal: all is moved, and the servers use the new storage from now on."""
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def journal(folder: Path, name: str) -> Iterator[Journal]:
    """Open the journal ``name`` in a folder, which is created, with a folder for files in transit. Raises MoveError if
    another process has it open."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / name).open("a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MoveError("another process is moving files there already") from None
        file.write("\n")  # after a line that a crash has cut off
        transit = folder / f"{name}.files"  # files that a killed run left here are copied again
        shutil.rmtree(transit, ignore_errors=True)
        transit.mkdir(mode=0o700)
        try:
            yield Journal(file, transit)
        finally:
            shutil.rmtree(transit, ignore_errors=True)


async def _count_complete(connection: asyncpg.Connection) -> int:
    """Count the complete files in the database."""
    count: int = await connection.fetchval("SELECT count(*) FROM files WHERE state = 'complete'")
    return count


async def complete(connection: asyncpg.Connection) -> AsyncIterator[tuple[str, int, bytes]]:
    """Yield key, size and SHA-256 of each complete file, ordered by key; reads by page, so no transaction stays
    open."""
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
    """Count what a move would copy; changes nothing. Raises StorageAway."""
    moved = Moved()
    async for key, size, _ in complete(connection):
        if await target.size(key) == size:
            moved.present += 1
        else:
            moved.copied, moved.bytes = moved.copied + 1, moved.bytes + size
    return moved


async def move(
    connection: asyncpg.Connection, source: Storage, target: Storage, journal_: Journal, report: Report, *, verify: bool
) -> Moved:
    """Copy the files that the target lacks; with ``verify`` also read those that it has. Can be repeated: it continues
    where the last run stopped. Raises StorageAway, StorageFull, OSError."""
    moved, total = Moved(), await _count_complete(connection)
    moved.removed = await _remove_deleted(connection, target, journal_, report)
    files, turn = complete(connection), asyncio.Lock()

    async def work() -> None:
        while True:
            async with turn:
                file = await anext(files, None)
            if file is None:
                return
            await _move_one(*file, source, target, journal_, moved, verify=verify)
            done = moved.copied + moved.present + len(moved.missing) + len(moved.damaged)
            report(f"{done} of {total} files, {moved.bytes / 1e6:.0f} MB copied")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())
    except ExceptionGroup as failed:
        first = failed.exceptions[0]  # one is enough for the operator
        raise first from first.__cause__
    moved.missing = await _existing(connection, moved.missing)  # the others were deleted in the meantime
    return moved


async def _move_one(
    key: str,
    size: int,
    sha256: bytes,
    source: Storage,
    target: Storage,
    journal_: Journal,
    moved: Moved,
    *,
    verify: bool,
) -> None:
    if await target.size(key) == size and (not verify or await target.digest(key) == sha256):
        moved.present += 1
        return
    transit = journal_.folder / key
    try:
        try:
            digest = await source.copy_out(key, transit)
        except FileNotFoundError:
            moved.missing.append(key)
            return
        if digest != sha256:
            moved.damaged.append(key)
            return
        journal_.note(key)
        await target.copy_in(key, transit)
    finally:
        transit.unlink(missing_ok=True)
    if await target.digest(key) != sha256:
        await target.remove(key, None)
        raise StorageAway(f"the copy of {key} differs")
    moved.copied, moved.bytes = moved.copied + 1, moved.bytes + size


async def _remove_deleted(connection: asyncpg.Connection, target: Storage, journal_: Journal, report: Report) -> int:
    """Remove from the target files that an earlier run copied and the database no longer has. Returns how many."""
    removed = 0
    for keys in journal_.pages():
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
            report(f"{removed} files removed that were deleted in the meantime")
    return removed


async def _existing(connection: asyncpg.Connection, keys: list[str]) -> list[str]:
    rows = await connection.fetch("SELECT storage_key FROM files WHERE storage_key = ANY ($1)", keys)
    return sorted(key for (key,) in rows)


async def unfinished(connection: asyncpg.Connection) -> int:
    """Count the unfinished uploads, whose parts only the old storage has."""
    count: int = await connection.fetchval("SELECT count(*) FROM files WHERE state = 'uploading'")
    return count


async def forget_unfinished(connection: asyncpg.Connection) -> int:
    """Delete the unfinished uploads. Returns how many. Clients begin them again."""
    return int((await connection.execute("DELETE FROM files WHERE state = 'uploading'")).rpartition(" ")[2])
