"""Storage: where the bytes of files lie, a local disk or an S3 bucket, and what both can do with them.

It knows keys, which are made here and nowhere else, and no names, owners or chats: those are rows (models/files.py).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from hashlib import _Hash

REMEMBERED = 1000  # unfinished uploads of which the hash so far is kept, some 200 bytes each

_KEY = re.compile(r"[0-9a-f]{32}", re.ASCII)


class StorageAway(Exception):
    """The storage does not answer, or not as it should. Nothing was half done."""


class StorageFull(Exception):
    """There is no room for more. What was there is there still."""


class Busy(Exception):
    """Somebody else is writing this file."""


def new_key() -> str:
    """A name for a new file's bytes, which nobody can guess."""
    return secrets.token_hex(16)


def proven(key: str) -> str:
    """The key, if it is one: whatever a row may hold, no path is made of anything else."""
    if not _KEY.fullmatch(key):
        raise ValueError("not a storage key")
    return key


@dataclass(frozen=True, slots=True)
class Link:
    """An address that lets whoever has it do one thing, for so many seconds, with these headers."""

    method: str
    url: str
    headers: dict[str, str]
    seconds: int


class Progress(NamedTuple):
    """What of an upload is safe: so many bytes, and the tags of the parts that they were stored in (S3)."""

    received: int
    etags: tuple[str, ...] = ()


class PendingUpload(NamedTuple):
    """An unfinished file: how large it will be, and how far it has come."""

    key: str
    size: int
    resumable: bool
    received: int = 0
    part_size: int = 0
    upload_id: str | None = None
    etags: tuple[str, ...] = ()


class Writer(Protocol):
    """Takes the next bytes of a file."""

    @property
    def offset(self) -> int:
        """How many bytes it has taken, with those that were there before."""

    @property
    def digest(self) -> bytes | None:
        """SHA-256 of them, if it has seen them all."""

    async def write(self, blocks: Sequence[bytes]) -> Progress | None:
        """Take bytes; what is safe now, if that is worth noting. Raises StorageAway, StorageFull."""

    async def pause(self) -> Progress:
        """Make safe what was taken: it survives kill -9 and a power cut. Raises StorageAway, StorageFull."""

    async def close(self, *, noted: bool) -> None:
        """Let go of the file. ``noted``: what ``pause`` told was written down, and the next writer begins there."""


class Reader(Protocol):
    async def read(self, start: int, length: int) -> bytes:
        """So many bytes; fewer only at the end. Raises OSError."""


class Storage(Protocol):
    """What a storage can do. Each method may raise StorageAway."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Open it until the block ends."""

    async def check(self) -> None:
        """Whether it is there and takes files. Raises StorageFull, too."""

    async def room(self) -> int | None:
        """Bytes that are free, where that can be known."""

    def part_size(self, size: int) -> int:
        """Of the parts that a resumable upload of ``size`` bytes is stored in; 0 when it is in one piece."""

    def put_link(self, place: PendingUpload) -> Link | None:
        """Where a client puts the whole file itself; None when only this server can."""

    def content(self, key: str, method: str) -> Link | AbstractAsyncContextManager[Reader]:
        """A settled file: where a client gets it itself by ``method``, or the file to be opened here, which raises
        FileNotFoundError when it is lost."""

    async def begin(self, place: PendingUpload) -> str | None:
        """What the storage calls a new resumable upload, if it wants to be told with every later call."""

    async def abort(self, place: PendingUpload, upload_id: str) -> None:
        """Take back a ``begin``."""

    async def writer(self, place: PendingUpload) -> Writer:
        """Go on at ``place.received``. Raises Busy."""

    async def settle(self, place: PendingUpload) -> int | None:
        """Put a file that was received together, durably; its size, or None when it is not all there. Again is the
        same."""

    async def size(self, key: str) -> int | None:
        """How many bytes a settled file has; None when there is none."""

    async def digest(self, key: str) -> bytes:
        """SHA-256 of a settled file."""

    async def remove(self, key: str, upload_id: str | None) -> None:
        """Remove all there is of a file; also nothing."""

    async def copy_out(self, key: str, target: Path) -> bytes:
        """Copy a settled file to a new one of this machine, durably; its SHA-256. Raises FileNotFoundError."""

    async def copy_in(self, key: str, source: Path) -> None:
        """Put a settled file back, durably, over what there is of it. Raises StorageFull, too."""


class Hashes:
    """The hashes so far of unfinished uploads. They live in memory only: after a restart the file is read again."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, _Hash]] = OrderedDict()

    def take(self, key: str, offset: int) -> _Hash | None:
        """The hash of a file's first bytes, to go on with."""
        if offset == 0:
            return hashlib.sha256()
        known = self._known.pop(key, None)
        return known[1] if known and known[0] == offset else None

    def keep(self, key: str, offset: int, known: _Hash) -> None:
        self._known[key] = offset, known
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
