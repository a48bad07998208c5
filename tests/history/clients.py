"""Clients that keep a copy of their chats: those that write, over a socket and HTTP, and those that only page /sync."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict, deque
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.bench.users import User
from tests.client import Answer
from tests.history.ledger import Ledger
from tests.history.line import Frame, Line, Lost, Refused
from tests.history.stage import Theatre
from tests.history.view import Conflict, Event, Message, View


def following(answer: Answer) -> str | None:
    """The query of the next page, by the Link header (RFC 8288)."""
    link = answer.headers.get("Link", "")
    return urlsplit(link[link.index("<") + 1 : link.index(">")]).query if 'rel="next"' in link else None


class Reader:
    """What every client can do: list, and page /sync from where it was."""

    def __init__(self, user: User, stage: Theatre, luck: random.Random, ledger: Ledger) -> None:
        self.user, self.luck, self.ledger = user, luck, ledger
        self.line = Line(user, stage, luck, ledger, self._frame, self._opened, self._forget)
        self.views: dict[str, View] = {}
        self.cursor = ""
        self.marks: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)  # as /sync brings them

    def _frame(self, frame: Frame) -> None:
        raise NotImplementedError

    def _opened(self) -> None:
        raise NotImplementedError

    def _synced(self, event: Event) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        """Start again in another epoch: the known events may be lost, so the next page begins with a new list."""
        if not self.ledger.renewable:
            self.ledger.fault("answer", "", "a new epoch, and the database was not put back")
        self.cursor = ""
        self.marks.clear()
        for chat, former in list(self.views.items()):
            view = self.views[chat] = View(former.base)
            view.member, view.role = former.member, former.role

    async def begin(self) -> None:
        """Take the cursor first, then list the chats, and the marks that moved before."""
        answer = (await self.line.surely(lambda: self.line.ask("GET", "/sync"))).json
        if answer["events"] or answer["marks"] or answer["has_more"]:
            self.ledger.fault("answer", "", "/sync without a cursor has events")
        self.cursor = answer["cursor"]
        listed = set()
        # In one page: a chat that becomes active between two pages moves to the front, and is on neither.
        for chat in await self._pages("/chats", 500):
            view = self.views[chat["id"]] = View(chat["last_seq"])
            view.member, view.role = True, chat["role"]
            listed.add(chat["id"])
            path = f"/chats/{chat['id']}/receipts"
            with contextlib.suppress(Refused):  # it was removed meanwhile, and will hear of it
                for mark in (await self.line.surely(lambda path=path: self.line.ask("GET", path))).json:
                    self._marked(chat["id"], mark)
        # Of the chats that it is not in, or no more, it may know what comes from now on.
        for other, last in (await self.line.stage.lasts()).items():
            if other not in listed:
                self.views[other] = View(last)

    async def chats(self) -> list[Any]:
        return await self._pages("/chats", self.luck.choice((3, 10, 100)))

    async def messages(self, chat: str) -> list[Message]:
        """All of a chat, oldest first. Raises Refused when it isn't (or no longer) in it."""
        limit = self.luck.choice((7, 50, 200, 200))
        if self.luck.random() < 0.5:
            pages = await self._pages(f"/chats/{chat}/messages", limit)
            pages.reverse()
        else:
            pages = await self._pages(f"/chats/{chat}/messages", limit, "after_seq=0")
        return [Message.read(message) for message in pages]

    async def _pages(self, path: str, limit: int, query: str = "") -> list[Any]:
        found: list[Any] = []
        next_query: str | None = f"limit={limit}" + (f"&{query}" if query else "")
        while next_query is not None:
            asked = f"{path}?{next_query}"
            answer = await self.line.surely(lambda asked=asked: self.line.ask("GET", asked))
            if len(answer.json) > int(parse_qs(next_query)["limit"][0]):
                self.ledger.fault("answer", "", f"{path} has more than its limit")
            found += answer.json
            next_query = following(answer)
        return found

    async def sync(self, limit: int) -> bool:
        """One page of /sync, or a new list after a new epoch; whether there is more. Raises Lost."""
        while not self.cursor:
            await self.begin()
        cursor = self.cursor
        try:
            answer = (await self.line.ask("GET", f"/sync?cursor={cursor}&limit={limit}")).json
        except Refused as refusal:
            if refusal.code != "cursor_expired" or not self.ledger.renewable:
                raise
            self._forget()
            return True
        if cursor != self.cursor:
            return True  # forgotten meanwhile
        events = answer["events"]
        if len(events) > limit:
            self.ledger.fault("answer", "", f"/sync has {len(events)} events where {limit} were asked for")
        for wire in events:
            for event in self.read(wire):
                self._synced(event)
        for mark in answer["marks"]:
            self._marked(mark["chat_id"], mark)
        self.cursor = answer["cursor"]
        return bool(answer["has_more"])

    def _marked(self, chat: str, mark: Frame) -> None:
        self.marks[chat, mark["user_id"]].append((mark["delivered_seq"], mark["read_seq"]))

    def read(self, wire: Frame) -> list[Event]:
        try:
            return [self.ledger.same(event) for event in Event.read_all(wire)]
        except (KeyError, ValueError, TypeError) as error:
            self.ledger.fault("answer", str(wire.get("chat_id")), f"no event of the contract: {error!r}")
            return []


class Follower(Reader):
    """Another device of a user's, which never opens a socket: its pages alone must contain every event once."""

    def __init__(self, user: User, stage: Theatre, luck: random.Random, ledger: Ledger) -> None:
        super().__init__(user, stage, luck, ledger)
        self.heard: dict[str, list[int]] = defaultdict(list)  # seqs as they came
        self.logs: dict[str, dict[int, Event]] = defaultdict(dict)

    def _forget(self) -> None:
        super()._forget()
        self.heard.clear()
        self.logs.clear()

    def _synced(self, event: Event) -> None:
        self.heard[event.chat].append(event.seq)
        if event.seq in self.logs[event.chat]:
            self.ledger.fault("doubled", event.chat, f"/sync tells {self.user.public_id} of it again", event.seq)
        self.logs[event.chat][event.seq] = event

    async def follow(self, until: asyncio.Event) -> None:
        """Page on until then."""
        while not until.is_set():
            try:
                more = await self.sync(self.luck.choice((1, 2, 3, 5, 10, 40)))
            except Lost:
                more = False
            if not more:
                await asyncio.sleep(self.luck.uniform(0.05, 0.4))

    async def settle(self) -> None:
        while await self.line.surely(lambda: self.sync(self.luck.choice((5, 40, 200)))):
            pass


class Client(Reader):
    """A phone: a socket most of the time, and /sync whenever it may have missed something."""

    def __init__(self, user: User, stage: Theatre, luck: random.Random, ledger: Ledger) -> None:
        super().__init__(user, stage, luck, ledger)
        self.recent: dict[str, deque[Event]] = defaultdict(lambda: deque(maxlen=30))  # message_new
        self.away = False  # it closed its socket, and wants none for now
        self._unlisted: set[str] = set()
        self._conflicts: list[tuple[str, int, str]] = []  # chat, seq, text; unless they are of an epoch that has ended
        self._behind = asyncio.Event()
        self._syncing = asyncio.Lock()

    async def begin(self) -> None:
        await super().begin()
        for chat, view in list(self.views.items()):
            if view.member:
                await self._list(chat, view)

    async def _list(self, chat: str, view: View) -> None:
        # A client that joined again while it lists ignores what it listed: it lists once more.
        start = view.start
        try:
            found = (await self.line.surely(lambda: self.line.ask("GET", f"/chats/{chat}"))).json
            messages = await self.messages(chat)
        except Refused:
            return  # it was removed meanwhile, and will hear of it
        if view.start == start:
            view.role = found["role"]
            view.listed = {message.id: message for message in messages}

    def _opened(self) -> None:
        self._behind.set()

    def _forget(self) -> None:
        super()._forget()
        self.recent.clear()
        self._unlisted.clear()
        self._conflicts.clear()
        self._behind.set()

    def _frame(self, frame: Frame) -> None:
        for event in self.read(frame):
            self.ledger.counts["frames"] += 1
            self.learn(event)
            if self.views[event.chat].behind:
                self._behind.set()

    def _synced(self, event: Event) -> None:
        self.learn(event)

    def learn(self, event: Event) -> None:
        """Merge an event by (chat, seq)."""
        view = self.views.setdefault(event.chat, View())
        try:
            new = view.add(event)
        except Conflict as conflict:
            self._conflicts.append((event.chat, event.seq, f"{self.user.public_id}: {conflict}"))
            self._behind.set()
            return
        if not new:
            return
        if event.kind == "message_new":
            self.recent[event.chat].append(event)
        me = event.about == self.user.user_id
        if (event.kind == "participant_added" and me) or event.kind == "chat_created":
            if view.joined(event.seq, event.what):
                self._unlisted.add(event.chat)
        elif event.kind == "participant_removed" and me:
            view.left(event.seq)
        elif event.kind == "participant_role" and me:
            view.role = event.what

    async def keep_up(self, until: asyncio.Event) -> None:
        """Stay online and complete until then."""
        while not until.is_set():
            try:
                if not self.away:
                    await self.line.connect()
                if self._behind.is_set():
                    # Frames of two servers pass each other: what is missing often is on its way.
                    await asyncio.sleep(0.2)
                    await self.catch_up(self.luck.choice((3, 20, 200, 1000)))
            except Lost:
                await asyncio.sleep(self.luck.uniform(0.05, 0.3))
            await asyncio.sleep(0.05)

    async def catch_up(self, limit: int) -> None:
        """Page /sync to its end, and list chats that are new. Raises Lost."""
        async with self._syncing:
            self._behind.clear()
            try:
                while await self.sync(limit):
                    pass
                while self._unlisted:
                    chat = self._unlisted.pop()
                    await self._list(chat, self.views[chat])
            except Lost:
                self._behind.set()
                raise

    async def settle(self) -> None:
        """Be online, and know everything."""
        self.away = False
        await self.line.surely(self.line.connect)
        await self.line.surely(lambda: self.catch_up(200))
        for chat, seq, text in self._conflicts:
            self.ledger.fault("doubled", chat, text, seq)
        self._conflicts.clear()

    async def close(self) -> None:
        await self.line.close()
