"""Chats: making, changing and ending them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from peewee import fn

from models.chats import concealment, invitations
from models.chats.events import Change
from models.chats.invites import ChatInvite
from models.chats.tables import ChatParticipant, ChatThread
from models.database import Database


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


async def create(db: Database, owner: UUID, chat: NewChat) -> tuple[UUID, Change | None] | None:
    """Make a chat: its id, and the change that it is. No change when it is a direct chat that the two have already.
    None when the owner has blocked the other one of a chat of two that they don't have.

    The chat of two is concealed from who has blocked its maker. In chats of many some of the others are invited instead
    of being added (models/chats/invitations.py).
    """
    two = chat.type in ("direct", "secret") and len(chat.others) == 1
    pair = _pair(owner, chat.others[0]) if chat.type == "direct" else None
    async with db.transaction():
        own = others = False
        if two:
            await concealment.lock_pair(db, owner, chat.others[0])
            own, others = await concealment.blocks_between(db, owner, chat.others[0])
        if own:
            known = None if pair is None else await _shown(db, owner, pair)
            return None if known is None else (known, None)
        invited: dict[UUID, bool] = {}
        if chat.others and not two:
            among = () if chat.type == "channel" else chat.others
            invited = await invitations.required(db, owner, chat.others, among)
        people = [owner, *(other for other in chat.others if other not in invited)]
        # All of them before the chat refers to one, and in the order of their ids, as an erasure locks them.
        await db.execute(
            "SELECT 1 FROM users WHERE id = ANY ($1::uuid[]) ORDER BY id FOR KEY SHARE", [owner, *chat.others]
        )
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
                len(people),
            )
            if chat_id is not None:
                break
            known = await db.scalar(
                ChatThread.select(ChatThread.id).where(ChatThread.pair == pair, ChatThread.deleted_at.is_null())
            )
            if known is not None:
                return known, None
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
        change = Change(db, chat_id, chat.type, 1, len(people), owner, "owner", 1)
        event = await change.append("chat_created", user_id=owner, fields={})
        change.events[0] = event._replace(fields={"chat": await thread(db, chat_id)})
        for user_id, unseen in invited.items():
            await invitations.invite(change, user_id, "member", unseen=unseen)
        return chat_id, change


async def _shown(db: Database, user_id: UUID, pair: bytes) -> UUID | None:
    """The direct chat of a pair, if the user may see it."""
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


def thread_columns(masked: str = "false") -> str:
    """The columns of a chat ``t`` as events bear it, without what describes it where ``masked`` is true."""
    return f"""t.id, t.type::text, CASE WHEN NOT {masked} THEN t.title END AS title,
        CASE WHEN NOT {masked} THEN t.avatar_url END AS avatar_url, t.created_by,
        CASE WHEN {masked} THEN '{{}}' ELSE t.settings END AS settings, t.created_at, t.updated_at,
        t.participant_count"""


async def thread(db: Database, chat_id: UUID, *, masked: bool = False) -> dict[str, Any]:
    """A chat as events bear it: the same for all participants."""
    row = await db.row(f"SELECT {thread_columns('$2::boolean')} FROM chat_threads t WHERE t.id = $1", chat_id, masked)
    return dict(row or {})


async def masked(change: Change) -> list[UUID]:
    """The participants who don't see how a locked chat of two is described."""
    rows = await change.db.rows(
        ChatParticipant.select(ChatParticipant.user)
        .where(ChatParticipant.chat == change.chat_id, ChatParticipant.masked)
        .order_by(ChatParticipant.user)
    )
    return [row["user_id"] for row in rows]


async def update(change: Change, columns: Mapping[str, Any]) -> None:
    """Set title, avatar_url or settings of a locked chat. A participant who did not see how it was described describes
    it from the beginning."""
    columns = dict(columns)
    if change.two and change.user_id in await masked(change):
        columns = {"title": None, "avatar_url": None, "settings": {}, **columns}
        await change.db.do(ChatParticipant.update(masked=False).where(ChatParticipant.chat == change.chat_id))
    await change.db.do(ChatThread.update(columns).where(ChatThread.id == change.chat_id))


async def end(change: Change) -> None:
    """End a locked chat, and append the event: nobody may read or write in it from now on. What was in it is erased by
    models/chats/purge.py."""
    event = await change.append("chat_deleted", user_id=change.user_id, fields={})
    described = await thread(change.db, change.chat_id, masked=change.two and bool(await masked(change)))
    change.events[-1] = event._replace(fields={"chat": described})
    await change.db.do(
        ChatThread.update(deleted_at=fn.now(), access=ChatThread.access + 1).where(ChatThread.id == change.chat_id)
    )
    await change.db.do(ChatInvite.delete().where(ChatInvite.chat == change.chat_id))
    await invitations.end_all(change)
