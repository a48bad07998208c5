"""Events: the durable changes of a chat, in one order for everybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import peewee

from models.chats.tables import ChatThread, thread_columns
from models.chats.visibility import EVERYBODY, scope_of, seen_from
from models.database import JSONB, Database, Enum, Table


class ChatEvent(Table):
    """A durable change other than a new message."""

    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    seq = peewee.BigIntegerField()
    position = peewee.BigIntegerField()
    type = Enum("chat_event_type")
    message_id = peewee.UUIDField(null=True)
    user_id = peewee.UUIDField(null=True)
    data = JSONB()
    created_at = peewee.DateTimeField()

    class Meta:
        table_name = "chat_events"
        primary_key = peewee.CompositeKey("chat", "seq")


class ChatGone(Table):
    """The numbers of the messages that are gone, for each block of 4,096 numbers."""

    chat = peewee.ForeignKeyField(ChatThread, on_delete="CASCADE")
    block = peewee.BigIntegerField()
    numbers = Enum("int8multirange")  # not an enum, but likewise a type that peewee has no field for
    count = peewee.IntegerField()

    class Meta:
        table_name = "chat_gone"
        primary_key = peewee.CompositeKey("chat", "block")


# SQL: the position of this transaction's events; use it once in a statement.
POSITION = "(SELECT base + pg_current_xact_id()::text::bigint FROM sync_epoch)"

# True if one of the two in a direct or secret chat ``t`` has blocked the other after accepting the chat: then neither
# may write. A blocker who never accepted it does not see it, and the other user can go on
# (models/chats/concealment.py).
SEVERED = """(t.type IN ('direct', 'secret') AND EXISTS (
    SELECT 1 FROM chat_participants one
    JOIN chat_participants other ON other.chat_id = t.id AND other.user_id <> one.user_id
    JOIN user_blocks ON blocker_id = one.user_id AND blocked_id = other.user_id
    WHERE one.chat_id = t.id AND NOT one.concealed))"""

# Data of an event that only the server uses: the role before it changed, and the chat as it was.
INTERNAL = ("was", "chat")

# Events that move a chat to the top of the list, as new messages do. Receipts, edits and reactions don't.
ACTIVE = ("chat_created", "chat_updated", "participant_added", "participant_removed", "participant_role")

# A chat as events show it to all participants; without title, avatar and settings if $2 is true.
_CHAT = f"SELECT {thread_columns('$2::boolean')} FROM chat_threads t WHERE t.id = $1"


class ScopedFrame(dict[str, Any]):
    """The frame of an event. Its ``scope`` says who may see it (models/chats/visibility.py), and is not sent."""

    __slots__ = ("scope",)

    def __init__(self, frame: Mapping[str, Any], scope: str) -> None:
        super().__init__(frame)
        self.scope = scope


class Event(NamedTuple):
    """A durable change at its place in a chat. ``fields`` are the other fields of its type; ``scope`` says who may see
    it (models/chats/visibility.py)."""

    type: str
    chat_id: UUID
    seq: int
    created_at: datetime
    fields: Mapping[str, Any]
    scope: str = ""

    @property
    def frame(self) -> ScopedFrame:
        """The event as clients receive it, on a socket and from ``/sync``."""
        frame = {"type": self.type, "chat_id": self.chat_id, "seq": self.seq, "created_at": self.created_at}
        return ScopedFrame({**frame, **self.fields}, self.scope)


@dataclass
class Change:
    """A chat whose row is locked until the transaction ends, as one of its participants sees it.

    ``role`` is None for a user who is not in the chat, or does not see it. ``severed``: one of the two has blocked the
    other after accepting the chat. ``ChatChanges`` (models/chats/changes.py) opens a change, and after the commit
    announces ``events`` to the participants that the chat has under ``access``. ``notices`` maps further users
    to the event that they are sent; None notifies them that the chat has changed for them.
    ``payer`` is the user who is charged for the frames; None if the server itself sends.
    """

    db: Database
    chat_id: UUID
    type: str
    access: int
    participant_count: int
    user_id: UUID
    role: str | None
    joined_seq: int
    severed: bool = False
    events: list[Event] = field(default_factory=list)
    notices: dict[UUID, Event | None] = field(default_factory=dict)
    payer: UUID | None = None

    @property
    def is_pair(self) -> bool:
        """True for a chat of two, whose participants never change."""
        return self.type in ("direct", "secret")

    @property
    def may_write(self) -> bool:
        """True if the participant may post, edit or react."""
        return self.role not in (None, "restricted") and not self.severed

    @property
    def seen_from(self) -> int:
        """The first seq that the participant may see."""
        return seen_from(self.type, self.joined_seq)

    async def append(
        self,
        kind: str,
        *,
        message_id: UUID | None = None,
        user_id: UUID | None = None,
        data: Mapping[str, Any] | None = None,
        fields: Mapping[str, Any] | None = None,
        about: int | None = None,
    ) -> Event:
        """Add an event: its row, and what it is sent with (``fields``; when None, the row's own columns). ``about`` is
        the seq of the message that it names."""
        assert (message_id is None) == (about is None)  # else it would be shown to those who don't see the message
        seq, created_at = await self._insert(kind, message_id, user_id, data or {})
        sent = event_fields(kind, message_id, user_id, data or {}) if fields is None else fields
        return self._add(kind, seq, created_at, sent, scope_of(self.type, kind, about, user_id, data or {}))

    async def append_chat(self, kind: str, *, scope: str = EVERYBODY, masked: bool = False) -> Event:
        """Add an event of the chat itself, by the participant. It is sent with the chat as it is now; if ``masked``,
        without title, avatar and settings. The row stores the chat as it is now, for participants who leave before it
        changes again."""
        seq, created_at = await self._insert(kind, None, self.user_id, {})
        chat = await self.db.row(_CHAT, self.chat_id, masked)
        return self._add(kind, seq, created_at, {"chat": dict(chat or {})}, scope)

    def _add(self, kind: str, seq: int, created_at: datetime, fields: Mapping[str, Any], scope: str) -> Event:
        event = Event(kind, self.chat_id, seq, created_at, fields, scope)
        self.events.append(event)
        return event

    async def _insert(
        self, kind: str, message_id: UUID | None, user_id: UUID | None, data: Mapping[str, Any]
    ) -> tuple[int, datetime]:
        row = await self.db.row(
            f"""WITH moved AS (
                    UPDATE chat_threads SET last_seq = last_seq + 1,
                        updated_at = CASE WHEN $6 THEN now() ELSE updated_at END,
                        last_position = greatest(last_position, {POSITION})
                    WHERE id = $1 RETURNING last_seq, last_position, title, avatar_url, settings, participant_count
                )
                INSERT INTO chat_events (chat_id, seq, position, type, message_id, user_id, data)
                SELECT $1, last_seq, last_position, $2::text::chat_event_type, $3, $4,
                    CASE WHEN $2::text IN ('chat_created', 'chat_updated') THEN $5::jsonb || jsonb_build_object('chat',
                        jsonb_build_object('title', title, 'avatar_url', avatar_url, 'settings', settings,
                                           'participant_count', participant_count))
                    ELSE $5::jsonb END
                FROM moved
                RETURNING seq, created_at""",
            self.chat_id,
            kind,
            message_id,
            user_id,
            dict(data),
            kind in ACTIVE,
        )
        assert row is not None  # the chat is locked, so it is there
        return row["seq"], row["created_at"]

    async def append_for(self, kind: str, messages: Mapping[UUID, int], data: Mapping[str, Any]) -> None:
        """Add the same event for each of these messages, in their order. ``messages`` maps their ids to their seqs."""
        rows = await self.db.fetch(
            f"""WITH moved AS (
                    UPDATE chat_threads SET last_seq = last_seq + cardinality($3::uuid[]),
                        last_position = greatest(last_position, {POSITION})
                    WHERE id = $1 RETURNING last_seq - cardinality($3::uuid[]) AS seq, last_position
                )
                INSERT INTO chat_events (chat_id, seq, position, type, message_id, data)
                SELECT $1, seq + place, last_position, $2::text::chat_event_type, message_id, $4
                FROM moved, unnest($3::uuid[]) WITH ORDINALITY AS m (message_id, place)
                RETURNING seq, message_id, created_at""",
            self.chat_id,
            kind,
            list(messages),
            dict(data),
        )
        for row in sorted(rows, key=lambda row: row["seq"]):
            sent = event_fields(kind, row["message_id"], None, data)
            scope = scope_of(self.type, kind, messages[row["message_id"]], None, data)
            self._add(kind, row["seq"], row["created_at"], sent, scope)

    async def renew_access(self) -> None:
        """Invalidate what instances have cached about who is in the chat and what they may do."""
        self.access = await self.db.value(
            "UPDATE chat_threads SET access = access + 1 WHERE id = $1 RETURNING access", self.chat_id
        )


def event_fields(kind: str, message_id: UUID | None, user_id: UUID | None, data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an event, from its row in ``chat_events``."""
    fields: dict[str, Any] = {}
    if message_id is not None:
        fields["message_id"] = message_id
    if user_id is not None:
        fields["user_id"] = user_id
    return {**fields, **{name: value for name, value in data.items() if name not in INTERNAL}}
