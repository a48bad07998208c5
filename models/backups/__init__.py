"""Backups: a folder with everything to set up a server again, written while servers run, complete or not at all.

    mimu-20260301T093000Z/
        manifest.json     what it is: format, time, schema, epoch, rows, and size and SHA-256 of each part
        database/         what pg_dump writes in its directory format, at one moment (dump.py)
        files.sha256      the files, as sha256sum has them
        files/ab/abcd…    their bytes, by storage key (stored.py)
    mimu-20260301T093000Z-keys.tar   the server's secrets (keys.py), which belong somewhere else

A folder whose name begins with a dot is not finished, or is being removed: it is never treated as a backup.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "database"
FILES = "files"
FILE_SUMS = "files.sha256"
BLOCK = 1 << 20  # bytes that are read at a time

Report = Callable[[str], None]  # shows a line of progress


class BackupError(Exception):
    """A backup can't be made or used. The message is for the operator, and contains none of the backup's data."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a backup, by its path in the folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Files:
    """The users' files in a backup; ``without`` are the keys of files in its database whose bytes it lacks."""

    count: int
    bytes: int
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a backup. ``files`` is None if it contains no files: they are stored elsewhere."""

    made_at: str
    schema: str
    epoch: str
    postgresql: int  # major version of the server
    rows: dict[str, int]
    files: Files | None
    parts: tuple[Part, ...]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write it, durably. Write it last: a folder without it is not a backup."""
        body = asdict(self)
        text = json.dumps({"manifest": body, "sha256": _digest(body)}, indent=1)
        with (folder / MANIFEST).open("x") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a backup. Raises BackupError if the folder is not a backup, or the manifest was
        changed."""
        path = folder / MANIFEST
        if folder.name.startswith(".") or not path.is_file():
            raise BackupError(f"{folder} is not a finished backup")
        try:
            whole: dict[str, Any] = json.loads(path.read_bytes())
            body = whole["manifest"]
            if body["format"] != FORMAT:
                raise BackupError(f"{folder} is of format {body['format']}; this version reads {FORMAT}")
            if whole["sha256"] != _digest(body):
                raise BackupError(f"{path} is damaged")
            files = body["files"]
            return cls(
                **{
                    **body,
                    "files": files and Files(files["count"], files["bytes"], tuple(files["without"])),
                    "parts": tuple(Part(**part) for part in body["parts"]),
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise BackupError(f"{path} is damaged") from error


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_part(folder: Path, path: Path) -> Part:
    return Part(path.relative_to(folder).as_posix(), path.stat().st_size, digest(path))


def list_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield SHA-256 and storage key of each user's file in a backup."""
    with (folder / FILE_SUMS).open() as lines:
        for line in lines:
            sha256, _, path = line.rstrip("\n").partition("  ")
            yield sha256, path.rpartition("/")[2]


def file_path(folder: Path, key: str) -> Path:
    """Return the path of a user's file in a backup."""
    return folder / FILES / key[:2] / key


def verify(folder: Path, manifest: Manifest, report: Report) -> None:
    """Read every part and every file, and compare their SHA-256. Raises BackupError, which names the first that
    differs."""
    for item in manifest.parts:
        report(f"verifying {item.path}")
        _compare(folder / item.path, item.path, item.sha256)
    if manifest.files is None:
        return
    for number, (sha256, key) in enumerate(list_files(folder), 1):
        if number % 100 == 1:
            report(f"verifying files, {number} of {manifest.files.count}")
        path = file_path(folder, key)
        _compare(path, path.relative_to(folder).as_posix(), sha256)


def _compare(path: Path, name: str, sha256: str) -> None:
    try:
        actual = digest(path)
    except FileNotFoundError:
        raise BackupError(f"{name} is missing") from None
    if actual != sha256:
        raise BackupError(f"{name} is damaged: its SHA-256 is not the one of the backup")


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_below(folder: Path, but: Sequence[str] = ()) -> None:
    """Make the names in a folder and in all folders below it durable."""
    for way, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if name not in but]
        sync(Path(way))
