"""Users: accounts with their public Signal identity, profile and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import peewee
from peewee import fn

from models import tombstones
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
    sealed_chat_id = peewee.UUIDField(null=True)  # no foreign key field here: the chats' model imports this one

    class Meta:
        table_name = "users"


def named(public_id: str) -> peewee.Expression:
    """The condition for the user with this public id, in any case."""
    return fn.lower(User.public_id) == fn.lower(public_id)


class UserRotation(Table):
    """A part of an id from some letter to its end, a slash, and the part before: the index of the search. A trigger
    maintains it."""

    rotation = peewee.TextField(primary_key=True)

    class Meta:
        table_name = "user_rotations"


class NewUser(NamedTuple):
    """The columns that registration stores; keys raw, the password hashed."""

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
    """Insert an account. Returns its id. Raises Taken (``public_id`` or ``identity_key``)."""
    try:
        return await db.scalar(User.insert(**user._asdict()).returning(User.id))  # type: ignore[no-any-return]
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
    """The public keys of an account."""

    id: UUID
    public_id: str
    fingerprint: str
    identity_key: bytes
    signing_public_key: bytes
    registration_id: int


_IDENTITY = "SELECT id, public_id, fingerprint, identity_key, signing_public_key, registration_id FROM users"


async def identity(db: Database, user: UUID | str) -> Identity | None:
    """Return the identity of a user, by user id (a UUID) or public id."""
    if isinstance(user, UUID):
        return await identity_of(db, user)
    row = await db.row(f"{_IDENTITY} WHERE lower(public_id) = lower($1)", user)
    return Identity(*row) if row else None


async def identity_of(db: Database, user_id: UUID) -> Identity | None:
    row = await db.row(f"{_IDENTITY} WHERE id = $1", user_id)
    return Identity(*row) if row else None


async def identity_by_key(db: Database, identity_key: bytes) -> Identity | None:
    row = await db.row(f"{_IDENTITY} WHERE identity_key = $1", identity_key)
    return Identity(*row) if row else None


async def set_password(db: Database, user_id: UUID, password_hash: str, *, instead_of: str | None = None) -> bool:
    """Replace the hash if it still is ``instead_of`` (None: in any case)."""
    change = User.update(password_hash=password_hash, updated_at=fn.now()).where(User.id == user_id)
    if instead_of is not None:
        change = change.where(User.password_hash == instead_of)
    return await db.do(change) == 1


async def available(db: Database, public_id: str) -> bool:
    """True if no account has this public id, and no account with it was erased recently."""
    exists = await db.exists(User.select().where(named(public_id)))
    return not exists and not await tombstones.buried(db, [tombstones.of_name(public_id)])


async def delete(db: Database, user_id: UUID) -> bool:
    """Erase an account with its keys, sessions, contacts and reactions, in the caller's transaction. Data shared with
    others (calls, messages in groups) stays, without the user."""
    await tombstones.bury(db, user_id)
    return await db.do(User.delete().where(User.id == user_id)) == 1


class SettingsChange(NamedTuple):
    """A change to merge into a user's settings: keys to set and to remove, and the same for the keys of ``privacy``.

    ``clear`` removes all settings first; ``privacy`` is None if none of its keys changes.
    """

    clear: bool = False
    put: dict[str, Any] | None = None
    remove: Sequence[str] = ()
    privacy: dict[str, Any] | None = None
    privacy_remove: Sequence[str] = ()


_STRING = r"""'"(\\.|[^"\\])*"'"""  # SQL: a string of JSON, as a regular expression
_PRIVACY = "CASE jsonb_typeof(settings -> 'privacy') WHEN 'object' THEN settings -> 'privacy' ELSE '{}' END"
_MERGED = f"""(
    (CASE WHEN $2 THEN '{{}}' ELSE settings END - $3::text[]) || $4::jsonb
    || CASE WHEN $5::jsonb IS NULL THEN '{{}}'
       ELSE jsonb_build_object('privacy', (CASE WHEN $2 THEN '{{}}' ELSE {_PRIVACY} END - $6::text[]) || $5::jsonb) END
)"""
# The length of JSON without the spaces that PostgreSQL writes between its parts: those outside of strings.
_LENGTH = f"""octet_length({_MERGED}::text) - regexp_count(regexp_replace({_MERGED}::text, {_STRING}, '', 'g'), ' ')"""


async def update(
    db: Database, user_id: UUID, columns: Mapping[str, Any], settings: SettingsChange | None, at_most: int
) -> bool:
    """Set columns of a profile, and merge settings into the present ones, in one statement.

    False if the account is gone, or its settings would have more than ``at_most`` bytes of JSON.
    """
    change = settings or SettingsChange()
    assigned = "".join(f", {User._meta.fields[name].column_name} = ${place}" for place, name in enumerate(columns, 8))
    changed = await db.execute(
        f"""UPDATE users SET settings = {_MERGED}, updated_at = now(){assigned}
            WHERE id = $1 AND (settings = {_MERGED} OR {_LENGTH} <= $7)""",
        user_id,
        change.clear,
        list(change.remove),
        change.put or {},
        change.privacy,
        list(change.privacy_remove),
        at_most,
        *columns.values(),
    )
    return changed == 1
