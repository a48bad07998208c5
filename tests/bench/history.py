"""A history: a database with as many users, chats and messages as one wants, filled by SQL.

Ordinary users are in four direct chats of 45 messages each, and 200 of them in a group that has a tenth of all
messages. Beside them three users take part in 10, 100 and 1,000 direct chats, in each of which 5 messages are unread.
Messages lie in the table as they would have come: in every chat one, then in every chat the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import asyncpg

from config.keyring import Keyring
from handlers.tokens import Tokens
from tests.bench.users import User
from tests.running import Place

ROUNDS = 45  # messages of a direct chat
UNREAD = 5  # of those by the three, the last ones of each chat
BUSY = (10, 100, 1_000)  # chats of the three
GROUP = 200  # members of the group
TABLES = ("chat_threads", "chat_participants", "chat_events", "messages")

_USERS = """
INSERT INTO users (id, public_id, password_hash, identity_key, signing_public_key, registration_id, fingerprint,
                   display_name)
SELECT md5('user' || n)::uuid, 'grown_' || n, '-', sha256(n::text::bytea), sha256('s'), 1,
       encode(sha256(n::text::bytea), 'hex'), 'Grown ' || n
FROM generate_series(0, $1::int - 1) AS n
"""
# Who is `a` made the chat. The group is number 0, the chats of the three come after all others.
_PLAN = """
CREATE TEMPORARY TABLE plan AS
SELECT n, md5('chat' || n)::uuid AS id, md5('user' || a)::uuid AS a, md5('user' || b)::uuid AS b, busy
FROM (
    SELECT 1 + n AS n, n % users AS a, (n % users + 1 + 17 * (n / users)) % users AS b, false AS busy
    FROM (SELECT $1::int AS users) AS u, generate_series(0, 2 * users - 1) AS n
    UNION ALL
    SELECT 1 + 2 * $1 + 1000 * place + other, $1 + place - 1, other, true
    FROM unnest($2::int[]) WITH ORDINALITY AS busy (chats, place), generate_series(0, chats - 1) AS other
) AS pairs
"""
_CHATS = """
INSERT INTO chat_threads (id, type, title, created_by, last_seq, last_number, last_position, participant_count, pair,
                          created_at, updated_at)
SELECT id, 'direct'::chat_type, NULL, a, $1 + 1, $1, $1, 2, sha256(id::text::bytea),
       now() - interval '90 days', now() - (n % 86400) * interval '1 second'
FROM plan
UNION ALL
SELECT md5('chat0')::uuid, 'group', 'Grown', md5('user0')::uuid, $2 + 1, $2, $2, $3, NULL,
       now() - interval '90 days', now()
"""
_PARTICIPANTS = """
INSERT INTO chat_participants (chat_id, user_id, role, read_seq, read_number, delivered_seq)
SELECT id, user_id, (CASE WHEN user_id = a THEN 'owner' ELSE 'member' END)::participant_role, $1 + 1 - unread,
       $1 - unread, $1 + 1
FROM plan, unnest(ARRAY[a, b]) AS user_id,
     LATERAL (SELECT CASE WHEN busy AND user_id = a THEN $4 ELSE 0 END) AS u (unread)
UNION ALL
SELECT md5('chat0')::uuid, md5('user' || n)::uuid, (CASE n WHEN 0 THEN 'owner' ELSE 'member' END)::participant_role,
       $2 + 1, $2, $2 + 1
FROM generate_series(0, $3 - 1) AS n
"""
_EVENTS = """
INSERT INTO chat_events (chat_id, seq, position, type, user_id, created_at)
SELECT id, 1, 1, 'chat_created'::chat_event_type, a, now() - interval '90 days' FROM plan
UNION ALL
SELECT md5('chat0')::uuid, 1, 1, 'chat_created', md5('user0')::uuid, now() - interval '90 days'
"""
_MESSAGES = """
INSERT INTO messages (id, chat_id, sender_id, client_id, encrypted_payload, payload_hash, message_type, seq, number,
                      position, created_at)
SELECT md5('message' || n || '/' || number)::uuid, id, sender, md5('client' || n || '/' || number)::uuid, $5, 1, 'text',
       number + 1, number, number, now() - ($4::int + 1 - $1::int) * interval '2 days'
FROM (
    SELECT n, id, CASE WHEN $1::int % 2 = 0 OR $1 > $4::int - $6::int THEN b ELSE a END AS sender, $1::bigint AS number
    FROM plan
    UNION ALL
    SELECT 0, md5('chat0')::uuid, md5('user' || number % $7::int)::uuid, number
    FROM generate_series($2::bigint, $3::bigint) AS number
) AS come
"""


@dataclass(frozen=True)
class History:
    """What was filled in."""

    users: int
    chats: int
    messages: int
    group_messages: int
    place: Place

    def user(self, number: int) -> User:
        """An ordinary user by number; those of ``busy`` come after the last one."""
        user_id = UUID(hashlib.md5(f"user{number}".encode()).hexdigest())
        fingerprint = hashlib.sha256(str(number).encode()).hexdigest()
        tokens = Tokens(Keyring([self.place.environment["JWT_SECRET"]]), 4 * 3600)
        name = f"grown_{number}"
        return User(str(user_id), name, tokens.issue(user_id, uuid4(), name, fingerprint))

    def busy(self, chats: int) -> User:
        return self.user(self.users + BUSY.index(chats))

    def chat(self, number: int) -> str:
        """A chat's id; 0 is the group, and ordinary user n made number n + 1."""
        return str(UUID(hashlib.md5(f"chat{number}".encode()).hexdigest()))

    def chat_of_busy(self, chats: int, other: int) -> str:
        """The chat of one of the three with an ordinary user."""
        return self.chat(1 + 2 * self.users + 1000 * (1 + BUSY.index(chats)) + other)


async def fill(place: Place, messages: int) -> History:
    """So many messages, and some 50,000 of the three; not fewer than 1,000 ordinary users write."""
    group = messages // 10
    users = max(BUSY[-1], (messages - group) // ROUNDS // 2)
    messages = group + 2 * users * ROUNDS
    started = time.monotonic()
    connection = await asyncpg.connect(place.dsn)
    try:
        await connection.execute("SET maintenance_work_mem = '1GB'")
        await connection.execute("ALTER TABLE users DISABLE TRIGGER USER")  # the search has no part in this
        await connection.execute(_USERS, users + len(BUSY))
        await connection.execute("ALTER TABLE users ENABLE TRIGGER USER")
        await connection.execute(_PLAN, users, list(BUSY))
        async with _bare(connection):
            await connection.execute(_CHATS, ROUNDS, group, GROUP)
            await connection.execute(_PARTICIPANTS, ROUNDS, group, GROUP, UNREAD)
            await connection.execute(_EVENTS)
            content = bytes(300)
            for each in range(1, ROUNDS + 1):
                first, last = group * (each - 1) // ROUNDS + 1, group * each // ROUNDS
                await connection.execute(_MESSAGES, each, first, last, ROUNDS, content, UNREAD, GROUP)
        chats = await connection.fetchval("SELECT count(*) FROM plan")
        await connection.execute("DROP TABLE plan")
        # What autovacuum would have done by now: statistics, and the marks by which an index is read without its table.
        await connection.execute("VACUUM (ANALYZE)")
    finally:
        await connection.close()
    print(f"{messages:,} messages in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return History(users, chats + 1, messages, group, place)


@contextlib.asynccontextmanager
async def _bare(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Without keys and indexes while the block lasts: made at the end, they take a tenth of the time."""
    keys = await connection.fetch(
        """SELECT conrelid::regclass::text AS owner, quote_ident(conname) AS name, pg_get_constraintdef(oid) AS text,
                  contype = 'f' AS foreign
           FROM pg_constraint
           WHERE contype IN ('f', 'p', 'u') AND (conrelid = ANY ($1::regclass[]) OR confrelid = ANY ($1::regclass[]))
           ORDER BY contype = 'f'""",
        list(TABLES),
    )
    indexes = await connection.fetch(
        """SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS text FROM pg_index
           WHERE indrelid = ANY ($1::regclass[])
             AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u'))""",
        list(TABLES),
    )
    for key in reversed(keys):
        await connection.execute(f"ALTER TABLE {key['owner']} DROP CONSTRAINT {key['name']}")
    for index in indexes:
        await connection.execute(f"DROP INDEX {index['name']}")
    yield
    for index in indexes:
        await connection.execute(index["text"])
    for key in keys:
        unchecked = " NOT VALID" if key["foreign"] else ""
        await connection.execute(f"ALTER TABLE {key['owner']} ADD CONSTRAINT {key['name']} {key['text']}{unchecked}")
