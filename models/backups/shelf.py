"""The shelf: the folder that backups are made into, one at a time, where the old ones go when there are enough."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from models.backups import MANIFEST, BackupError, sync

_NAME = re.compile(r"mimu-\d{8}T\d{6}Z", re.ASCII)
_ASIDE = re.compile(rf"\.{_NAME.pattern}\.(unfinished|removed)", re.ASCII)


class Shelf:
    """Backups in a folder. Its own are those with our names: nothing else in it is ever touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # What another user, most often root, has left here: it stays, and is stepped over.
        self.foreign: list[Path] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from it, and clear away what was broken off. Raises BackupError, OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError(f"another backup is being made into {self.folder}") from None
            for path in self.folder.iterdir():
                if _ASIDE.fullmatch(path.name):
                    self._remove(path)
            yield

    def _lock(self) -> IO[bytes]:
        path = self.folder / ".lock"
        try:
            return path.open("ab")
        except PermissionError:
            path.unlink()  # root's; the folder is ours
            return path.open("ab")

    def _remove(self, folder: Path) -> None:
        try:
            shutil.rmtree(folder)
        except PermissionError:
            self._step_over(folder)

    def _step_over(self, path: Path) -> None:
        if path not in self.foreign:
            self.foreign.append(path)

    def backups(self) -> list[Path]:
        """The finished backups, the oldest first."""
        found = []
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name):
                if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                    self._step_over(path)
                elif (path / MANIFEST).is_file():
                    found.append(path)
        return sorted(found)

    def keys(self, backup: Path, elsewhere: Path | None = None) -> Path:
        """Where the keys of a backup are: beside it, unless they were put elsewhere."""
        return (elsewhere or self.folder) / f"{backup.name}-keys.tar"

    @contextlib.contextmanager
    def place(self) -> Iterator[tuple[Path, Path]]:
        """A folder to fill, and what it will be called; ``finish`` does that. What is not finished is removed."""
        while True:
            final = self.folder / datetime.now(UTC).strftime("mimu-%Y%m%dT%H%M%SZ")
            if not final.exists():
                break
            time.sleep(0.1)
        work = self.folder / f".{final.name}.unfinished"
        work.mkdir(mode=0o700)
        try:
            yield work, final
        finally:
            if work.exists():
                shutil.rmtree(work)

    def finish(self, work: Path, final: Path) -> None:
        """From now on it is a backup, also after a power cut."""
        work.rename(final)
        sync(self.folder)

    def thin(self, keep: int, elsewhere: Path | None = None) -> list[Path]:
        """Remove all backups but the newest ones, with their keys, also those that are elsewhere; which they were."""
        old = self.backups()[:-keep]
        for path in old:
            aside = self.folder / f".{path.name}.removed"
            path.rename(aside)  # never half a backup under its name
            sync(self.folder)
            self._remove(aside)
            for archive in {self.keys(path), self.keys(path, elsewhere)}:
                archive.unlink(missing_ok=True)
        return old


def size(folder: Path) -> int:
    """Bytes of all files in a folder, those of other backups that it links to as well."""
    return sum((Path(way) / name).stat().st_size for way, _, names in os.walk(folder) for name in names)
