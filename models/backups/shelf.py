"""The shelf: the folder in which backups are made, one at a time, and from which old ones are removed."""

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
    """The backups in a folder, recognized by their names: nothing else in it is ever touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Backups of another user, most often root: they stay, and are skipped.
        self.foreign: list[Path] = []

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against other runs, and remove interrupted backups. Raises BackupError, OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._open_lock() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError(f"another backup is being made into {self.folder}") from None
            for path in self.folder.iterdir():
                if _ASIDE.fullmatch(path.name):
                    self._remove(path)
            yield

    def _open_lock(self) -> IO[bytes]:
        path = self.folder / ".lock"
        try:
            return path.open("ab")
        except PermissionError:
            path.unlink()  # the file is root's, the folder is ours
            return path.open("ab")

    def _remove(self, folder: Path) -> None:
        try:
            shutil.rmtree(folder)
        except PermissionError:
            self._skip(folder)

    def _skip(self, path: Path) -> None:
        if path not in self.foreign:
            self.foreign.append(path)

    def backups(self) -> list[Path]:
        """Return the finished backups, the oldest first."""
        finished = []
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name):
                if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                    self._skip(path)
                elif (path / MANIFEST).is_file():
                    finished.append(path)
        return sorted(finished)

    def keys(self, backup: Path, elsewhere: Path | None = None) -> Path:
        """Return the path of a backup's keys: beside it, or in the folder ``elsewhere``."""
        return (elsewhere or self.folder) / f"{backup.name}-keys.tar"

    @contextlib.contextmanager
    def new_backup(self) -> Iterator[tuple[Path, Path]]:
        """Create a folder to fill; yields it and its final path. Without ``finish`` it is removed at the end."""
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
        """Rename a folder to its final path, durably: from now on it is a backup."""
        work.rename(final)
        sync(self.folder)

    def remove_old(self, keep: int, elsewhere: Path | None = None) -> list[Path]:
        """Remove all but the ``keep`` newest backups, with their keys, also those elsewhere. Returns the removed
        ones."""
        old = self.backups()[:-keep]
        for path in old:
            aside = self.folder / f".{path.name}.removed"
            path.rename(aside)  # so that a partly removed backup never has a backup's name
            sync(self.folder)
            self._remove(aside)
            for archive in {self.keys(path), self.keys(path, elsewhere)}:
                archive.unlink(missing_ok=True)
        return old


def size(folder: Path) -> int:
    """Return the size of all files in a folder in bytes, including hard links to other backups."""
    return sum((Path(way) / name).stat().st_size for way, _, names in os.walk(folder) for name in names)
