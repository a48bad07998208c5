"""Accounts for a benchmark: rows and tokens made directly, since registering over HTTP would hash each password."""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from uuid import uuid4

import asyncpg

from config.keyring import Keyring
from handlers.tokens import Tokens
from tests.running import Place

COLUMNS = (
    "id",
    "public_id",
    "password_hash",
    "identity_key",
    "signing_public_key",
    "registration_id",
    "fingerprint",
    "display_name",
    "bio",
    "avatar_url",
    "language",
)


@dataclass(frozen=True)
class User:
    user_id: str
    public_id: str
    token: str


async def create(place: Place, count: int, prefix: str) -> list[User]:
    """So many accounts, each with a token that lives an hour. A token's session needs no row to be believed."""
    tokens = Tokens(Keyring([place.environment["JWT_SECRET"]]), 3600)
    users, rows = [], []
    for number in range(count):
        user_id, public_id, identity = uuid4(), f"{prefix}_{number:05}", os.urandom(32)
        fingerprint = hashlib.sha256(identity).hexdigest()
        users.append(User(str(user_id), public_id, tokens.issue(user_id, uuid4(), public_id, fingerprint)))
        rows.append(
            (
                user_id,
                public_id,
                "-",
                identity,
                os.urandom(32),
                number,
                fingerprint,
                f"Bench User {number}",
                "Somebody who exists to be looked up.",
                f"https://cdn.example.org/avatars/{number:05}.webp",
                "en",
            )
        )
    connection = await asyncpg.connect(place.dsn)
    try:
        await connection.copy_records_to_table("users", records=rows, columns=COLUMNS)
        await connection.execute("ANALYZE users")
    finally:
        await connection.close()
    return users


def payload(size: int) -> str:
    """Opaque bytes as base64 text of about ``size`` characters."""
    return base64.b64encode(os.urandom(size * 3 // 4)).decode()
