"""Requests and responses of ``/files`` (contract section 8)."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema
from typing_extensions import TypedDict

from config.tiers import Allowance, TierName
from handlers.wire.shapes import Hex256, Id, Shape, unb64
from models.database import Row

MAX_SIZE = 1 << 43  # 8 TiB: disks, S3 and 64-bit columns can store it, whatever a tier allows

_HEX = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


def _sha256(value: Any) -> Any:
    """Decode a SHA-256: hex as in sha256sum, or base64 as other binary values of this API."""
    digest = bytes.fromhex(value) if isinstance(value, str) and _HEX.fullmatch(value) else unb64(value)
    if len(digest) != 32:
        raise ValueError("a SHA-256 has 32 bytes: 64 hex digits, or base64")
    return digest


_FORMS = "64 hex digits, or base64 of 32 bytes"
Sha256 = Annotated[
    bytes,
    BeforeValidator(_sha256),
    WithJsonSchema({"type": "string", "pattern": "^([0-9a-fA-F]{64}|[A-Za-z0-9+/_-]{43}=?)$", "description": _FORMS}),
]
MediaType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$&^_.+-]{1,63}/[A-Za-z0-9!#$&^_.+-]{1,63}$")]


class NewFile(Shape):
    size: Annotated[int, Field(ge=1, le=MAX_SIZE, description="Bytes.")]
    sha256: Sha256
    media_type: Annotated[MediaType | None, Field(description="`type/subtype`.")] = None
    chat_id: Annotated[
        Id | None, Field(description="A chat in which you take part; its participants may read the file.")
    ] = None


class Announced(Shape):
    """The metadata of a tus upload that this server uses."""

    sha256: Sha256 | None = None
    media_type: MediaType | None = None
    chat_id: Id | None = None


class Signed(Shape):
    """The query of a URL that this server signed."""

    expires: Annotated[int, Field(ge=0, le=1 << 40)]
    signature: Hex256


class SignedReading(Signed):
    """The same for a download URL, which works while its reader may read the file."""

    reader: Id


# Responses ----------------------------------------------------------------------------------------------------------


class File(TypedDict):
    """``sha256`` is null while a resumable upload has announced none, ``expires_at`` is present until it is
    complete."""

    file_id: UUID
    owner_id: UUID
    chat_id: UUID | None
    size: int
    sha256: Hex256 | None
    media_type: str | None
    state: Literal["uploading", "complete"]
    created_at: datetime
    completed_at: datetime | None
    expires_at: NotRequired[datetime]


class Destination(TypedDict):
    """Where to upload the bytes. Send no token there."""

    method: str
    url: str
    headers: dict[str, str]
    expires_at: datetime


class Source(TypedDict):
    """Where to download the bytes. Send no token there."""

    url: str
    expires_at: datetime


class AnnouncedFile(TypedDict):
    file_id: UUID
    upload: Destination


class Usage(Allowance):
    """The space that the files use, and the limits. Unfinished files count with their announced size."""

    tier: TierName
    files: int
    used_bytes: int


def file(row: Row) -> File:
    """Return a file as its readers see it. Only the owner sees an unfinished one."""
    shown: File = {
        "file_id": row["id"],
        "owner_id": row["owner_id"],
        "chat_id": row["chat_id"],
        "size": row["size"],
        "sha256": row["sha256"].hex() if row["sha256"] else None,
        "media_type": row["media_type"],
        "state": row["state"],
        "created_at": row["created_at"],
        "completed_at": row["completed_at"],
    }
    return shown if row["state"] == "complete" else {**shown, "expires_at": row["expires_at"]}
