"""Headers of tus, the protocol for resumable uploads, parsed strictly (tus.io/protocols/resumable-upload, 1.0.0)."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Annotated, Literal

from pydantic import Field

from handlers.wire.errors import Fault, InvalidRequest
from handlers.wire.operations import Header
from plugins.files import shapes
from plugins.files.incoming import ALGORITHMS as ALGORITHMS
from plugins.files.incoming import Checksum

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,termination,expiration"
BODY = "application/offset+octet-stream"

RESUMABLE = Header("Tus-Resumable", "The version.", Literal["1.0.0"], required=True)
LENGTH = Header("Upload-Length", "File size in bytes.", Annotated[int, Field(ge=1, le=shapes.MAX_SIZE)], required=True)
OFFSET = Header("Upload-Offset", "Bytes that the server has received.", Annotated[int, Field(ge=0)], required=True)
METADATA = Header(
    "Upload-Metadata",
    "Pairs of a key and base64, at most 4,096 characters; `sha256`, `chat_id` and `media_type` (or `filetype`) are"
    " those of `POST /files`.",
)
CHECKSUM = Header(
    "Upload-Checksum",
    "An algorithm, and base64 of its hash of this request's bytes.",
    Annotated[str, Field(pattern=r"^(sha1|sha256|md5) ([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")],
)
EXPIRES = Header("Upload-Expires", "When an unfinished upload is deleted; an HTTP date.")
LOCATION = Header("Location", "The URL of the upload.", required=True)
SPOKEN = (
    Header("Tus-Version", "The supported versions.", required=True),
    Header("Tus-Extension", "The supported extensions.", required=True),
    Header("Tus-Max-Size", "The largest file that any tier allows, in bytes.", int, required=True),
    Header("Tus-Checksum-Algorithm", "The supported algorithms for `Upload-Checksum`.", required=True),
)
SENT = (*(header.name for header in (RESUMABLE, LENGTH, OFFSET, METADATA, CHECKSUM)), "X-HTTP-Method-Override")
SHOWN = tuple(header.name for header in (LOCATION, RESUMABLE, *SPOKEN, OFFSET, LENGTH, METADATA, EXPIRES))

MAX_METADATA = 4096  # characters; stored for as long as the upload lasts

_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+", re.ASCII)


def _bad(header: str, issue: str) -> InvalidRequest:
    return InvalidRequest("Some headers are not valid.", details=[Fault(header, issue)])


def number(header: str, value: str | None) -> int:
    """Parse a number of bytes from a header. Raises InvalidRequest."""
    if value is None or not _NUMBER.fullmatch(value):
        raise _bad(header, "must be a number of bytes")
    return int(value)


def length(value: str | None) -> int:
    """Parse Upload-Length; an encrypted file is never empty. Raises InvalidRequest."""
    size = number("Upload-Length", value)
    if not 1 <= size <= shapes.MAX_SIZE:
        raise _bad("Upload-Length", f"must be 1 to {shapes.MAX_SIZE}")
    return size


def metadata(value: str | None) -> shapes.Announced:
    """Parse Upload-Metadata: ``sha256``, ``chat_id``, ``media_type`` (or ``filetype``, which tus clients send). Names
    of files are ignored. Raises InvalidRequest, ValidationError."""
    pairs: dict[str, bytes] = {}
    if value is not None and len(value) > MAX_METADATA:
        raise _bad("Upload-Metadata", f"longer than {MAX_METADATA} characters")
    for pair in filter(None, (part.strip() for part in (value or "").split(","))):
        key, _, encoded = pair.partition(" ")
        if not _KEY.fullmatch(key) or key in pairs:
            raise _bad("Upload-Metadata", "keys must be visible ASCII without a comma, each once")
        try:
            pairs[key] = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            raise _bad("Upload-Metadata", "values must be base64") from None
    fields = {name: pairs[name].decode("utf-8", "replace") for name in pairs}
    announced = shapes.Announced.model_validate(fields)
    if announced.media_type is None:
        kind = fields.get("filetype", "")  # the browser's media type of the file, or empty
        if re.fullmatch(r"[\w.+-]{1,63}/[\w.+-]{1,63}", kind, re.ASCII):
            announced = announced.model_copy(update={"media_type": kind})
    return announced


def checksum(value: str | None) -> Checksum | None:
    """Parse Upload-Checksum. Raises InvalidRequest."""
    if value is None:
        return None
    algorithm, _, encoded = value.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise _bad("Upload-Checksum", f"the algorithm must be one of {', '.join(ALGORITHMS)}")
    try:
        return Checksum(algorithm, base64.b64decode(encoded.strip(), validate=True))
    except (binascii.Error, ValueError):
        raise _bad("Upload-Checksum", "the checksum must be base64") from None


def moment(value: datetime) -> str:
    """Format a time as an HTTP date."""
    return format_datetime(value.astimezone(UTC), usegmt=True)
