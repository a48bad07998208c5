"""Chats: making, changing and ending them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from models.changes import Change, Event
from models.database import Database
from models.threads import ChatThread


class NewChat(NamedTuple):
    """What makes a chat; ``others`` are its participants besides the owner."""

    type: str
    title: str | None
    avatar_url: str | None
    settings: Mapping[str, Any]
    others: Sequence[UUID]


def _pair(one: UUID, other: UUID) -> bytes:
    low, high = sorted((one.bytes, other.bytes))
    return hashlib.sha256(low + high).digest()


async def renew_pair(db: Database, one: UUID, other: UUID) -> None:
    """One of two has blocked the other, or takes it back: that changes who may write in the chats of these two."""
    await db.execute(
        """UPDATE chat_threads SET access = access + 1 WHERE id IN (
               SELECT t.id FROM chat_participants mine
               JOIN chat_participants theirs ON theirs.chat_id = mine.chat_id AND theirs.user_id = $2
               JOIN chat_threads t ON t.id = mine.chat_id AND t.type IN ('direct', 'secret') AND t.deleted_at IS NULL
               WHERE mine.user_id = $1 ORDER BY t.id FOR NO KEY UPDATE OF t)""",
        one,
        other,
    )


async def create(db: Database, owner: UUID, chat: NewChat) -> tuple[UUID, int, Event | None]:
    """Make a chat; its id, its access, and the event. No event when it is a direct chat that the two have already."""
    pair = _pair(owner, chat.others[0]) if chat.type == "direct" else None
    people = [owner, *chat.others]
    async with db.transaction():
        # All of them before the chat refers to one, and in the order of their ids, as an erasure locks them.
        await db.execute("SELECT 1 FROM users WHERE id = ANY ($1::uuid[]) ORDER BY id FOR KEY SHARE", people)
        # Rounds: the one that is there may be deleted between the two statements.
        for _ in range(5):
            chat_id = await db.value(
                """INSERT INTO chat_threads (type, title, avatar_url, created_by, settings, pair, participant_count)
                   VALUES ($1::text::chat_type, $2, $3, $4, $5, $6, $7)
                   ON CONFLICT (pair) WHERE deleted_at IS NULL DO NOTHING RETURNING id""",
                chat.type,
                chat.title,
                chat.avatar_url,
                owner,
                dict(chat.settings),
                pair,
                1 + len(chat.others),
            )
            if chat_id is not None:
                break
            found = await db.row("SELECT id, access FROM chat_threads WHERE pair = $1 AND deleted_at IS NULL", pair)
            if found is not None:
                return found["id"], found["access"], None
        assert chat_id is not None, "direct chats of one pair keep coming and going"
        await db.execute(
            """INSERT INTO chat_participants (chat_id, user_id, role)
               SELECT $1, user_id, (CASE WHEN user_id = $2 THEN 'owner' ELSE 'member' END)::participant_role
               FROM unnest($3::uuid[]) AS user_id""",
            chat_id,
            owner,
            people,
        )
        change = Change(db, chat_id, chat.type, 1, 1 + len(chat.others), owner, "owner", 1)
        event = await change.append("chat_created", user_id=owner, fields={})
        return chat_id, 1, event._replace(fields={"chat": await thread(db, chat_id)})


THREAD = "id, type::text, title, avatar_url, created_by, settings, created_at, updated_at, participant_count"


async def thread(db: Database, chat_id: UUID) -> dict[str, Any]:
    """A chat as events bear it: the same for all participants."""
    row = await db.row(f"SELECT {THREAD} FROM chat_threads WHERE id = $1", chat_id)
    return dict(row or {})


async def update(change: Change, columns: Mapping[str, Any]) -> None:
    """Set title, avatar_url or settings of a locked chat."""
    query = ChatThread.update(dict(columns)).where(ChatThread.id == change.chat_id)
    await change.db.run(query)


async def end(change: Change) -> None:
    """End a locked chat, and append the event: nobody may read or write in it from now on. What was in it is erased by
    models/purge.py."""
    event = await change.append("chat_deleted", user_id=change.user_id, fields={})
    change.events[-1] = event._replace(fields={"chat": await thread(change.db, change.chat_id)})
    await change.db.execute(
        "UPDATE chat_threads SET deleted_at = now(), access = access + 1 WHERE id = $1", change.chat_id
    )
    await change.db.execute("DELETE FROM chat_invites WHERE chat_id = $1", change.chat_id)
