"""The users' files of a backup: copied out of the storage after the database was dumped, each checked as it is copied.

After it: so none is missing that the database knows, but those that their owners deleted in between. A file never
changes once it is complete, so the next backup beside this one links to what is there, and costs only what is new.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from models.backups import FILE_SUMS, FILES, Files, Tell, digest, file_path, listed
from models.backups.dump import StoredFile, written_down
from models.storage import Storage, StorageAway

AT_ONCE = 8  # files: their disks or servers are waited for, not their speed


@dataclass
class Copied:
    """What came of it. ``without`` has the keys of files that were not there, ``damaged`` of those that are not what
    they were, ``unreadable`` of those that are another user's: none of these is in the backup."""

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
    files: Iterator[tuple[str, ...] | StoredFile], work: Callable[..., Awaitable[None]], tell: Tell, of: int
) -> None:
    """Do something with each, some at a time; what fails ends it all."""
    done = 0

    async def some() -> None:
        nonlocal done
        for one in files:
            await work(*one)
            done += 1
            tell(f"copying files, {done} of {of}")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())
    except ExceptionGroup as failed:
        one = failed.exceptions[0]  # is reason enough
        raise one from one.__cause__


async def take(
    storage: Storage, listing: Path, count: int, folder: Path, before: Path | None, tell: Tell, *, sure: bool = False
) -> Copied:
    """Copy the files of a listing, so many, into a backup, or link to those of the backup ``before``; if it must be
    ``sure``, to those only that are read and found to be what they were. Raises StorageAway, OSError."""
    copied = Copied()
    (folder / FILES).mkdir(mode=0o700)

    async def one(key: str, size: int, sha256: bytes) -> None:
        path = file_path(folder, key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        proof = sha256 if sure else None
        if before is not None and await asyncio.to_thread(_linked, file_path(before, key), path, size, proof):
            copied.linked += 1
        else:
            try:
                found = await storage.copy_out(key, path)
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
            if found != sha256:
                path.unlink()
                copied.damaged.append(key)
                return
        copied.count += 1
        copied.bytes += size

    await _each(written_down(listing), one, tell, count)
    absent = {*copied.without, *copied.damaged, *copied.unreadable}
    with (folder / FILE_SUMS).open("x") as file:
        for key, _, sha256 in written_down(listing):
            if key not in absent:
                file.write(f"{sha256.hex()}  {file_path(folder, key).relative_to(folder).as_posix()}\n")
        file.flush()
        os.fsync(file.fileno())
    return copied


def _linked(old: Path, new: Path, size: int, proof: bytes | None) -> bool:
    """Give a file of an older backup a second name; False where there is none that is as it was, or the disk knows no
    such thing."""
    try:
        if old.stat().st_size != size or (proof is not None and digest(old) != proof.hex()):
            return False
        new.hardlink_to(old)
    except OSError:
        return False
    return True


async def put_back(storage: Storage, folder: Path, files: Files, tell: Tell) -> None:
    """Put the files of a verified backup back. Again is the same. Raises StorageAway, StorageFull, OSError."""

    async def one(_: str, key: str) -> None:
        await storage.copy_in(key, file_path(folder, key))

    await _each(iter(listed(folder)), one, tell, files.count)
