"""``/sync``: a walk through all events of a user's chats since a cursor (models/sync.py says why none is skipped)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from handlers.alerts import Alerts
from handlers.errors import ApiError, Fault, InvalidRequest
from models import receipts, sync, views
from models.changes import Event
from models.database import Database, Row
from models.sync import Range
from models.visibility import Membership
from plugins.messages.cursor import Cursor
from plugins.messages.messages import shown

MARKS = 500  # in one page: some 80 KB


class CursorExpired(ApiError):
    status, code, message = 410, "cursor_expired", "This cursor is too old; take a new one and list your chats."


class Sync:
    def __init__(self, db: Database, alerts: Alerts, retention_days: int) -> None:
        self._db, self._alerts, self._retention = db, alerts, retention_days * 86_400

    async def page(self, user_id: UUID, text: str | None, limit: int, *, seen: bool = True) -> dict[str, Any]:
        """``events, marks, deleted, cursor, has_more``: the next events since a cursor, chat by chat and in each by
        seq. Without a cursor the present one, and no events. ``seen`` is whether the user gets to see them, so that no
        push is sent. Raises InvalidRequest, CursorExpired."""
        if seen:
            self._alerts.seen(user_id)  # before it reads: what is committed from now on may not be in the answer
        if text is None:
            moment, reached_now = await sync.now(self._db, user_id)
            cursor = Cursor(moment.epoch, int(time.time()), moment.horizon, reached_now, marks=moment.horizon)
            return _answer([], cursor, False)
        try:
            cursor = Cursor.read(text)
        except ValueError as error:
            raise InvalidRequest("Some fields are not valid.", details=[Fault("cursor", str(error))]) from None
        if cursor.age > self._retention:
            raise CursorExpired
        # Each span has an event to show, but for those that were seen already; one more tells whether there are others.
        most = limit + len(cursor.seen) + 2
        moment, spans = await sync.spans(self._db, user_id, cursor.since, cursor.at[0], most)
        if cursor.epoch != moment.epoch or cursor.since > moment.end:
            raise CursorExpired  # of a database that was put back to an earlier time
        target = moment.horizon if cursor.target is None else cursor.target
        reached, ranges, left = dict(cursor.reached), list[Range](), limit
        for number, span in enumerate(spans):
            first = max(span.first, _seen(cursor, span.chat_id) + 1)
            last = min(span.last, first + left - 1)
            if first <= last:
                ranges.append(Range(span.chat_id, first, last, span.membership))
                left -= last - first + 1
            if (last == span.last or first > span.last) and span.position >= target:
                # Seen to its end, which need not be its end for who asks a moment later.
                reached[span.chat_id] = max(reached.get(span.chat_id, 0), span.last)
            if left == 0 and (last < span.last or number + 1 < len(spans)):
                break
        else:
            number = len(spans)
        events = await self._shown(user_id, await sync.events(self._db, ranges)) if ranges else []
        has_more = number < len(spans) or len(spans) == most
        # On the first page of a walk; those that come meanwhile are not below its target, so the next walk tells them.
        deleted = await views.deletions(self._db, user_id, cursor.since) if cursor.target is None else []
        made = int(time.time())
        # Marks walk for themselves, by the same pages.
        moved = await receipts.moved(self._db, user_id, cursor.marks, min(limit, MARKS))
        if has_more:
            at = (ranges[-1].chat_id, ranges[-1].last) if ranges else (spans[-1].chat_id, spans[-1].last)
            following = replace(cursor, made=made, target=target, at=at, reached=reached, marks=moved.since)
            return _answer(events, following, True, deleted, moved.marks)
        # A walk of many pages tells what was there as it began. What came meanwhile is told by the next one.
        following = Cursor(moment.epoch, made, target, reached, marks=moved.since)
        return _answer(events, following, cursor.target is not None or moved.has_more, deleted, moved.marks)

    async def _shown(self, user_id: UUID, events: Sequence[tuple[Range, Row]]) -> list[dict[str, Any]]:
        """Events as the user gets them: messages and chats as they are now, to who has left as they were. Of a message
        that is gone, that is what is left to tell. What they may not see is hidden, consecutive events as one."""
        wanted = {
            (row["message_id"], where.membership)
            for where, row in events
            if row["type"] in _OF_MESSAGES and sync.sees(where.membership, row)
        }
        messages = await sync.messages(self._db, user_id, wanted) if wanted else {}
        chat_ids = {where.chat_id for where, row in events if row["type"] in _OF_CHATS}
        threads = await sync.threads(self._db, user_id, list(chat_ids)) if chat_ids else {}
        readers = {row["user_id"] for _, row in events if row["type"] == "receipt"}
        severed = await receipts.severed_from(self._db, user_id, readers) if readers else set()
        answer = list[dict[str, Any]]()
        for where, row in events:
            stay = where.membership
            visible = sync.sees(stay, row) and not (row["type"] == "receipt" and row["user_id"] in severed)
            shown = (row["type"], sync.fields_of(row)) if visible else None
            if shown and row["type"] in _OF_MESSAGES:
                shown = _message(row, messages.get((row["message_id"], stay.left)), stay)
            elif shown and row["type"] in _OF_CHATS:
                shown = _chat(row, threads.get(where.chat_id), stay)
            kind, fields = shown or ("hidden", {})
            before = answer[-1] if answer else None
            if kind == "hidden" and before and _continues(before, where.chat_id, row["seq"]):
                before["to_seq"] = row["seq"]
            else:
                answer.append(Event(kind, where.chat_id, row["seq"], row["happened_at"], fields).frame)
        return answer


_OF_MESSAGES = ("message_new", "message_edited", "message_deleted")
_OF_CHATS = ("chat_created", "chat_updated", "chat_deleted")


def _message(row: Row, found: Row | None, stay: Membership) -> tuple[str, dict[str, Any]] | None:
    """Type and fields of an event about a message; None when it is hidden. A message that is not found was erased long
    ago, or is in a chat that was deleted just now."""
    if found["hidden"] if found else stay.left is not None:
        return None
    if row["type"] == "message_deleted":
        return row["type"], sync.fields_of(row)
    if found and not found["gone"]:
        return row["type"], {"message": shown(found)}
    return "message_deleted", {"message_id": row["message_id"], "reason": found["reason"] if found else "deleted"}


def _chat(row: Row, found: Row | None, stay: Membership) -> tuple[str, dict[str, Any]] | None:
    """Type and fields of an event of the chat itself: the chat as it is to who takes part, and to who has left as it
    was after this event, if that was kept; None when it is hidden."""
    if found is None:
        return None
    chat = {name: value for name, value in found.items() if name != "inside"}
    if stay.left is None:
        return (row["type"], {"chat": chat}) if found["inside"] else None
    then = row["data"].get("chat")
    return None if then is None else (row["type"], {"chat": {**chat, **then, "updated_at": row["happened_at"]}})


def _continues(before: dict[str, Any], chat_id: UUID, seq: int) -> bool:
    """True if the event at this place follows the hidden one before it."""
    if before["type"] != "hidden" or before["chat_id"] != chat_id:
        return False
    return bool(before.get("to_seq", before["seq"]) == seq - 1)


def _seen(cursor: Cursor, chat_id: UUID) -> int:
    """Up to which seq a chat was seen; in the middle of a walk also by its last page."""
    seen = cursor.seen.get(chat_id, 0)
    return max(seen, cursor.at[1]) if chat_id == cursor.at[0] else seen


def _answer(
    events: list[dict[str, Any]],
    cursor: Cursor,
    has_more: bool,
    deleted: Sequence[Row] = (),
    marks: Sequence[receipts.Mark] = (),
) -> dict[str, Any]:
    answer: dict[str, Any] = {"events": events, "marks": marks, "cursor": cursor.text(), "has_more": has_more}
    return {**answer, "deleted": [dict(row) for row in deleted]} if deleted else answer
