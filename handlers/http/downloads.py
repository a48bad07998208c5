"""Downloads: opaque bytes, served with ranges, tags and bounded memory, and so that no browser runs them (RFC 9110)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog
from tornado.iostream import StreamClosedError

from handlers.http.base import ApiHandler
from handlers.wire.errors import ApiError
from handlers.wire.operations import Header

log = structlog.get_logger(__name__)

BLOCK = 128 * 1024  # what a download holds in memory
STALL_SECONDS = 30  # to take one block: slower than 4 KiB/s is as good as gone

TAKES = (
    Header("Range", "One range of bytes; several, and nonsense, are ignored."),
    Header("If-None-Match", "Tags of what one has."),
    Header("If-Range", "The tag of what one has begun; of anything else no range is given, but all."),
)
NAMED = (Header("ETag", "What the bytes are called.", required=True),)
BYTES = (*NAMED, Header("Accept-Ranges", "`bytes`", required=True))
PART = (*BYTES, Header("Content-Range", "Which bytes, of how many.", required=True))

_RANGE = re.compile(r"bytes=[ \t]*(?:(\d+)-(\d*)|-(\d+))[ \t]*", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


class RangeNotSatisfiable(ApiError):
    """A range beyond the file."""

    status, code, message = 416, "range_not_satisfiable", "There are no such bytes."
    sends = ("Content-Range",)

    def __init__(self, size: int) -> None:
        super().__init__(headers={"Content-Range": f"bytes */{size}"})


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The one range that a Range header asks for, as start and end (excluded); None for what is to be ignored: no
    header, another unit, several ranges, or nonsense. Raises RangeNotSatisfiable."""
    match = _RANGE.fullmatch(header) if header else None
    if match is None:
        return None
    first, last, suffix = (_number(part) for part in match.groups())
    if suffix is not None:
        start, end = max(size - suffix, 0), size
    else:
        assert first is not None
        if last is not None and last < first:
            return None
        start, end = first, size if last is None else min(last + 1, size)
    if start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def _number(digits: str | None) -> int | None:
    # int() refuses thousands of digits; beyond any size is beyond any size.
    return int(digits.lstrip("0")[:19] or 0) if digits else None


def names(header: str | None, tag: str) -> bool:
    """Whether an If-None-Match header names the tag, or any."""
    if header is None:
        return False
    return header.strip() == "*" or tag in _TAG.findall(header)


class Reader(Protocol):
    """An open file."""

    async def read(self, start: int, length: int) -> bytes:
        """So many bytes, fewer only at the end."""


class DownloadHandler(ApiHandler):
    """An endpoint that answers with bytes which it doesn't understand."""

    slow = float("inf")  # its time is the client's
    cors_takes = tuple(header.name for header in TAKES)
    cors_shows = tuple(header.name for header in PART)

    def fresh(self, tag: str) -> bool:
        """Say what the bytes are called; whether the client has them already, and has been told so."""
        self.set_header("ETag", tag)
        self.set_header("Cache-Control", "private, no-cache")  # ask again each time: access may have ended
        if not names(self.request.headers.get("If-None-Match"), tag):
            return False
        self.set_status(304)
        self.clear_header("Content-Type")
        self.finish()
        return True

    async def send(
        self, opened: AbstractAsyncContextManager[Reader], size: int, tag: str, account: Hashable = None
    ) -> None:
        """200 all of it, 206 the range asked for, or only the headers for HEAD. A client that does not take a block in
        STALL_SECONDS is dropped. ``account`` is who reads, if there is no token. Raises RangeNotSatisfiable, and what
        ``reserve`` does."""
        start, end = self._asked(size, tag)
        await self.reserve(BLOCK, account)
        async with opened as reader:
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("Content-Disposition", "attachment")
            self.set_header("Content-Security-Policy", "sandbox; default-src 'none'")
            self.set_header("Accept-Ranges", "bytes")
            self.set_header("Content-Length", str(end - start))
            if self.request.method != "HEAD":
                await self._stream(reader, start, end)
        self.finish()

    def _asked(self, size: int, tag: str) -> tuple[int, int]:
        headers = self.request.headers
        asked = None
        # Of a HEAD no range is asked (RFC 9110, 14.2), and none of a file that is not the one the client has begun.
        if self.request.method == "GET" and headers.get("If-Range", tag).strip() == tag:
            asked = byte_range(headers.get("Range"), size)
        if asked is None:
            return 0, size
        self.set_status(206)
        self.set_header("Content-Range", f"bytes {asked[0]}-{asked[1] - 1}/{size}")
        return asked

    async def _stream(self, reader: Reader, start: int, end: int) -> None:
        try:
            while start < end:
                block = await reader.read(start, min(BLOCK, end - start))
                if not block:
                    raise OSError("a file is shorter than it was")
                if self._room is not None:
                    self._room.wait()
                self.write(block)
                async with asyncio.timeout(STALL_SECONDS):
                    await self.flush()
                self.application.metrics.downloaded += len(block)
                start += len(block)
        except (StreamClosedError, TimeoutError, OSError) as error:
            # Half an answer can't become an error any more: the client sees that it got too little.
            if not isinstance(error, StreamClosedError):
                log.warning("download_broken", cause=type(error).__name__)
            self.request.connection.stream.close()  # type: ignore[union-attr]
