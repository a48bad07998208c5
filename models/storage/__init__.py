"""Storage: the bytes of files, on a local disk or in an S3 bucket, behind one interface.

A storage uses keys, which only this module creates. Names, owners and chats are rows (models/files.py).
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

MAX_HASHES = 1000  # unfinished uploads whose partial hash is kept, some 200 bytes each

_KEY = re.compile(r"[0-9a-f]{32}", re.ASCII)


class StorageAway(Exception):
    """The storage does not answer, or answers with an error. Nothing is left half done."""


class StorageFull(Exception):
    """The storage has no room for more bytes. Those that were stored stay."""


class Busy(Exception):
    """Another process is writing this file."""


def new_key() -> str:
    """Return a random key for a new file's bytes; it can't be guessed."""
    return secrets.token_hex(16)


def checked_key(key: str) -> str:
    """Return the key if it is well-formed, else raise ValueError: no path is built from anything else."""
    if not _KEY.fullmatch(key):
        raise ValueError("not a storage key")
    return key


@dataclass(frozen=True, slots=True)
class Link:
    """A URL that allows one operation without a token, for ``seconds``, with these headers."""

    method: str
    url: str
    headers: dict[str, str]
    seconds: int


class Progress(NamedTuple):
    """The durable part of an upload: how many bytes, and the ETags of the parts that contain them (S3)."""

    received: int
    etags: tuple[str, ...] = ()


class PendingUpload(NamedTuple):
    """An unfinished file: its final size, and how much was received."""

    key: str
    size: int
    resumable: bool
    received: int = 0
    part_size: int = 0
    upload_id: str | None = None
    etags: tuple[str, ...] = ()


class Writer(Protocol):
    """Writes the next bytes of a file."""

    @property
    def offset(self) -> int:
        """How many bytes the file has, including those of earlier writers."""

    @property
    def digest(self) -> bytes | None:
        """SHA-256 of these bytes; None if some of them were not hashed."""

    async def write(self, blocks: Sequence[bytes]) -> Progress | None:
        """Write bytes. Returns the progress if more became durable, else None. Raises StorageAway, StorageFull."""

    async def pause(self) -> Progress:
        """Make all bytes durable: they survive kill -9 and a power cut. Raises StorageAway, StorageFull."""

    async def close(self, *, noted: bool) -> None:
        """Close the file. ``noted``: the result of ``pause`` was stored, and the next writer begins there."""


class Reader(Protocol):
    async def read(self, start: int, length: int) -> bytes:
        """Read ``length`` bytes; fewer only at the end. Raises OSError."""


class Storage(Protocol):
    """The interface of a storage. Each method may raise StorageAway. A settled file is one that is complete."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Open it until the block ends."""

    async def check(self) -> None:
        """Check that the storage answers and accepts files. Raises StorageFull, too."""

    async def free_bytes(self) -> int | None:
        """Return the free bytes; None if unknown (S3)."""

    def part_size(self, size: int) -> int:
        """Return the size of the parts of a resumable upload of ``size`` bytes; 0 if it is stored in one piece."""

    def put_link(self, upload: PendingUpload) -> Link | None:
        """Return the link to which a client uploads the whole file; None if it has to pass through this server."""

    def content(self, key: str, method: str) -> Link | AbstractAsyncContextManager[Reader]:
        """Return a link by which a client gets a settled file with ``method``, or a context that opens the file here.
        Opening raises FileNotFoundError if the bytes are lost."""

    async def begin(self, upload: PendingUpload) -> str | None:
        """Begin a resumable upload. Returns the storage's id of it, for later calls; None if it needs none."""

    async def abort(self, upload: PendingUpload, upload_id: str) -> None:
        """Undo a ``begin``."""

    async def writer(self, upload: PendingUpload) -> Writer:
        """Return a writer that continues at ``upload.received``. Raises Busy."""

    async def settle(self, upload: PendingUpload) -> int | None:
        """Make a received file complete, durably. Returns its size; None if bytes are missing. Can be repeated."""

    async def size(self, key: str) -> int | None:
        """Return the size of a settled file in bytes; None if there is none."""

    async def digest(self, key: str) -> bytes:
        """Read a settled file, and return its SHA-256."""

    async def remove(self, key: str, upload_id: str | None) -> None:
        """Remove all bytes of a file. Not an error if there are none."""

    async def copy_out(self, key: str, target: Path) -> bytes:
        """Copy a settled file to a new local file, durably. Returns its SHA-256. Raises FileNotFoundError."""

    async def copy_in(self, key: str, source: Path) -> None:
        """Store a local file as a settled one, durably; replaces existing bytes. Raises StorageFull, too."""


class Hashes:
    """Partial hashes of unfinished uploads, in memory only: after a restart the file is read again to hash it."""

    def __init__(self) -> None:
        self._hashes: OrderedDict[str, tuple[int, _Hash]] = OrderedDict()

    def take(self, key: str, offset: int) -> _Hash | None:
        """Return the hash of a file's first ``offset`` bytes, and forget it; None if it is not known."""
        if offset == 0:
            return hashlib.sha256()
        entry = self._hashes.pop(key, None)
        return entry[1] if entry and entry[0] == offset else None

    def keep(self, key: str, offset: int, hash_: _Hash) -> None:
        self._hashes[key] = offset, hash_
        if len(self._hashes) > MAX_HASHES:
            self._hashes.popitem(last=False)
