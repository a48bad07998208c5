"""Downloads: opaque bytes with ranges, tags and bounded memory, in a form that no browser executes (RFC 9110)."""

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
from handlers.wire.operations import Answer, Header

log = structlog.get_logger(__name__)

BLOCK = 128 * 1024  # bytes of a download in memory
STALL_SECONDS = 30  # for one block; slower than 4 KiB/s counts as disconnected

REQUEST_HEADERS = (
    Header("Range", "One range of bytes. The server ignores several ranges and invalid ones."),
    Header("If-None-Match", "The tags of copies that you have."),
    Header("If-Range", "The tag of the copy that you are resuming. If it is another one, you receive the whole file."),
)
ETAG_HEADERS = (Header("ETag", "The tag of these bytes.", required=True),)
NOT_MODIFIED = Answer(words="Not modified: `If-None-Match` has its ETag.", headers=ETAG_HEADERS)
FILE_HEADERS = (*ETAG_HEADERS, Header("Accept-Ranges", "`bytes`", required=True))
PART_HEADERS = (*FILE_HEADERS, Header("Content-Range", "Which bytes, of how many in all.", required=True))

_RANGE = re.compile(r"bytes=[ \t]*(?:(\d+)-(\d*)|-(\d+))[ \t]*", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


class RangeNotSatisfiable(ApiError):
    """A range beyond the file."""

    status, code, message = 416, "range_not_satisfiable", "The range is outside the file."
    sends = ("Content-Range",)

    def __init__(self, size: int) -> None:
        super().__init__(headers={"Content-Range": f"bytes */{size}"})


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Parse a Range header into start and end (exclusive). Returns None if it is to be ignored: no header, another
    unit, several ranges, or an invalid one. Raises RangeNotSatisfiable."""
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
    # Only the first digits: int() rejects thousands of them, and 19 are beyond any size.
    return int(digits.lstrip("0")[:19] or 0) if digits else None


def matches_tag(header: str | None, tag: str) -> bool:
    """True if an If-None-Match header contains the tag, or is ``*``."""
    if header is None:
        return False
    return header.strip() == "*" or tag in _TAG.findall(header)


class Reader(Protocol):
    """An open file."""

    async def read(self, start: int, length: int) -> bytes:
        """Return ``length`` bytes, or fewer at the end of the file."""


class DownloadHandler(ApiHandler):
    """An endpoint that answers with opaque bytes."""

    slow = float("inf")  # its time depends on the client
    cors_request_headers = tuple(header.name for header in REQUEST_HEADERS)
    cors_response_headers = tuple(header.name for header in PART_HEADERS)

    def reply_not_modified(self, tag: str) -> bool:
        """Set the headers of the tag. Returns True if the client has this version, and was answered with 304."""
        self.set_header("ETag", tag)
        self.set_header(
            "Cache-Control", "private, no-cache"
        )  # clients revalidate each time, because access may have ended
        if not matches_tag(self.request.headers.get("If-None-Match"), tag):
            return False
        self.set_status(304)
        self.clear_header("Content-Type")
        self.finish()
        return True

    async def send(
        self, opened: AbstractAsyncContextManager[Reader], size: int, tag: str, account: Hashable = None
    ) -> None:
        """Send the whole file (200), the requested range (206), or only the headers (HEAD). A client that does not
        receive a block within STALL_SECONDS is disconnected. ``account`` is the reader if there is no token. Raises
        RangeNotSatisfiable and Unavailable."""
        start, end = self._choose_range(size, tag)
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

    def _choose_range(self, size: int, tag: str) -> tuple[int, int]:
        headers = self.request.headers
        asked = None
        # Ranges are ignored for HEAD (RFC 9110, 14.2), and if the client is resuming another version of the file.
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
                if self._reservation is not None:
                    self._reservation.start_waiting()
                self.write(block)
                async with asyncio.timeout(STALL_SECONDS):
                    await self.flush()
                self.application.metrics.downloaded += len(block)
                start += len(block)
        except (StreamClosedError, TimeoutError, OSError) as error:
            # A begun answer can't become an error: the client sees that bytes are missing.
            if not isinstance(error, StreamClosedError):
                log.warning("download_broken", cause=type(error).__name__)
            self.request.connection.stream.close()  # type: ignore[union-attr]
