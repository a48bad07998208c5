"""The users' files of a backup: copied from the storage after the database was dumped, each checked while it is copied.

In this order every file in the dump is copied, except those that their owners deleted in between. A complete file never
changes, so the next backup in the same folder links to existing files, and needs space only for new ones.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from models.backups import FILE_SUMS, FILES, Files, Report, digest, file_path, list_files
from models.backups.dump import StoredFile, read_listing
from models.storage import Storage, StorageAway

CONCURRENCY = 8  # files at a time: they mostly wait for disks or servers


@dataclass
class Copied:
    """The result. ``without`` has the keys of files that are missing, ``damaged`` of those whose bytes have changed,
    ``unreadable`` of those that belong to another user: none of these is in the backup."""

    count: int = 0
    bytes: int = 0
    linked: int = 0
    without: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def files(self) -> Files:
        return Files(self.count, self.bytes, tuple(sorted(self.without + self.damaged + self.unreadable)))


async def _each(
    files: Iterator[tuple[str, ...] | StoredFile], work: Callable[..., Awaitable[None]], report: Report, of: int
) -> None:
    """Call ``work`` for each file, CONCURRENCY at a time; the first error ends all."""
    done = 0

    async def worker() -> None:
        nonlocal done
        for file in files:
            await work(*file)
            done += 1
            report(f"copying files, {done} of {of}")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(worker())
    except ExceptionGroup as failed:
        first = failed.exceptions[0]  # one is enough for the operator
        raise first from first.__cause__


async def back_up(
    storage: Storage,
    listing: Path,
    count: int,
    folder: Path,
    before: Path | None,
    report: Report,
    *,
    sure: bool = False,
) -> Copied:
    """Copy the ``count`` files of a listing into a backup, or link to those of the backup ``before``; with ``sure``
    only to files that are read and unchanged. Raises StorageAway, OSError."""
    copied = Copied()
    (folder / FILES).mkdir(mode=0o700)

    async def copy(key: str, size: int, sha256: bytes) -> None:
        path = file_path(folder, key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        expected = sha256 if sure else None
        if before is not None and await asyncio.to_thread(_link, file_path(before, key), path, size, expected):
            copied.linked += 1
        else:
            try:
                actual = await storage.copy_out(key, path)
            except FileNotFoundError:
                path.unlink(missing_ok=True)
                copied.without.append(key)
                return
            except StorageAway as error:
                if not isinstance(error.__cause__, PermissionError):
                    raise
                path.unlink(missing_ok=True)
                copied.unreadable.append(key)
                return
            if actual != sha256:
                path.unlink()
                copied.damaged.append(key)
                return
        copied.count += 1
        copied.bytes += size

    await _each(read_listing(listing), copy, report, count)
    absent = {*copied.without, *copied.damaged, *copied.unreadable}
    with (folder / FILE_SUMS).open("x") as file:
        for key, _, sha256 in read_listing(listing):
            if key not in absent:
                file.write(f"{sha256.hex()}  {file_path(folder, key).relative_to(folder).as_posix()}\n")
        file.flush()
        os.fsync(file.fileno())
    return copied


def _link(old: Path, new: Path, size: int, sha256: bytes | None) -> bool:
    """Hard-link a file of an older backup; False if there is no unchanged one, or the disk does not support links."""
    try:
        if old.stat().st_size != size or (sha256 is not None and digest(old) != sha256.hex()):
            return False
        new.hardlink_to(old)
    except OSError:
        return False
    return True


async def restore(storage: Storage, folder: Path, files: Files, report: Report) -> None:
    """Copy the files of a verified backup into the storage. Can be repeated. Raises StorageAway, StorageFull,
    OSError."""

    async def copy(_: str, key: str) -> None:
        await storage.copy_in(key, file_path(folder, key))

    await _each(iter(list_files(folder)), copy, report, files.count)
