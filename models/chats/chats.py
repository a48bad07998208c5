"""Chats: create, change and end them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from peewee import fn

from models.chats import concealment, invitations
from models.chats.changes import ChatChanges
from models.chats.events import Change
from models.chats.invites import ChatInvite
from models.chats.tables import ChatParticipant, ChatThread
from models.chats.visibility import EVERYBODY
from models.database import Database


class NewChat(NamedTuple):
    """A chat to be created; ``others`` are its participants besides the owner."""

    type: str
    title: str | None
    avatar_url: str | None
    settings: Mapping[str, Any]
    others: Sequence[UUID]


def _pair_hash(one: UUID, other: UUID) -> bytes:
    low, high = sorted((one.bytes, other.bytes))
    return hashlib.sha256(low + high).digest()


async def create(changes: ChatChanges, owner: UUID, chat: NewChat) -> tuple[UUID, bool] | None:
    """Create a chat. Returns its id, and True if it is new, False if it is the direct chat that the two already have.
    Returns None if the owner has blocked the other user and the two have no such chat.

    A chat of two is concealed from a user who has blocked its creator. In other chats some users are invited instead of
    being added (models/chats/invitations.py).
    """
    db, two = changes.db, chat.type in ("direct", "secret") and len(chat.others) == 1
    pair = _pair_hash(owner, chat.others[0]) if chat.type == "direct" else None
    async with db.transaction():
        own = others = False
        if two:
            await concealment.lock_pair(db, owner, chat.others[0])
            own, others = await concealment.blocks_between(db, owner, chat.others[0])
        if own:
            known = None if pair is None else await _visible_direct_chat(db, owner, pair)
            return None if known is None else (known, False)
        invited: dict[UUID, bool] = {}
        if chat.others and not two:
            among = () if chat.type == "channel" else chat.others
            invited = await invitations.find_invite_only(db, owner, chat.others, among)
        people = [owner, *(other for other in chat.others if other not in invited)]
        # Lock all users before the chat refers to one, in the order of their ids, as the erasure of an account does.
        await db.execute(
            "SELECT 1 FROM users WHERE id = ANY ($1::uuid[]) ORDER BY id FOR KEY SHARE", [owner, *chat.others]
        )
        # Try again: an existing chat may be deleted between the two statements.
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
                len(people),
            )
            if chat_id is not None:
                break
            known = await db.scalar(
                ChatThread.select(ChatThread.id).where(ChatThread.pair == pair, ChatThread.deleted_at.is_null())
            )
            if known is not None:
                return known, False
        assert chat_id is not None, "direct chats of one pair keep coming and going"
        await db.execute(
            """INSERT INTO chat_participants (chat_id, user_id, role, accepted)
               SELECT $1, user_id, (CASE WHEN user_id = $2 THEN 'owner' ELSE 'member' END)::participant_role,
                      user_id = $2
               FROM unnest($3::uuid[]) AS user_id""",
            chat_id,
            owner,
            people,
        )
        if others:
            await concealment.conceal(db, [chat_id], chat.others, seen=False)
        change = changes.start(chat_id, chat.type, len(people), owner)
        await change.append_chat("chat_created")
        for user_id, unseen in invited.items():
            await invitations.invite(change, user_id, "member", unseen=unseen)
        return chat_id, True


async def _visible_direct_chat(db: Database, user_id: UUID, pair: bytes) -> UUID | None:
    """The direct chat of a pair, if the user sees it."""
    chat_id: UUID | None = await db.scalar(
        ChatThread.select(ChatThread.id)
        .join(ChatParticipant)
        .where(
            ChatThread.pair == pair,
            ChatThread.deleted_at.is_null(),
            ChatParticipant.user == user_id,
            ~ChatParticipant.concealed,
        )
    )
    return chat_id


async def find_masked(change: Change) -> list[UUID]:
    """The participants who don't see title, avatar and settings of a locked chat of two."""
    rows = await change.db.rows(
        ChatParticipant.select(ChatParticipant.user)
        .where(ChatParticipant.chat == change.chat_id, ChatParticipant.masked)
        .order_by(ChatParticipant.user)
    )
    return [row["user_id"] for row in rows]


async def update(change: Change, columns: Mapping[str, Any]) -> None:
    """Set title, avatar_url or settings of a locked chat, and append the event. If the participant did not see the old
    ones, all three are replaced."""
    columns = dict(columns)
    if change.is_pair and change.user_id in await find_masked(change):
        columns = {"title": None, "avatar_url": None, "settings": {}, **columns}
        await change.db.do(ChatParticipant.update(masked=False).where(ChatParticipant.chat == change.chat_id))
    await change.db.do(ChatThread.update(columns).where(ChatThread.id == change.chat_id))
    # A user who blocked the author of a title, avatar or settings does not see them.
    scope = f"u{change.user_id}" if change.is_pair and await find_masked(change) else EVERYBODY
    await change.append_chat("chat_updated", scope=scope)


async def end(change: Change) -> None:
    """End a locked chat, and append the event. Participants can't read or write in it from then on;
    models/chats/purge.py erases its content."""
    await change.append_chat("chat_deleted", masked=change.is_pair and bool(await find_masked(change)))
    await change.db.do(
        ChatThread.update(deleted_at=fn.now(), access=ChatThread.access + 1).where(ChatThread.id == change.chat_id)
    )
    await change.db.do(ChatInvite.delete().where(ChatInvite.chat == change.chat_id))
    await invitations.delete_all(change)
