"""Files: their owners and readers, the progress of uploads, and the space that users have."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
import peewee
from peewee import Tuple, fn

from models.chats.tables import ChatThread
from models.database import Database, Enum, Row, Special, Table, any_of, in_sql, returned
from models.storage import PendingUpload, Progress
from models.sweeps import Due
from models.users import User


class File(Table):
    id = peewee.UUIDField(primary_key=True)
    owner = peewee.ForeignKeyField(User, on_delete="CASCADE")
    chat = peewee.ForeignKeyField(ChatThread, null=True, on_delete="SET NULL")
    size = peewee.BigIntegerField()
    sha256 = peewee.BlobField(null=True)
    media_type = peewee.TextField(null=True)
    storage_key = peewee.TextField(unique=True)
    state = Enum("file_state", default="uploading")
    created_at = peewee.DateTimeField()
    completed_at = peewee.DateTimeField(null=True)
    expires_at = peewee.DateTimeField(null=True)
    resumable = peewee.BooleanField()
    received = peewee.BigIntegerField(default=0)
    received_sha256 = peewee.BlobField(null=True)
    upload_metadata = peewee.TextField(null=True)
    part_size = peewee.BigIntegerField(default=0)
    upload_id = peewee.TextField(null=True)
    part_etags = Special("text[]")

    class Meta:
        table_name = "files"


class FileUsage(Table):
    """The space that a user's files use."""

    user = peewee.ForeignKeyField(User, primary_key=True, on_delete="CASCADE")
    bytes = peewee.BigIntegerField()
    files = peewee.BigIntegerField()

    class Meta:
        table_name = "file_usage"


class FileRemoval(Table):
    """Bytes to remove from the storage."""

    storage_key = peewee.TextField(primary_key=True)
    upload_id = peewee.TextField(null=True)
    due_at = peewee.DateTimeField()

    class Meta:
        table_name = "file_removals"


class NewFile(NamedTuple):
    """A file to upload."""

    owner_id: UUID
    chat_id: UUID | None
    size: int
    sha256: bytes | None
    media_type: str | None
    storage_key: str
    resumable: bool
    part_size: int = 0
    upload_metadata: str | None = None


class Removal(NamedTuple):
    storage_key: str
    upload_id: str | None
    sweep_key: str = ""  # the key in the form of ``sweep_failures``


# All columns of a file.
_COLUMNS = returned(*File._meta.sorted_fields)
_ALL = in_sql(File._meta.sorted_fields, "f")

_RESERVE = f"""
WITH room AS (
    INSERT INTO file_usage AS used (user_id, bytes, files) SELECT $1::uuid, $3::bigint, 1 WHERE $3 <= $10::bigint
    ON CONFLICT (user_id) DO UPDATE SET bytes = used.bytes + excluded.bytes, files = used.files + 1
    WHERE used.bytes + excluded.bytes <= $10
    RETURNING 1
)
INSERT INTO files AS f (owner_id, chat_id, size, sha256, media_type, storage_key, resumable, part_size, upload_metadata)
SELECT $1, $2::uuid, $3, $4::bytea, $5::text, $6::text, $7::boolean, $8::bigint, $9::text FROM room RETURNING {_ALL}
"""


class Gone(Exception):
    """The account or the chat was deleted a moment ago."""


async def reserve(db: Database, file: NewFile, limit: int) -> Row | None:
    """Insert a file and count its size against the ``limit`` bytes of its owner; None if that is exceeded. Raises
    Gone."""
    try:
        return await db.row(_RESERVE, *file, limit)
    except asyncpg.ForeignKeyViolationError:
        raise Gone from None


async def usage(db: Database, user_id: UUID) -> tuple[int, int]:
    """Return how many bytes a user's files use, and how many files there are."""
    row = await db.one(FileUsage.select(FileUsage.bytes, FileUsage.files).where(FileUsage.user == user_id))
    return (row["bytes"], row["files"]) if row else (0, 0)


# Who may read a complete file now: its owner, members of its chat, and all users while it is an avatar.
_MAY_READ = f"""
SELECT {_ALL} FROM files f WHERE f.id = $1 AND (f.owner_id = $2 OR f.state = 'complete' AND (
    EXISTS (SELECT 1 FROM chat_participants p JOIN chat_threads t ON t.id = p.chat_id
            WHERE p.chat_id = f.chat_id AND p.user_id = $2 AND NOT p.concealed AND t.deleted_at IS NULL)
    OR EXISTS (SELECT 1 FROM users u WHERE u.id = f.owner_id AND u.avatar_url = '/files/' || f.id || '/content')))
"""


async def readable(db: Database, file_id: UUID, reader: UUID) -> Row | None:
    """Return a file if the reader may read it now, else None."""
    return await db.row(_MAY_READ, file_id, reader)


async def entries(db: Database, owner: UUID, limit: int, before: tuple[datetime, UUID] | None = None) -> list[Row]:
    """Return a user's own files, the newest first."""
    page = File.select(*_COLUMNS).where(File.owner == owner)
    page = page.order_by(File.created_at.desc(), File.id.desc()).limit(limit)
    if before:
        page = page.where(Tuple(File.created_at, File.id) < before)
    return await db.rows(page)


async def unfinished(db: Database, file_id: UUID) -> Row | None:
    """Return a file that is being uploaded and hasn't expired."""
    return await db.one(
        File.select(*_COLUMNS).where(File.id == file_id, File.state == "uploading", File.expires_at > fn.now())
    )


async def owned(db: Database, file_id: UUID, owner: UUID, *, resumable: bool | None = None) -> Row | None:
    """Return a file of that owner, unless its upload has expired."""
    file = File.select(*_COLUMNS).where(
        File.id == file_id, File.owner == owner, File.expires_at.is_null() | (File.expires_at > fn.now())
    )
    if resumable is not None:
        file = file.where(File.resumable == resumable)
    return await db.one(file)


async def give_to_chat(db: Database, file_id: UUID, owner: UUID, chat_id: UUID) -> bool:
    """Attach a complete file of that owner to a chat, so that its participants may read it. False if there is no such
    file, or it belongs to another chat."""
    attach = File.update(chat=chat_id).where(
        File.id == file_id,
        File.owner == owner,
        File.state == "complete",
        File.chat.is_null() | (File.chat == chat_id),
    )
    return await db.do(attach) == 1


def pending_upload(row: Row) -> PendingUpload:
    """Return a file's upload as the storage needs it."""
    return PendingUpload(
        row["storage_key"],
        row["size"],
        row["resumable"],
        row["received"],
        row["part_size"],
        row["upload_id"],
        tuple(row["part_etags"]),
    )


async def begin(db: Database, file_id: UUID, upload_id: str) -> bool:
    """Store the storage's id of an upload; False if the file has one already."""
    change = File.update(upload_id=upload_id).where(
        File.id == file_id, File.state == "uploading", File.upload_id.is_null()
    )
    return await db.do(change) == 1


async def note(db: Database, file_id: UUID, since: int, progress: Progress, sha256: bytes | None = None) -> bool:
    """Store the progress of an upload, if it was at ``since`` until now."""
    change = File.update(received=progress.received, part_etags=list(progress.etags), received_sha256=sha256).where(
        File.id == file_id, File.received == since, File.state == "uploading", File.expires_at > fn.now()
    )
    return await db.do(change) == 1


async def complete(db: Database, file_id: UUID, sha256: bytes) -> Row | None:
    """Mark a file as complete and checked; None if it is gone, or was completed before."""
    return await db.one(
        File.update(
            state="complete",
            sha256=sha256,
            received=File.size,
            completed_at=fn.now(),
            expires_at=None,
            upload_metadata=None,
            upload_id=None,
            part_etags=[],
        )
        .where(File.id == file_id, File.state == "uploading", File.sha256.is_null() | (File.sha256 == sha256))
        .returning(*_COLUMNS)
    )


async def delete(db: Database, file_id: UUID, owner: UUID) -> Removal | None:
    """Delete a file of that owner, and release its space; the caller has to remove its bytes."""
    row = await db.row(
        """WITH unworn AS (
               UPDATE users SET avatar_url = NULL WHERE id = $2 AND avatar_url = '/files/' || $1::uuid || '/content'
           )
           DELETE FROM files WHERE id = $1 AND owner_id = $2 RETURNING storage_key, upload_id""",
        file_id,
        owner,
    )
    return Removal(*row) if row else None


UNFINISHED = Due("unfinished_uploads", "id", "files WHERE expires_at < now()", "expires_at")
REMOVALS = Due("file_removals", "storage_key", "file_removals WHERE due_at <= now()", "due_at")


async def expire(db: Database, batch: int = 1000) -> int:
    """Delete at most ``batch`` uploads that expired before they were finished. Returns how many."""
    return await db.execute(f"DELETE FROM files WHERE id IN ({UNFINISHED.batch})", batch)


async def removals(db: Database, batch: int) -> list[Removal]:
    """Claim bytes that are due to be removed: no other server or script gets them for the next five minutes."""
    rows = await db.fetch(
        f"""UPDATE file_removals SET due_at = now() + interval '5 minutes' WHERE storage_key IN ({REMOVALS.batch})
            RETURNING storage_key, upload_id, ROW(storage_key)::text""",
        batch,
    )
    return [Removal(*row) for row in rows]


async def removed(db: Database, keys: Sequence[str]) -> None:
    """Delete the removals of bytes that are gone."""
    await db.do(FileRemoval.delete().where(any_of(FileRemoval.storage_key, keys)))


async def removed_at_once(db: Database, key: str) -> None:
    """Delete the removal of bytes that are gone; not if the file was being uploaded: then more may arrive."""
    await db.do(FileRemoval.delete().where(FileRemoval.storage_key == key, FileRemoval.due_at <= fn.now()))


async def waiting(db: Database) -> int:
    """Return how many files' bytes are due to be removed."""
    due: int = await db.scalar(
        FileRemoval.select(fn.count(FileRemoval.storage_key)).where(FileRemoval.due_at <= fn.now())
    )
    return due
