"""What a client keeps of a chat: events by their seq, from frames and /sync pages, and the messages they make."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

OF_CHATS = frozenset({"chat_created", "chat_updated", "chat_deleted"})
OF_PARTICIPANTS = frozenset({"participant_added", "participant_removed", "participant_role"})
OF_REACTIONS = frozenset({"reaction_added", "reaction_removed"})
OF_PINS = frozenset({"message_pinned", "message_unpinned"})
OF_MESSAGES = frozenset({"message_new", "message_edited", "message_deleted"})
KINDS = OF_CHATS | OF_PARTICIPANTS | OF_REACTIONS | OF_PINS | OF_MESSAGES | {"receipt", "hidden"}


class Message(NamedTuple):
    """A message as GET shows it; ``reactions`` are (user_id, emoji)."""

    id: str
    seq: int
    sender: str | None
    client_id: str | None
    payload: str
    reactions: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def read(cls, wire: dict[str, Any]) -> Message:
        reactions = frozenset((reaction["user_id"], reaction["emoji"]) for reaction in wire["reactions"])
        payload, sender, client_id = wire["encrypted_payload"], wire["sender_id"], wire["client_id"]
        return cls(wire["id"], wire["seq"], sender, client_id, payload, reactions)


class Event(NamedTuple):
    """A durable event.

    ``about`` is the id of the message, or of the user in a participant_* event; ``by`` the user who reacted, pinned or
    read; ``what`` the emoji, the role, the reason or the watermarks.
    """

    kind: str
    chat: str
    seq: int
    about: str = ""
    by: str = ""
    what: str = ""
    message: Message | None = None

    @classmethod
    def read_all(cls, wire: dict[str, Any]) -> list[Event]:
        """One event, or the hidden ones that one entry stands for. Raises as ``read``."""
        first = cls.read(wire)
        if "to_seq" not in wire:
            return [first]
        if first.kind != "hidden" or wire["to_seq"] <= first.seq:
            raise ValueError(f"{first.kind} {first.seq} up to {wire['to_seq']}")
        return [first._replace(seq=seq) for seq in range(first.seq, wire["to_seq"] + 1)]

    @classmethod
    def read(cls, wire: dict[str, Any]) -> Event:
        """Raises KeyError or ValueError when it isn't what the contract says."""
        kind, chat, seq = wire["type"], wire["chat_id"], wire["seq"]
        if kind not in KINDS or not isinstance(seq, int) or seq < 1 or "created_at" not in wire:
            raise ValueError(f"no event: {kind} {seq}")
        if kind == "hidden":
            if wire.keys() - {"type", "chat_id", "seq", "created_at", "to_seq"}:
                raise ValueError(f"hidden {seq} shows something")
            return cls(kind, chat, seq)
        if kind in ("message_new", "message_edited"):
            message = Message.read(wire["message"])
            if wire["message"]["chat_id"] != chat or (message.seq != seq if kind == "message_new" else False):
                raise ValueError(f"{kind} {seq} bears the message of another place")
            return cls(kind, chat, seq, message.id, message.sender or "", message=message)
        if kind == "message_deleted":
            return cls(kind, chat, seq, wire["message_id"], what=wire["reason"])
        if kind in OF_REACTIONS:
            return cls(kind, chat, seq, wire["message_id"], wire["user_id"], wire["emoji"])
        if kind in OF_PINS:
            return cls(kind, chat, seq, wire["message_id"], wire["user_id"])
        if kind == "receipt":
            return cls(kind, chat, seq, by=wire["user_id"], what=f"{wire['delivered_seq']}/{wire['read_seq']}")
        if kind in OF_PARTICIPANTS:
            return cls(kind, chat, seq, wire["user_id"], what=wire.get("role") or "")
        return cls(kind, chat, seq)

    def agrees(self, other: Event) -> bool:
        """True if both can be the event at this place: a message may have changed since, or be deleted."""
        if "hidden" in (self.kind, other.kind):
            return True
        if self.kind == other.kind:
            return self.about == other.about and self.by == other.by and (self.what == other.what or self.gone)
        return self.about == other.about and {self.kind, other.kind} in (
            {"message_new", "message_deleted"},
            {"message_edited", "message_deleted"},
        )

    @property
    def gone(self) -> bool:
        return self.kind == "message_deleted"

    def __str__(self) -> str:
        return f"{self.seq:>5} {self.kind:<19} {self.about[-8:]:<8} by {self.by[:8] or '-':<8} {self.what}"


class Conflict(Exception):
    """Two different events at one place."""


def merge(log: dict[int, Event], event: Event) -> bool:
    """Put an event at its place; whether the place was empty. Raises Conflict."""
    known = log.get(event.seq)
    if known is None:
        log[event.seq] = event
        return True
    if not event.agrees(known):
        raise Conflict(f"at {event.seq} there is {known} and then {event}")
    if known.kind == "hidden" or (event.gone and event.kind != "hidden"):
        log[event.seq] = event
    return False


def fold(listed: Iterable[Message], events: Iterable[Event]) -> dict[str, Message]:
    """The live messages by id, oldest first: those that were listed, and then what happened, in order."""
    live = {message.id: message for message in listed}
    gone: set[str] = set()
    for event in sorted(events, key=lambda event: event.seq):
        known = live.get(event.about)
        if event.gone:
            gone.add(event.about)
        elif event.kind == "message_new" and event.message is not None:
            live[event.about] = event.message
        elif event.kind == "message_edited" and event.message is not None and known is not None:
            live[event.about] = event.message._replace(reactions=known.reactions)
        elif event.kind == "reaction_added" and known is not None:
            live[event.about] = known._replace(reactions=known.reactions | {(event.by, event.what)})
        elif event.kind == "reaction_removed" and known is not None:
            live[event.about] = known._replace(reactions=known.reactions - {(event.by, event.what)})
    alive = (message for message in live.values() if message.id not in gone)
    return {message.id: message for message in sorted(alive, key=lambda message: message.seq)}


class View:
    """A client's copy of one chat.

    ``base`` is the last seq when the client first listed its chats: what came later it must have as events.
    ``start`` is where it last joined (0: before it listed), and ``listed`` the messages it listed then.
    """

    def __init__(self, base: int = 0) -> None:
        self.base = base
        self.events: dict[int, Event] = {}
        self.start = 0
        self.listed: dict[str, Message] = {}
        self.member = False
        self.role = ""
        self._changed = 0  # the seq at which membership last changed
        self._floor, self._count, self._top = base, 0, base

    def add(self, event: Event) -> bool:
        """Merge an event; whether it was new. Raises Conflict."""
        new = merge(self.events, event)
        if new and event.seq > self._floor:
            self._count += 1
            self._top = max(self._top, event.seq)
        return new

    def joined(self, seq: int, role: str) -> bool:
        """Record that the user joined. Returns False if a later change is known already."""
        if seq <= self._changed:
            return False
        self._changed = self.start = seq
        self.member, self.role = True, role
        self.listed = {}
        self._floor = seq - 1
        after = [known for known in self.events if known >= seq]
        self._count, self._top = len(after), max(after, default=seq - 1)
        return True

    def left(self, seq: int) -> None:
        if seq > self._changed:
            self._changed, self.member = seq, False

    @property
    def behind(self) -> bool:
        """True if an event between the known ones is missing."""
        return self.member and self._count < self._top - self._floor

    @property
    def messages(self) -> dict[str, Message]:
        return fold(self.listed.values(), (event for event in self.events.values() if event.seq >= self.start))
