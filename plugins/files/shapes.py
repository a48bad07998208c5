"""What clients send to ``/files`` and get from there (contract section 8)."""

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

MAX_SIZE = 1 << 43  # 8 TiB: whatever a tier may allow, a number that a disk and S3 can hold

_HEX = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


def _sha256(value: Any) -> Any:
    """A SHA-256 as sha256sum writes it, in hex, or as binary values are written elsewhere here, in base64."""
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
    """What the metadata of a tus upload may say that means something here."""

    sha256: Sha256 | None = None
    media_type: MediaType | None = None
    chat_id: Id | None = None


class Signed(Shape):
    """The query of an address that was signed here."""

    expires: Annotated[int, Field(ge=0, le=1 << 40)]
    signature: Hex256


class SignedReading(Signed):
    """The same for an address to read from, which works while its reader may read the file."""

    reader: Id


# What they get ------------------------------------------------------------------------------------------------------


class File(TypedDict):
    """``sha256`` is null while a resumable upload has announced none, ``expires_at`` there while it is unfinished."""

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
    """Where the bytes go, without the token."""

    method: str
    url: str
    headers: dict[str, str]
    expires_at: datetime


class Source(TypedDict):
    """Where the bytes are, without the token."""

    url: str
    expires_at: datetime


class AnnouncedFile(TypedDict):
    file_id: UUID
    upload: Destination


class Usage(Allowance):
    """What ``files`` files take, unfinished ones as large as they are to become, and what they may."""

    tier: TierName
    files: int
    used_bytes: int


def file(row: Row) -> File:
    """A file as its readers see it. How far an upload has come is its owner's affair, and only they see one."""
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
