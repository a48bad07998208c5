"""Three people write to each other: ``messaging_client.py [URL of the server]``. The rules are in docs/messaging.md."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from typing import Any
from uuid import uuid4

from signal_device import Device, SenderKey, b64, unb64
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8080"


class Client:
    """A person with one device. An app stores these fields on disk, and reconnects when its socket breaks."""

    def __init__(self, name: str) -> None:
        self.name, self.public_id, self.device, self.token = name, f"{name}_{secrets.token_hex(4)}", Device(), ""
        self.cursor, self.seen = "", dict[str, int]()  # the cursor of all chats, and the seq of each
        self.epoch, self.sent = "", list[dict[str, Any]]()  # the server's epoch, and the messages acknowledged in it
        self.known: set[tuple[str, str]] = set()  # received messages, by sender and client_id
        self.held: dict[tuple[str, int], dict[str, Any]] = {}  # events that arrived too early, by chat and seq
        self.sender_keys: dict[tuple[str, str, bytes], SenderKey] = {}  # by chat, sender, and the key's public half
        self.locked: dict[tuple[str, str, bytes], list[bytes]] = {}  # messages whose sender key is still on its way
        self.answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.one_at_a_time, self.texts = asyncio.Lock(), asyncio.Queue[str]()

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        text = None if body is None else json.dumps(body)
        request = HTTPRequest(SERVER + path, method=method, headers=headers, body=text)
        answer = await AsyncHTTPClient().fetch(request, raise_error=False)
        if answer.code >= 400:
            raise RuntimeError(f"The server answered {answer.code}: {answer.body.decode()}")
        return json.loads(answer.body)

    async def register(self) -> None:
        account = {"public_id": self.public_id, "password": secrets.token_urlsafe(), **self.device.registration()}
        signed_in = await self.ask("POST", "/auth/register", account)
        self.user_id, self.token = signed_in["user_id"], signed_in["access_token"]
        await self.begin()

    async def begin(self) -> None:
        """Take the cursor first: what happens between the two requests then comes twice instead of never."""
        self.cursor = (await self.ask("GET", "/sync"))["cursor"]
        self.seen = {chat["id"]: chat["last_seq"] for chat in await self.ask("GET", "/chats")}

    # Events: each once, in the order of its chat ----------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the socket, then sync: /sync has what came before ``ready``, the socket has what comes after it."""
        request = HTTPRequest(f"ws{SERVER[4:]}/ws", headers={"Authorization": f"Bearer {self.token}"})
        self.socket: WebSocketClientConnection = await websocket_connect(request)
        ready = json.loads(await self.socket.read_message() or "")
        back = self.epoch not in ("", ready["epoch"])
        if back:  # the operator has restored a backup
            await self.begin()
        self.listening = asyncio.create_task(self.listen())
        await self.catch_up()
        for message in self.sent if back else []:  # the server drops those it has; an app sends only the last ones
            await self.post(message)
        self.epoch = ready["epoch"]

    async def listen(self) -> None:
        while text := await self.socket.read_message():
            frame = json.loads(text)
            if frame["type"] in ("ack", "error"):  # an error may have no id, and a wait may have ended
                waiting = self.answers.pop(frame.get("id", ""), None)
                if waiting and not waiting.done():
                    waiting.set_result(frame)
            elif "seq" in frame:
                await self.take(frame)

    async def catch_up(self) -> None:
        more = True
        while more:
            page = await self.ask("GET", f"/sync?cursor={self.cursor}")
            for event in page["events"]:
                await self.take(event, synced=True)
            self.cursor, more = page["cursor"], page["has_more"]  # don't count events: a page also ends by bytes

    async def take(self, event: dict[str, Any], synced: bool = False) -> None:
        chat, seq, own = event["chat_id"], event["seq"], event.get("user_id") == self.user_id
        upto = event.get("to_seq", seq)  # /sync merges consecutive hidden events
        begins = event["type"] == "chat_created" or (event["type"] == "participant_added" and own)
        async with self.one_at_a_time:
            if seq > self.seen.get(chat, 0) + 1 and not begins and not synced:  # /sync leaves nothing out
                self.held[chat, seq] = event
                asyncio.get_running_loop().call_later(2, self.give_up, chat, seq)
                return
            while event and upto > self.seen.get(chat, 0):
                await self.apply(event)
                self.seen[chat], upto = upto, upto + 1  # an app commits this together with what was applied
                event = self.held.pop((chat, upto), {})

    def give_up(self, chat: str, seq: int) -> None:
        if self.held.pop((chat, seq), None):  # the gap is still there: a frame was lost
            self.catching_up = asyncio.create_task(self.catch_up())

    # Messages ---------------------------------------------------------------------------------------------------------

    async def apply(self, event: dict[str, Any]) -> None:
        message = event.get("message") or {"sender_id": self.user_id}
        sender, chat = message["sender_id"], event["chat_id"]
        if event["type"] != "message_new" or sender in (None, self.user_id):
            return
        if (sender, message["client_id"]) in self.known:  # a repetition, because the server had lost it
            return
        self.known.add((sender, message["client_id"]))
        payload = unb64(message["encrypted_payload"])
        if message["message_type"] == "group":
            self.locked.setdefault((chat, sender, payload[:32]), []).append(payload)
        else:
            inside = json.loads(await self.device.decrypt(sender, payload))
            if "sender_key" in inside:
                key = SenderKey.received(f"{inside['chat_id']} {sender}", inside["sender_key"])
                self.sender_keys[inside["chat_id"], sender, key.public] = key
            else:
                self.show(inside["text"])
        for name in self.locked.keys() & self.sender_keys.keys():  # message and key arrive in any order
            for payload in self.locked.pop(name):
                self.show(self.sender_keys[name].decrypt(payload).decode())
        await self.ask("POST", f"/chats/{chat}/receipts", {"read_seq": event["seq"]})

    def show(self, text: str) -> None:
        print(f"{self.name} reads: {text}")
        self.texts.put_nowait(text)

    async def send(self, chat: str, kind: str, payload: bytes) -> None:
        message = {"chat_id": chat, "client_id": str(uuid4()), "message_type": kind, "encrypted_payload": b64(payload)}
        await self.post(message)
        self.sent.append(message)

    async def post(self, message: dict[str, Any]) -> None:
        """Send a message until the server acknowledges it. The server stores it once for its client_id."""
        while True:
            frame = {"type": "message_send", "id": secrets.token_hex(4), **message}
            answer = self.answers[frame["id"]] = asyncio.get_running_loop().create_future()
            await self.socket.write_message(json.dumps(frame))
            said = await asyncio.wait_for(answer, 10)
            if said["type"] == "ack":  # this socket gets no message_new: the ack has the seq
                return await self.take({"type": "message_new", "chat_id": message["chat_id"], "seq": said["seq"]})
            if said["code"] not in ("unavailable", "rate_limited"):
                raise RuntimeError(f"The server rejected the message: {said}")
            await asyncio.sleep(said["retry_after"])

    async def write(self, other: Client, inside: dict[str, Any]) -> None:
        """Send something to one person in the direct chat. The first message starts the session."""
        chat = await self.ask("POST", "/chats", {"type": "direct", "participants": [other.public_id]})
        text = json.dumps(inside).encode()
        if self.device.knows(other.user_id):
            payload = await self.device.encrypt(other.user_id, text)
        else:
            bundle = await self.ask("GET", f"/users/{other.public_id}/prekeys")
            payload = await self.device.begin(bundle, other.user_id, text)
        await self.send(chat["id"], "pair", payload)


async def main() -> None:
    alice, bob, carol = Client("alice"), Client("bob"), Client("carol")
    for person in (alice, bob, carol):
        await person.register()
    await alice.connect()
    await bob.connect()
    await alice.write(bob, {"text": "Hello, Bob."})
    await bob.texts.get()
    await bob.write(alice, {"text": "Hello, Alice."})
    await alice.texts.get()

    people = [bob.public_id, carol.public_id]
    group = (await alice.ask("POST", "/chats", {"type": "group", "participants": people}))["id"]
    key = SenderKey.generate(f"{group} {alice.user_id}")
    for member in (bob, carol):
        await alice.write(member, {"chat_id": group, "sender_key": key.shared()})
    await alice.send(group, "group", key.encrypt(b"Hello, both of you; this was encrypted once."))
    await bob.texts.get()

    print("carol was away, and comes back")
    await carol.connect()
    await carol.texts.get()


if __name__ == "__main__":
    asyncio.run(main())
