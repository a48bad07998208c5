"""Users: accounts with their public Signal identity, profile and settings."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import peewee

from models.database import JSONB, Database, Table


class User(Table):
    id = peewee.UUIDField(primary_key=True)
    public_id = peewee.TextField()
    password_hash = peewee.TextField()
    identity_key = peewee.BlobField(unique=True)
    signing_public_key = peewee.BlobField()
    registration_id = peewee.IntegerField()
    fingerprint = peewee.TextField(unique=True)
    display_name = peewee.TextField(null=True)
    bio = peewee.TextField(null=True)
    avatar_url = peewee.TextField(null=True)
    language = peewee.TextField(null=True)
    settings = JSONB()
    is_online = peewee.BooleanField(default=False)
    last_seen = peewee.DateTimeField(null=True)
    created_at = peewee.DateTimeField()
    updated_at = peewee.DateTimeField()
    suspended_at = peewee.DateTimeField(null=True)
    sealed_access_key = peewee.BlobField(null=True)
    sealed_chat_id = peewee.UUIDField(null=True)  # no field of peewee's for it: chats know users

    class Meta:
        table_name = "users"


class UserRotation(Table):
    """A part of an id from some letter to its end, a slash, and what comes before: what search looks through. The
    database keeps it itself."""

    rotation = peewee.TextField(primary_key=True)

    class Meta:
        table_name = "user_rotations"


class NewUser(NamedTuple):
    """What registration stores of an account; keys raw, the password hashed."""

    public_id: str
    password_hash: str
    identity_key: bytes
    signing_public_key: bytes
    registration_id: int
    fingerprint: str
    display_name: str | None
    language: str | None


class Taken(Exception):
    """A unique column already has that value; ``field`` is its name."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


async def create(db: Database, user: NewUser) -> UUID:
    """Insert an account; its id. Raises Taken (``public_id`` or ``identity_key``)."""
    try:
        return await db.value(  # type: ignore[no-any-return]
            """INSERT INTO users (public_id, password_hash, identity_key, signing_public_key, registration_id,
                                  fingerprint, display_name, language)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id""",
            *user,
        )
    except asyncpg.UniqueViolationError as error:
        raise Taken("public_id" if error.constraint_name == "users_public_id_key" else "identity_key") from None


class Credentials(NamedTuple):
    id: UUID
    public_id: str
    fingerprint: str
    password_hash: str


_CREDENTIALS = "SELECT id, public_id, fingerprint, password_hash FROM users"


async def credentials(db: Database, public_id: str) -> Credentials | None:
    row = await db.row(f"{_CREDENTIALS} WHERE lower(public_id) = lower($1)", public_id)
    return Credentials(*row) if row else None


async def credentials_of(db: Database, user_id: UUID) -> Credentials | None:
    row = await db.row(f"{_CREDENTIALS} WHERE id = $1", user_id)
    return Credentials(*row) if row else None


class Identity(NamedTuple):
    """The public keys that an account proves itself by."""

    id: UUID
    public_id: str
    fingerprint: str
    identity_key: bytes
    signing_public_key: bytes
    registration_id: int


_IDENTITY = "SELECT id, public_id, fingerprint, identity_key, signing_public_key, registration_id FROM users"


async def identity(db: Database, public_id: str) -> Identity | None:
    row = await db.row(f"{_IDENTITY} WHERE lower(public_id) = lower($1)", public_id)
    return Identity(*row) if row else None


async def identity_of(db: Database, user_id: UUID) -> Identity | None:
    row = await db.row(f"{_IDENTITY} WHERE id = $1", user_id)
    return Identity(*row) if row else None


async def identity_by_key(db: Database, identity_key: bytes) -> Identity | None:
    row = await db.row(f"{_IDENTITY} WHERE identity_key = $1", identity_key)
    return Identity(*row) if row else None


async def set_password(db: Database, user_id: UUID, password_hash: str, *, instead_of: str | None = None) -> bool:
    """Replace the hash, where it is still ``instead_of`` (any when None)."""
    return (
        await db.execute(
            "UPDATE users SET password_hash = $2, updated_at = now()"
            " WHERE id = $1 AND ($3::text IS NULL OR password_hash = $3)",
            user_id,
            password_hash,
            instead_of,
        )
        == 1
    )


async def delete(db: Database, user_id: UUID) -> bool:
    """Erase an account. What is its own goes with it (keys, sessions, contacts, reactions); what others share with it
    (calls, messages in groups) stays without its name."""
    return await db.execute("DELETE FROM users WHERE id = $1", user_id) == 1


async def update(db: Database, user_id: UUID, changes: dict[str, Any]) -> bool:
    """Set the given columns. False when the account is gone."""
    query = User.update({**changes, "updated_at": peewee.fn.now()}).where(User.id == user_id)
    return bool(await db.run(query))
