"""``/sync``: all events of a user's chats since a cursor. models/chats/sync.py explains why none is skipped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID

from handlers.alerts import Alerts
from handlers.wire.errors import ApiError, Fault, InvalidRequest
from models.chats import receipts, sync
from models.chats.events import Event
from models.chats.message_row import message_fields
from models.chats.sync import Range, Span
from models.chats.visibility import Membership
from models.database import Database, Row
from models.paging import Page
from plugins.messages.cursor import Cursor

MAX_MARKS = 500  # in one page: some 80 KB


class CursorExpired(ApiError):
    """A cursor of `/sync` that is older than `SYNC_RETENTION_DAYS`, or of a database that was put back: take a new one,
    and list the chats."""

    status, code, message = 410, "cursor_expired", "This cursor has expired. Get a new one and list your chats again."


class Sync:
    def __init__(self, db: Database, alerts: Alerts, retention_days: int) -> None:
        self._db, self._alerts, self._retention = db, alerts, retention_days * 86_400

    async def page(self, user_id: UUID, text: str | None, limit: int, *, seen: bool = True) -> dict[str, Any]:
        """``events, marks, deleted, cursor, has_more``: the next events since a cursor, chat by chat and by seq.
        Without a cursor only the present one. ``seen``: the user gets to see the events, so they need no push. Raises
        InvalidRequest, CursorExpired."""
        if seen:
            self._alerts.seen(user_id)  # before reading: later commits may not be in the response
        if text is None:
            moment, reached_now = await sync.current_moment(self._db, user_id)
            cursor = Cursor(moment.epoch, int(time.time()), moment.horizon, reached_now, marks=moment.horizon)
            return _answer([], cursor, False)
        try:
            cursor = Cursor.read(text)
        except ValueError as error:
            raise InvalidRequest("Some fields are not valid.", details=[Fault("cursor", str(error))]) from None
        if cursor.age > self._retention:
            raise CursorExpired
        # Each span has an event to show, except those already seen; one more span shows if there are others.
        most = limit + len(cursor.seen) + 2
        moment, spans = await sync.next_spans(self._db, user_id, cursor.since, cursor.at, most)
        if cursor.epoch != moment.epoch or cursor.since > moment.end:
            raise CursorExpired  # from a database that was restored to an earlier time
        target = moment.horizon if cursor.target is None else cursor.target
        parts, all_spans = _parts(cursor, spans, limit)
        # Marks have their own walk, in the same pages.
        moved = await receipts.moved_marks(self._db, user_id, cursor.marks, min(limit, MAX_MARKS))
        events, end = await self._events_to_show(user_id, parts, _MARK * len(moved.marks))
        if end is not None:  # the page has no room for the rest
            number = next(n for n, part in enumerate(parts) if part.range is end[0])
            parts = [*parts[:number], parts[number].until(end[1])]
        has_more = end is not None or not all_spans or len(spans) == most
        deleted = [{"chat_id": part.span.chat_id, "seq": part.last} for part in parts if part.span.deletion]
        reached, made = dict(cursor.reached), int(time.time())
        for part in parts:
            if part.complete and part.span.position >= target:
                # Seen to its present end, which may move.
                reached[part.span.chat_id] = max(reached.get(part.span.chat_id, 0), part.span.last)
        if has_more:
            at = parts[-1].span.chat_id, parts[-1].last
            following = replace(cursor, made=made, target=target, at=at, reached=reached, marks=moved.since)
            return _answer(events, following, True, deleted, moved.marks)
        # A walk of many pages has the events from before it began. The next walk has later ones.
        following = Cursor(moment.epoch, made, target, reached, marks=moved.since)
        return _answer(events, following, cursor.target is not None or moved.has_more, deleted, moved.marks)

    async def _events_to_show(
        self, user_id: UUID, parts: Sequence[_Part], taken: int
    ) -> tuple[list[dict[str, Any]], tuple[Range, int] | None]:
        """Events as the user receives them: messages and chats as they are now; for a user who has left, as they were.
        A message that is gone becomes ``message_deleted``. Events that the user may not see are hidden, consecutive
        ones merged into one.

        ``taken`` bytes of the page are already used. If the events don't fit, also returns the range and the seq of the
        last one that does.
        """
        ranges = [part.range for part in parts if part.range is not None]
        events = await sync.events(self._db, ranges) if ranges else []
        wanted = {
            (row["message_id"], where.membership): None  # in their order
            for where, row in events
            if row["type"] in _OF_MESSAGES and sync.sees(where.membership, row)
        }
        messages = await sync.messages(self._db, user_id, wanted) if wanted else {}
        chat_ids = dict.fromkeys(where.chat_id for where, row in events if row["type"] in _OF_CHATS)
        threads = await sync.threads(self._db, user_id, list(chat_ids)) if chat_ids else {}
        page, answer = Page(), list[dict[str, Any]]()
        page.add(taken + _DELETION * sum(part.span.deletion for part in parts))
        readers = {row["user_id"] for _, row in events if row["type"] == "receipt"}
        severed = await receipts.find_across_block(self._db, user_id, readers) if readers else set()
        end: tuple[Range, int] | None = None
        for where, row in events:
            stay = where.membership
            visible = sync.sees(stay, row) and not (row["type"] == "receipt" and row["user_id"] in severed)
            shown = (row["type"], sync.fields_of(row)) if visible else None
            size = _EVENT + row["size"]
            if shown and row["type"] in (*_OF_MESSAGES, *_OF_CHATS):
                of_message = row["type"] in _OF_MESSAGES
                key: Any = (row["message_id"], stay.left) if of_message else where.chat_id
                found: Any = messages if of_message else threads
                if key not in found and end is not None:
                    return answer, end
                subject = found.get(key)
                size += subject["size"] if subject else 0
                shown = _message(row, subject, stay) if of_message else _chat(row, subject, stay)
            kind, fields = shown or ("hidden", {})
            before = answer[-1] if answer else None
            merged = kind == "hidden" and before is not None and _continues(before, where.chat_id, row["seq"])
            if not page.add(0 if merged else _EVENT if kind == "hidden" else size) and end is not None:
                return answer, end
            if merged and before is not None:
                before["to_seq"] = row["seq"]
            else:
                answer.append(Event(kind, where.chat_id, row["seq"], row["happened_at"], fields).frame)
            end = where, row["seq"]
        return answer, end if events and events[-1][1]["more"] else None


class _Part(NamedTuple):
    """The part of a span on a page: events, a deletion, or nothing if all was seen before. After it, the span is seen
    up to the seq ``last``."""

    span: Span
    range: Range | None
    last: int

    @property
    def complete(self) -> bool:
        return self.last >= self.span.last

    def until(self, seq: int) -> _Part:
        return self._replace(last=seq)


def _parts(cursor: Cursor, spans: Sequence[Span], limit: int) -> tuple[list[_Part], bool]:
    """The next ``limit`` events and deletions, and True if the spans have no more."""
    parts, left = list[_Part](), limit
    for number, span in enumerate(spans):
        first = max(span.first, _seen_seq(cursor, span.chat_id) + 1)
        last = min(span.last, first + left - 1)
        if first <= last:
            parts.append(_Part(span, Range(span.chat_id, first, last, span.membership), last))
            left -= last - first + 1
        else:
            parts.append(_Part(span, None, span.last))
            left -= span.deletion
        if left == 0 and (last < span.last or number + 1 < len(spans)):
            return parts, False
    return parts, True


# Bytes of JSON: of an event without its message, chat or data; of a deletion; of a mark.
_EVENT, _DELETION, _MARK = 400, 100, 180
_OF_MESSAGES = ("message_new", "message_edited", "message_deleted")
_OF_CHATS = ("chat_created", "chat_updated", "chat_deleted")


def _message(row: Row, found: Mapping[str, Any] | None, stay: Membership) -> tuple[str, dict[str, Any]] | None:
    """Type and fields of an event about a message; None if it is hidden. A message that is not found was erased long
    ago, or is in a chat that was just deleted."""
    if found["hidden"] if found else stay.left is not None:
        return None
    if row["type"] == "message_deleted":
        return row["type"], sync.fields_of(row)
    if found and not found["gone"]:
        return row["type"], {"message": message_fields(found)}
    return "message_deleted", {"message_id": row["message_id"], "reason": found["reason"] if found else "deleted"}


def _chat(row: Row, found: Mapping[str, Any] | None, stay: Membership) -> tuple[str, dict[str, Any]] | None:
    """Type and fields of an event of the chat itself: the chat as it is now; for a user who has left, as it was after
    this event, if that was stored. None if it is hidden."""
    if found is None:
        return None
    chat = {name: value for name, value in found.items() if name not in ("inside", "size")}
    if stay.left is None:
        return (row["type"], {"chat": chat}) if found["inside"] else None
    then = row["data"].get("chat")
    return None if then is None else (row["type"], {"chat": {**chat, **then, "updated_at": row["happened_at"]}})


def _continues(before: dict[str, Any], chat_id: UUID, seq: int) -> bool:
    """True if the event at this place follows the hidden one before it."""
    if before["type"] != "hidden" or before["chat_id"] != chat_id:
        return False
    return bool(before.get("to_seq", before["seq"]) == seq - 1)


def _seen_seq(cursor: Cursor, chat_id: UUID) -> int:
    """The seq up to which a chat was seen, including earlier pages of this walk."""
    seen = cursor.seen.get(chat_id, 0)
    return max(seen, cursor.at[1]) if chat_id == cursor.at[0] else seen


def _answer(
    events: list[dict[str, Any]],
    cursor: Cursor,
    has_more: bool,
    deleted: Sequence[Mapping[str, Any]] = (),
    marks: Sequence[receipts.Mark] = (),
) -> dict[str, Any]:
    answer: dict[str, Any] = {"events": events, "marks": marks, "cursor": cursor.text(), "has_more": has_more}
    return {**answer, "deleted": deleted} if deleted else answer
