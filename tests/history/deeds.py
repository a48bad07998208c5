"""What a client does at random, each deed until it has an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

from tests.bench.users import User
from tests.history.clients import Client
from tests.history.ledger import Known, Send
from tests.history.line import Refused
from tests.history.view import Event, Message

EMOJI = ("👍", "❤️", "😂", "🔥")
EXPIRES = 5  # seconds, the least there is
ROLES = ("owner", "admin", "admin", "member", "member", "restricted")
CROWDS = ("group", "channel")
MOST = 40  # people in a group
OUTSIDE = {"not_found", "forbidden"}  # answers to a user who is not (or no longer) in a chat


class Actor:
    """A client that acts. ``people`` are all users by id, for those it may add.

    ``pace`` is the mean of seconds between two deeds, ``vanishing`` the share of messages that expire.
    """

    def __init__(self, client: Client, people: dict[str, User], pace: float, vanishing: float) -> None:
        self.client, self.people = client, people
        self.luck, self.ledger, self.line = client.luck, client.ledger, client.line
        self.me = client.user.user_id
        self._pace, self._vanishing = pace, vanishing
        self._own: list[Send] = []
        self._deeds: list[tuple[int, Callable[[str], Any]]] = [
            (60, self.write),
            (8, self.edit),
            (4, self.delete),
            (9, self.react),
            (2, self.pin),
            (9, self.receipt),
            (6, self.membership),
            (2, self.wander),
            (1, self.meet),
        ]

    async def act(self, until: asyncio.Event) -> None:
        """Do one thing after another until then; what was begun is finished."""
        weights = [weight for weight, _ in self._deeds]
        doings = [doing for _, doing in self._deeds]
        while not until.is_set():
            await asyncio.sleep(self.luck.expovariate(1 / self._pace))
            chats = [chat for chat, view in self.client.views.items() if view.member]
            if chats and not until.is_set():
                await self.luck.choices(doings, weights)[0](self.luck.choice(chats))

    def refused(self, refusal: Refused, chat: str, allowed: set[str] = OUTSIDE) -> None:
        if refusal.code not in allowed:
            self.ledger.fault("answer", chat, f"{self.client.user.public_id} was refused with {refusal.code}")

    async def write(self, chat: str) -> None:
        """One message, or some at once."""
        if self.ledger.kinds.get(chat) == "channel" and self.client.views[chat].role not in ("owner", "admin"):
            await self.receipt(chat)
            return
        many = self.luck.choice((1, 1, 1, 2, 4))
        await asyncio.gather(*(self.send(chat, self.luck.random() < self._vanishing) for _ in range(many)))

    async def send(self, chat: str, vanishes: bool = False) -> Send | None:
        """A message under one client_id until it is answered, each time over the socket or over HTTP."""
        client_id = str(UUID(int=self.luck.getrandbits(128), version=4))
        send = self.ledger.send(chat, self.me, client_id, self.luck.randint(12, 300))
        body: dict[str, Any] = {"client_id": send.client_id, "encrypted_payload": send.payload, "message_type": "text"}
        if vanishes:
            send.vanishes, send.deleted = True, Known.MAYBE
            body["expires_in"] = EXPIRES

        async def once() -> None:
            if self.luck.random() < 0.8:
                answer = await self.line.say("message_send", chat_id=chat, **body)
                send.places.add((answer["message_id"], answer["seq"]))
            else:
                answer = (await self.line.ask("POST", f"/chats/{chat}/messages", body)).json
                send.places.add((answer["id"], answer["seq"]))

        try:
            await self.line.surely(once)
            send.acked_at = datetime.now(UTC)
            if self.luck.random() < 0.03:  # a phone that forgot that it had an answer
                await self.line.surely(once)
        except Refused as refusal:
            self.refused(refusal, chat)
            if not send.acked:
                send.refused = refusal.lost == 0
                return None
        self.ledger.counts["acked"] += 1
        message = Message(*next(iter(send.places)), self.me, send.client_id, send.payload)
        event = Event("message_new", chat, message.seq, message.id, self.me, message=message)
        self.client.learn(self.ledger.same(event))
        self._own = [*self._own[-29:], send]
        return send

    async def edit(self, chat: str) -> None:
        own = [send for send in self._own if send.chat == chat]
        if not own:
            return
        send, payload = self.luck.choice(own), self.ledger.text()
        before = set(send.payloads)
        send.payloads.add(payload)
        try:
            body = {"encrypted_payload": payload}
            await self.line.surely(lambda: self.line.ask("PUT", f"/messages/{send.message_id}", body))
            send.payloads.clear()
            send.payloads.add(payload)
            self.ledger.counts["edited"] += 1
        except Refused as refusal:
            # Answers that were lost may have been of edits that were done.
            if refusal.lost == 0:
                send.payloads.clear()
                send.payloads.update(before)
            self.refused(refusal, chat)

    async def delete(self, chat: str) -> None:
        """Delete an own message, or as an administrator any message."""
        rank = self.client.views[chat].role
        events = [event for event in self.client.recent[chat] if event.by == self.me or rank in ("owner", "admin")]
        chosen = self._chosen(events)
        if chosen is None:
            return
        send, message_id = chosen
        send.deleted = Known.MAYBE if send.deleted is Known.NO else send.deleted
        try:
            await self.line.surely(lambda: self.line.ask("DELETE", f"/messages/{message_id}"))
            send.deleted = Known.YES
            self.ledger.counts["deleted"] += 1
        except Refused as refusal:
            self.refused(refusal, chat)

    async def react(self, chat: str) -> None:
        chosen = self._chosen(list(self.client.recent[chat]))
        if chosen is None:
            return
        send, message_id = chosen
        mine = (self.me, self.luck.choice(EMOJI))
        method, after = self.luck.choice((("PUT", Known.YES), ("PUT", Known.YES), ("DELETE", Known.NO)))
        path = f"/messages/{message_id}/reactions/{quote(mine[1])}"
        before = send.reactions.get(mine, Known.NO)
        send.reactions[mine] = before if before is after else Known.MAYBE
        try:
            await self.line.surely(lambda: self.line.ask(method, path))
            send.reactions[mine] = after
        except Refused as refusal:
            if refusal.lost == 0:
                send.reactions[mine] = before
            self.refused(refusal, chat)

    async def pin(self, chat: str) -> None:
        """Pin or unpin a message, or unpin all."""
        chosen = self._chosen(list(self.client.recent[chat]))
        if chosen is None:
            return
        one = f"/messages/{chosen[1]}/pin"
        method, path = self.luck.choice(
            (("PUT", one), ("PUT", one), ("PUT", one), ("DELETE", one), ("DELETE", f"/chats/{chat}/pins"))
        )
        try:
            await self.line.surely(lambda: self.line.ask(method, path))
            self.ledger.counts["pinned"] += 1
        except Refused as refusal:
            self.refused(refusal, chat, OUTSIDE | {"conflict"})

    async def receipt(self, chat: str) -> None:
        seqs = self.client.views[chat].events
        if not seqs:
            return
        read = max(1, max(seqs) - self.luck.choice((0, 0, 1, 5)))
        body = dict.fromkeys(self.luck.choice((["read_seq"], ["delivered_seq"], ["read_seq", "delivered_seq"])), read)
        path = f"/chats/{chat}/receipts"
        try:
            answer = (await self.line.surely(lambda: self.line.ask("POST", path, body))).json
        except Refused as refusal:
            self.refused(refusal, chat)
            return
        if "read_seq" in body:
            key = (chat, self.me)
            self.ledger.read[key] = max(self.ledger.read.get(key, 0), read)
            if answer["read_seq"] < read:
                self.ledger.fault("unread", chat, f"read {read}, answered {answer['read_seq']}")

    async def membership(self, chat: str) -> None:
        """Manage an own chat, or leave this one."""
        crowds = [
            one for one, view in self.client.views.items() if view.member and self.ledger.kinds.get(one) in CROWDS
        ]
        own = [one for one in crowds if self.client.views[one].role in ("owner", "admin")]
        try:
            if own and self.luck.random() < 0.8:
                await self._govern(self.luck.choice(own))
            elif chat in crowds and self.client.views[chat].role != "owner" and self.luck.random() < 0.3:
                await self.line.surely(lambda: self.line.ask("DELETE", f"/chats/{chat}/participants/{self.me}"))
                self.ledger.counts["left"] += 1
        except Refused as refusal:
            self.refused(refusal, chat, OUTSIDE | {"conflict"})

    async def _govern(self, chat: str) -> None:
        """Add or remove a user, change a role (also to owner), or change the title of the chat."""
        path = f"/chats/{chat}/participants"
        inside = await self.line.surely(lambda: self.line.ask("GET", f"{path}?limit=1000"))
        others = sorted({person["user_id"] for person in inside.json} - {self.me})
        outside = sorted(self.people.keys() - set(others) - {self.me})
        choice = self.luck.choice(("add", "add", "add", "add", "remove", "role", "title"))
        if choice == "add" and outside and len(others) < MOST:
            body = {"public_id": self.people[self.luck.choice(outside)].public_id}
            await self.line.surely(lambda: self.line.ask("POST", path, body))
            self.ledger.counts["added"] += 1
        elif choice == "remove" and len(others) > 1:
            other = self.luck.choice(others)
            await self.line.surely(lambda: self.line.ask("DELETE", f"{path}/{other}"))
            self.ledger.counts["removed"] += 1
        elif choice == "role" and others:
            other, role = self.luck.choice(others), self.luck.choice(ROLES)
            await self.line.surely(lambda: self.line.ask("PUT", f"{path}/{other}", {"role": role}))
            self.ledger.counts["roles"] += 1
        elif choice == "title":
            await self.line.surely(lambda: self.line.ask("PUT", f"/chats/{chat}", {"title": self.ledger.text()}))

    async def meet(self, chat: str) -> None:
        """Open a direct chat with another user."""
        other = self.luck.choice(sorted(self.people.keys() - {self.me}))
        body = {"type": "direct", "participants": [self.people[other].public_id]}
        found = (await self.line.surely(lambda: self.line.ask("POST", "/chats", body))).json
        self.ledger.chat(found["id"], "direct", {self.me, other})

    async def wander(self, chat: str) -> None:
        """Lose the socket, stay away for a while, or look at something."""
        choice = self.luck.choice(("drop", "away", "chats", "messages"))
        if choice == "chats":
            await self.client.chats()
        elif choice == "messages":
            try:
                await self.client.messages(chat)
            except Refused as refusal:
                self.refused(refusal, chat)
        else:
            self.client.away = choice == "away"
            await self.line.close()
            await asyncio.sleep(self.luck.uniform(0.1, 1.5))
            self.client.away = False

    def _chosen(self, events: list[Event]) -> tuple[Send, str] | None:
        """A message that a client received, maybe before its sender got an answer; with its id."""
        event = self.luck.choice(events) if events else None
        if event is None or event.message is None or event.message.client_id is None:
            return None
        send = self.ledger.sends.get(event.message.client_id)
        return None if send is None else (send, event.about)
