"""A chat on an imagined server that makes no mistakes: what the checker and the clients' views are tried against."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

from tests.history.checker import Mark, Place, Row, Seen, Shown, Stored
from tests.history.ledger import Known, Ledger
from tests.history.view import OF_MESSAGES, OF_PINS, OF_REACTIONS, Event, Message, View

CHAT = "11111111-1111-4111-8111-111111111111"
CREATED = "2026-01-01T00:00:00Z"

Wire = dict[str, Any]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@dataclass
class Imagined:
    """``events`` are the frames as they were sent; ``sync`` returns the events as they look later."""

    founders: list[str]
    ledger: Ledger = field(default_factory=Ledger)
    events: list[Wire] = field(default_factory=list)
    messages: dict[str, Wire] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)  # messages that were deleted, and their seq
    marks: dict[tuple[str, str], Mark] = field(default_factory=dict)
    inside: dict[str, int] = field(default_factory=dict)  # who is in the chat, and since which seq

    def __post_init__(self) -> None:
        self.ledger.chat(CHAT, "group", set(self.founders))
        self.happen("chat_created", chat={})
        self.inside = dict.fromkeys(self.founders, 1)

    @property
    def last(self) -> int:
        return len(self.events)

    def happen(self, kind: str, **fields: Any) -> int:
        self.events.append(
            {"type": kind, "chat_id": CHAT, "seq": self.last + 1, "created_at": CREATED, **fields},
        )
        return self.last

    def send(self, sender: str) -> str:
        """A message, acknowledged; its id."""
        seq, client_id = self.last + 1, f"c{self.last}"
        send = self.ledger.send(CHAT, sender, client_id, 20)
        wire = self.messages[f"m{seq}"] = {
            "id": f"m{seq}",
            "chat_id": CHAT,
            "seq": seq,
            "sender_id": sender,
            "client_id": client_id,
            "encrypted_payload": send.payload,
            "reactions": [],
        }
        self.happen("message_new", message=wire.copy())
        send.places.add((wire["id"], seq))
        return str(wire["id"])

    def edit(self, message: str) -> None:
        wire = self.messages[message]
        wire["encrypted_payload"] = b64(f"edited {self.last}")
        self.ledger.sends[wire["client_id"]].payloads = {wire["encrypted_payload"]}
        self.happen("message_edited", message=wire.copy())

    def delete(self, message: str) -> None:
        wire = self.messages.pop(message)
        self.gone[message] = wire["seq"]
        self.ledger.sends[wire["client_id"]].deleted = Known.YES
        self.happen("message_deleted", message_id=message, reason="deleted")

    def react(self, message: str, user: str, emoji: str) -> None:
        """Add the reaction, or remove it if it exists."""
        wire, reaction = self.messages[message], {"user_id": user, "emoji": emoji}
        there = reaction in wire["reactions"]
        wire["reactions"] = [one for one in wire["reactions"] if one != reaction] + [reaction] * (not there)
        self.ledger.sends[wire["client_id"]].reactions[user, emoji] = Known.NO if there else Known.YES
        kind = "reaction_removed" if there else "reaction_added"
        self.happen(kind, message_id=message, user_id=user, emoji=emoji)

    def read(self, user: str) -> None:
        """Receive and read all there is."""
        self.marks[CHAT, user] = (self.last, self.last)

    def add(self, user: str) -> None:
        self.inside[user] = self.happen("participant_added", user_id=user, role="member")

    def remove(self, user: str) -> None:
        del self.inside[user]
        self.happen("participant_removed", user_id=user, role="member")

    def sync(self, seq: int) -> Wire:
        """The event at a place as /sync shows it now: a message as it is, or gone."""
        wire = self.events[seq - 1]
        if wire["type"] not in ("message_new", "message_edited"):
            return wire
        message = wire["message"]["id"]
        if message in self.gone:
            place = {name: wire[name] for name in ("chat_id", "seq", "created_at")}
            return {"type": "message_deleted", **place, "message_id": message, "reason": "deleted"}
        return {**wire, "message": self.messages[message].copy()}

    def get(self) -> list[Message]:
        return [Message.read(wire) for wire in sorted(self.messages.values(), key=lambda wire: wire["seq"])]

    def stored(self) -> Stored:
        rows = [
            Row(
                CHAT,
                wire["seq"],
                wire["message"]["id"],
                wire["message"]["client_id"],
                wire["message"]["id"] in self.messages,
            )
            for wire in self.events
            if wire["type"] == "message_new"
        ]
        live = {row.seq for row in rows if row.live}
        others = [
            Place(CHAT, wire["seq"], wire["type"], wire.get("user_id"))
            for wire in self.events
            if wire["seq"] not in live
        ]
        return Stored(rows, others, {CHAT: self.last}, self.marks.copy())

    @staticmethod
    def _shown(event: Event, start: int) -> Event:
        """An event as it is shown to a member since ``start``."""
        changes = event.kind in OF_REACTIONS | OF_PINS | OF_MESSAGES and event.kind != "message_new"
        old = changes and int(event.about[1:]) < start
        return Event("hidden", event.chat, event.seq) if old else event

    def seen(self, user: str) -> Seen:
        """A client that knows all it may know."""
        view = View()
        member = False
        for wire in self.events:
            about = wire.get("user_id") == user
            if wire["type"] == "chat_created" and user in self.founders:
                member = True
            if wire["type"] == "participant_added" and about:
                member = True
            if member:
                view.add(self._shown(Event.read(wire), view.start))
            if wire["type"] == "participant_added" and about:
                view.joined(wire["seq"], "member")
                view.listed = {message.id: message for message in self.get()}
            if wire["type"] == "participant_removed" and about:
                member = False
        seen = Seen(user, user, {CHAT: view} if view.events else {})
        if user in self.inside:
            since = self.inside[user]
            unread = sum(message.sender != user and message.seq > since for message in self.get())
            seen.shown[CHAT] = Shown(self.last, since, unread, self.get())
        return seen
