"""Compares what a run stored with the answers its clients got: a pure function of both that returns faults."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.history.ledger import Known, Ledger, Send
from tests.history.view import (
    OF_CHATS,
    OF_MESSAGES,
    OF_PARTICIPANTS,
    OF_PINS,
    OF_REACTIONS,
    Conflict,
    Event,
    Message,
    View,
    merge,
)


class Row(NamedTuple):
    """A row of the table messages. The place of one that isn't live is a row of chat_events."""

    chat: str
    seq: int
    id: str
    client_id: str | None
    live: bool


Mark = tuple[int, int]  # delivered_seq, read_seq


class Place(NamedTuple):
    """A row of the table chat_events."""

    chat: str
    seq: int
    kind: str = ""
    user: str | None = None


@dataclass
class Stored:
    """What PostgreSQL holds: messages, chat_events, and last_seq."""

    messages: list[Row] = field(default_factory=list)
    events: list[Place] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)
    marks: dict[tuple[str, str], Mark] = field(default_factory=dict)  # by chat and user, those that ever moved


class Shown(NamedTuple):
    """A chat as GET shows it to one of its members."""

    last_seq: int
    read_seq: int
    unread: int
    messages: list[Message]  # oldest first


@dataclass
class Seen:
    """What a device knows: one that lists, or one that only follows /sync and ``heard`` these seqs in this order."""

    user: str
    name: str
    views: dict[str, View]
    shown: dict[str, Shown] = field(default_factory=dict)
    heard: dict[str, list[int]] | None = None
    marks: dict[tuple[str, str], list[Mark]] | None = None  # by chat and user, in the order in which /sync brought them


class Checker:
    """``check`` appends what must not be to the ledger's faults."""

    def __init__(self, ledger: Ledger, stored: Stored, seen: list[Seen]) -> None:
        self.ledger, self.stored, self.seen = ledger, stored, seen
        self.logs: dict[str, dict[int, Event]] = defaultdict(dict)  # of each chat, what all know together
        self._moves: dict[tuple[str, str | None], list[Place]] = defaultdict(
            list
        )  # of chats and users, who comes and goes
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self._places = {row.id: row.seq for row in stored.messages}
        for row in stored.messages:
            self._rows[row.chat].append(row)
        for place in sorted(stored.events, key=lambda place: place.seq):
            if place.kind in ("participant_added", "participant_removed"):
                self._moves[place.chat, place.user].append(place)

    def check(self) -> None:
        self._sends()
        self._seqs()
        self._together()
        self._sense()
        for seen in self.seen:
            self._membership(seen)
            self._marks(seen)
            for chat in sorted(self.stored.last):
                self._events(seen, chat)
                self._hidden(seen, chat)
            for chat, shown in seen.shown.items():
                self._shown(seen, chat, shown)

    def _sends(self) -> None:
        """Each acknowledged message is stored once, at its acknowledged place; every stored message was sent."""
        rows: dict[str | None, list[Row]] = defaultdict(list)
        for row in self.stored.messages:
            rows[row.client_id].append(row)
        for send in self.ledger.sends.values():
            found = rows.pop(send.client_id, [])
            if len(send.places) > 1:
                self.fault("doubled", send.chat, f"{send.client_id} was answered with {len(send.places)} places")
            if len(found) > 1:
                self.fault("doubled", send.chat, f"{send.client_id} is there {len(found)} times", found[0].seq)
            elif not found and send.exists is Known.YES and send.deleted is Known.NO:
                when = f" at {send.acked_at:%H:%M:%S.%f}" if send.acked_at else ""
                self.fault("lost", send.chat, f"{send.client_id} was acknowledged{when}", next(iter(send.places))[1])
            elif found and send.exists is Known.NO:
                self.fault("invented", send.chat, f"{send.client_id} was refused, and is there", found[0].seq)
            for row in found:
                if row.chat != send.chat or (send.acked and (row.id, row.seq) not in send.places):
                    self.fault("order", send.chat, f"{send.client_id} is not where it was said to be", row.seq)
                if row.live and (send.deleted is Known.YES or send.vanishes):
                    self.fault("content", send.chat, f"{send.client_id} was deleted or expired, and is there", row.seq)
                if not row.live and send.deleted is Known.NO:
                    self.fault("lost", send.chat, f"{send.client_id} is deleted, but no client deleted it", row.seq)
        for others in rows.values():
            for row in others:
                self.fault("invented", row.chat, f"{row.client_id} was never sent", row.seq)

    def _seqs(self) -> None:
        """The seqs of each chat are 1, 2, 3, ... last_seq."""
        seqs: dict[str, Counter[int]] = defaultdict(Counter)
        for row in self.stored.messages:
            seqs[row.chat][row.seq] += row.live
        for place in self.stored.events:
            seqs[place.chat][place.seq] += 1
        for chat in self.stored.last.keys() | seqs.keys():
            last = self.stored.last.get(chat, 0)
            for seq in sorted(set(range(1, last + 1)) - seqs[chat].keys()):
                self.fault("gap", chat, "nothing has this seq", seq)
            for seq, times in seqs[chat].items():
                if times > 1:
                    self.fault("doubled", chat, f"{times} rows have this seq", seq)
                if seq > last:
                    self.fault("order", chat, f"beyond last_seq {last}", seq)

    def _together(self) -> None:
        """All agree on what is at each place, and it is what is stored there."""
        for seen in self.seen:
            for chat, view in seen.views.items():
                for event in view.events.values():
                    if event.kind == "hidden":
                        continue
                    try:
                        merge(self.logs[chat], event)
                    except Conflict as conflict:
                        self.fault("order", chat, f"{seen.name} and others: {conflict}", event.seq)
        for row in self.stored.messages:
            event = self.logs[row.chat].get(row.seq)
            if event is not None and (event.kind not in ("message_new", "message_deleted") or event.about != row.id):
                self.fault("order", row.chat, f"a message's place, and clients have {event.kind}", row.seq)
        for place in self.stored.events:
            event = self.logs[place.chat].get(place.seq)
            if event is not None and event.kind != place.kind and not event.gone and place.kind != "message_deleted":
                self.fault("order", place.chat, f"the place of {place.kind}, and clients have {event.kind}", place.seq)

    def _sense(self) -> None:
        """A repetition is no event, and receipts are none."""
        for chat, log in self.logs.items():
            inside = set(self.ledger.founders.get(chat, ()))
            reactions: set[tuple[str, str, str]] = set()
            pins: set[str] = set()
            unknown = self._forgotten(chat)
            blurred = any(
                event.kind in OF_REACTIONS | OF_PINS for event in unknown
            )  # of these only the places are known
            for event in sorted([*log.values(), *unknown], key=lambda event: event.seq):
                repeated = False
                if event.kind in ("participant_added", "participant_removed"):
                    adds = event.kind == "participant_added"
                    repeated = adds == (event.about in inside) and event.seq > 1
                    (inside.add if adds else inside.discard)(event.about)
                elif event.kind in ("reaction_added", "reaction_removed") and not blurred:
                    key, adds = (event.about, event.by, event.what), event.kind == "reaction_added"
                    repeated = adds == (key in reactions)
                    (reactions.add if adds else reactions.discard)(key)
                elif event.kind in OF_PINS and not blurred:
                    adds = event.kind == "message_pinned"
                    repeated = adds == (event.about in pins)
                    (pins.add if adds else pins.discard)(event.about)
                elif event.kind == "message_deleted":  # without an event for its pin
                    pins.discard(event.about)
                elif event.kind == "receipt":
                    repeated = True
                if repeated:
                    self.fault("order", chat, f"{event.kind} that changes nothing, or goes back", event.seq)

    def _forgotten(self, chat: str) -> list[Event]:
        """What is stored, and all clients have forgotten since a new epoch began."""
        if not self.ledger.renewable:
            return []
        log = self.logs[chat]
        return [
            Event(place.kind, chat, place.seq, place.user or "")
            for place in self.stored.events
            if place.chat == chat and place.seq not in log
        ]

    def _marks(self, seen: Seen) -> None:
        """Marks only grow; of who was always in a chat /sync has brought the newest; in a channel only one's own."""
        if seen.marks is None:
            return
        for (chat, user), marks in seen.marks.items():
            for before, after in itertools.pairwise(marks):
                if any(new < old for new, old in zip(after, before, strict=True)):
                    self.fault("marks", chat, f"{seen.name} has {user} at {before} and then {after}")
            if self.ledger.kinds.get(chat) == "channel" and user != seen.user:
                self.fault("marks", chat, f"{seen.name} sees how far {user} has read a channel")
        for (chat, user), mark in self.stored.marks.items():
            always = self.spells(seen.user, chat) == [(1, None)] and self.spells(user, chat) == [(1, None)]
            visible = user == seen.user or self.ledger.kinds.get(chat) != "channel"
            if always and visible and seen.marks.get((chat, user), [None])[-1] != mark:
                self.fault("marks", chat, f"{seen.name} was not brought {user} at {mark}")

    def spells(self, user: str, chat: str) -> list[tuple[int, int | None]]:
        """From where to where a user was in a chat."""
        spells: list[tuple[int, int | None]] = []
        since = 1 if user in self.ledger.founders.get(chat, ()) else None
        for move in self._moves.get((chat, user), ()):
            if move.kind == "participant_added" and since is None:
                since = move.seq
            elif move.kind == "participant_removed" and since is not None:
                spells.append((since, move.seq))
                since = None
        return spells if since is None else [*spells, (since, None)]

    def _events(self, seen: Seen, chat: str) -> None:
        """Somebody has every event of the time it was in the chat, and no other."""
        view = seen.views.get(chat)
        base = view.base if view else 0
        has = view.events.keys() if view else set()
        allowed: set[int] = set()
        for first, last in self.spells(seen.user, chat):
            allowed.update(range(first, (last or self.stored.last[chat]) + 1))
        needed = {seq for seq in allowed if seq > base}
        for seq in sorted(needed - has):
            self.fault("gap", chat, f"{seen.name} misses it", seq)
        for seq in sorted(has - allowed):
            self.fault("leaked", chat, f"{seen.name} was not in the chat", seq)
        heard = (seen.heard or {}).get(chat, [])
        for before, after in itertools.pairwise(heard):
            if after == before:
                self.fault("doubled", chat, f"/sync tells {seen.name} of it again", after)
            elif after < before:
                self.fault("order", chat, f"/sync tells {seen.name} of it after {before}", after)

    def _hidden(self, seen: Seen, chat: str) -> None:
        """What one may not see is hidden, and nothing else is."""
        view, log = seen.views.get(chat), self.logs[chat]
        if view is None:
            return
        channel = self.ledger.kinds.get(chat) == "channel"
        for first, last in self.spells(seen.user, chat):
            for seq, event in view.events.items():
                known = log.get(seq)  # what it is to those who see it
                if known is None or seq < first or (last is not None and seq > last):
                    continue
                if channel:
                    about_others = known.kind in OF_REACTIONS | OF_PARTICIPANTS
                    must, may = False, about_others and seen.user not in (known.about, known.by)
                else:
                    of_message = known.kind in OF_REACTIONS | OF_PINS | OF_MESSAGES
                    changes = of_message and self._places.get(known.about, seq) != seq
                    must = may = changes and self._places[known.about] < first
                if event.kind != "hidden" and must:
                    self.fault("leaked", chat, f"{seen.name} is shown what was done to a message from before", seq)
                # Of what happened after one has left nothing is known: a message may have changed since.
                left = last is not None and known.kind in OF_MESSAGES | OF_CHATS
                if event.kind == "hidden" and not may and not left:
                    self.fault("hidden", chat, f"from {seen.name}: {known.kind}", seq)

    def _membership(self, seen: Seen) -> None:
        """GET /chats returns exactly the chats that the user is in according to the events."""
        if seen.heard is not None:
            return
        inside = {chat for chat in self.stored.last if any(last is None for _, last in self.spells(seen.user, chat))}
        for chat in inside ^ seen.shown.keys():
            self.fault("membership", chat, f"{seen.name} is {'not ' * (chat in inside)}listed in it, the events differ")

    def _shown(self, seen: Seen, chat: str, shown: Shown) -> None:
        """GET shows the same as the events of the client, and as its own requests."""
        if chat not in self.stored.last:
            self.fault("invented", chat, f"{seen.name} sees it, and it is not stored")
            return
        if shown.last_seq != self.stored.last[chat]:
            self.fault("order", chat, f"{seen.name} is shown last_seq {shown.last_seq}")
        spells = self.spells(seen.user, chat)
        since = spells[-1][0] if spells else 1
        seqs = [message.seq for message in shown.messages]
        if seqs != sorted(set(seqs)):
            self.fault("order", chat, f"GET shows {seen.name} messages out of order, or twice")
        live = {row.id for row in self._rows[chat] if row.live and row.seq >= since}
        mine = list(seen.views[chat].messages.values()) if chat in seen.views else []
        channel = self.ledger.kinds.get(chat) == "channel"
        if channel:  # its messages show own reactions only; owner and admins see those of others as events
            mine = [self._own_reactions(message, seen.user) for message in mine]
        for name, messages in (("GET", shown.messages), (seen.name, mine)):
            known = {message.id: message for message in messages}
            for missing in live - known.keys():
                self.fault("lost", chat, f"{name} ({seen.name}) has no {missing}")
            for message in messages:
                if message.id not in live and message.seq >= since:
                    self.fault("invented", chat, f"{name} ({seen.name}) has {message.id}", message.seq)
                for text in self._content(message, seen.user if channel else None):
                    self.fault("content", chat, f"{name} ({seen.name}): {text}", message.seq)
        for theirs, ours in self._pairs(shown.messages, mine):
            if theirs != ours:
                names = [name for name in Message._fields if getattr(theirs, name) != getattr(ours, name)]
                self.fault("content", chat, f"GET and {seen.name} differ in {names} of {theirs.id}", theirs.seq)
        unread = sum(
            message.sender != seen.user and message.seq > max(shown.read_seq, since) for message in shown.messages
        )
        if unread != shown.unread:
            self.fault("unread", chat, f"{seen.name} has {unread} after {shown.read_seq}, shown {shown.unread}")
        read = self.ledger.read.get((chat, seen.user), 0)
        if shown.read_seq < read and read > since:
            self.fault("unread", chat, f"{seen.name} read {read}, shown {shown.read_seq}")

    @staticmethod
    def _pairs(first: list[Message], second: list[Message]) -> Iterator[tuple[Message, Message]]:
        by_id = {message.id: message for message in second}
        for message in first:
            if message.id in by_id:
                yield message, by_id[message.id]

    @staticmethod
    def _own_reactions(message: Message, user: str) -> Message:
        return message._replace(reactions=frozenset(one for one in message.reactions if one[0] == user))

    def _content(self, message: Message, only: str | None) -> Iterator[str]:
        """What is wrong with a message that shows all reactions, or those of ``only``."""
        send: Send | None = self.ledger.sends.get(message.client_id or "")
        if send is None:
            return
        if message.sender != send.sender:
            yield "it has another sender"
        if message.payload not in send.payloads:
            yield "it is not as it was sent or edited"
        for reaction, known in send.reactions.items():
            if only not in (None, reaction[0]) or known is Known.MAYBE:
                continue
            if (known is Known.YES) != (reaction in message.reactions):
                yield f"the reaction of {reaction[0][:8]} should {'not ' * (known is Known.NO)}be there"
        for who, _emoji in message.reactions:
            if only not in (None, who):
                yield f"it shows a reaction of {who[:8]}"
        for who, emoji in message.reactions - send.reactions.keys():
            yield f"{who[:8]} never reacted with {emoji}"

    def fault(self, kind: str, chat: str, text: str, seq: int = 0) -> None:
        self.ledger.fault(kind, chat, text, seq)
