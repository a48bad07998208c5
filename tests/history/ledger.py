"""The requests of the clients and the answers they got: the model that the checker compares the server with."""

from __future__ import annotations

import base64
import itertools
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import NamedTuple

from tests.history.view import Event


class Fault(NamedTuple):
    """Something that must not be. ``kind`` is a word that the summary counts."""

    kind: str
    chat: str
    text: str
    seq: int = 0


class Known(Enum):
    """The known outcome of a request whose answer may have been lost."""

    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


@dataclass
class Send:
    """A message that a client tried to send."""

    client_id: str
    chat: str
    sender: str
    payload: str
    refused: bool = False  # at the first try, so that it can't exist
    places: set[tuple[str, int]] = field(default_factory=set)  # (message id, seq), as answered
    acked_at: datetime | None = None  # by the clock that logs go by
    payloads: set[str] = field(default_factory=set)  # the payloads it may have now
    deleted: Known = Known.NO
    vanishes: bool = False
    reactions: dict[tuple[str, str], Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.payloads.add(self.payload)

    @property
    def acked(self) -> bool:
        return bool(self.places)

    @property
    def message_id(self) -> str:
        return next(iter(self.places))[0]

    @property
    def exists(self) -> Known:
        """YES if it must be in its chat, NO if it must not, as long as no client deletes it."""
        if self.acked:
            return Known.YES
        return Known.NO if self.refused else Known.MAYBE


class Ledger:
    """The model of the whole run. Faults are recorded, so that the run goes on and shows more of them."""

    def __init__(self) -> None:
        self.sends: dict[str, Send] = {}
        self.kinds: dict[str, str] = {}  # of chats
        self.founders: dict[str, set[str]] = {}  # who was in a chat from its first event on
        self.read: dict[tuple[str, str], int] = {}  # (chat, user): the highest read_seq that was acknowledged
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.last_lost = 0.0  # when a request had no answer, or was refused as unavailable, by the monotonic clock
        self.renewable = False  # the database may begin a new epoch: then clients list everything again
        self._numbers = itertools.count()
        self._same: dict[Event, Event] = {}

    def send(self, chat: str, sender: str, client_id: str, size: int) -> Send:
        """Record a message of about so many bytes before a client sends it."""
        text = f"{next(self._numbers)} ".encode().ljust(size, b".")
        send = Send(client_id, chat, sender, base64.b64encode(text).decode())
        self.sends[send.client_id] = send
        return send

    def chat(self, chat: str, kind: str, founders: set[str]) -> None:
        """Record a created chat. Two users have one direct chat, however often either of them requests it."""
        if kind == "direct":
            for other, pair in self.founders.items():
                if self.kinds[other] == "direct" and pair == founders and other != chat:
                    self.fault("doubled", chat, f"a direct chat of two who have {other}")
        self.kinds[chat], self.founders[chat] = kind, founders

    def text(self) -> str:
        """A payload that no message has yet."""
        return base64.b64encode(f"edited {next(self._numbers)}".encode()).decode()

    def same(self, event: Event) -> Event:
        """One copy of equal events: each is heard by many."""
        return self._same.setdefault(event, event)

    def fault(self, kind: str, chat: str, text: str, seq: int = 0) -> None:
        if len(self.faults) < 1000:
            self.faults.append(Fault(kind, chat, text, seq))
        self.counts[f"fault:{kind}"] += 1
