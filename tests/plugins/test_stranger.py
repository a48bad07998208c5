"""A blocked stranger, an unanswered one, and one who is blocked in between see the same."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from uuid import uuid4

import pytest

from tests.client import Account, Answer, Socket
from tests.plugins.chatting import Json, Town, message, town
from tests.plugins.test_concealed_chats import HEART, block
from tests.running import Services

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_KEY = re.compile(r'"[A-Za-z0-9+/]{40,}={0,2}"|"[0-9a-f]{64}"')
_TRACE = re.compile(r'"(request_id|cursor)": "[^"]*"')


class Notes:
    """What the stranger gets, with each id named by the order in which it was seen, and without times and keys."""

    def __init__(self, target: Account) -> None:
        self._target, self._ids = target, dict[str, str]()
        self.lines: list[str] = []

    def add(self, what: str, seen: Any) -> None:
        text = json.dumps(_in_order(seen), sort_keys=True).replace(self._target.public_id, "TARGET")
        text = _TRACE.sub('"TRACE"', _KEY.sub('"KEY"', _TIME.sub("TIME", text)))
        self.lines.append(f"{what}: {_UUID.sub(lambda found: self._name(found[0]), text)}")

    def _name(self, found: str) -> str:
        return self._ids.setdefault(found, f"ID{len(self._ids)}")

    def answered(self, what: str, answer: Answer) -> Any:
        found = answer.json if answer.text else None
        self.add(what, [answer.status, found])
        return found


def _in_order(seen: Any) -> Any:
    """With people sorted by their roles: their ids, by which the server sorts them, are random."""
    if isinstance(seen, list):
        seen = [_in_order(one) for one in seen]
        return sorted(seen, key=lambda one: one["role"]) if _people(seen) else seen
    return {name: _in_order(value) for name, value in seen.items()} if isinstance(seen, dict) else seen


def _people(seen: list[Any]) -> bool:
    return bool(seen) and isinstance(seen[0], dict) and {"fingerprint", "role"} <= seen[0].keys()


async def observe(made: Town, stranger: Account, helper: Account, target: Account, blocks: str) -> list[str]:
    """All that the stranger can do about the target, and what they get. With ``helper`` in it, too."""
    socket = await made.socket(stranger)
    notes = Notes(target)
    for known in (stranger.user_id, helper.user_id, target.user_id):
        notes._name(known)
    if blocks == "before":
        await block(target, stranger)
    start: Json = (await stranger.get("/sync")).json
    await _writes(notes, stranger, socket, target, "first")
    if blocks == "meanwhile":
        await block(target, stranger)
    await _writes(notes, stranger, socket, target, "second")
    await _looks(notes, stranger, socket, target)
    await _groups(notes, stranger, helper, target)
    page = (await stranger.get(f"/sync?cursor={start['cursor']}&limit=1000")).json
    # Chats come in the order of their ids, which are random.
    notes.add("sync", sorted((_plain(event) for event in page["events"]), key=str))
    await asyncio.sleep(0.5)
    for frame in socket.frames:
        # Of the stranger's own marks a frame comes at most each 2 s, so how many there are is a matter of the clock.
        marks = frame.get("marks", ()) if frame["type"] == "receipts" else None
        if marks is None or any(mark["user_id"] != stranger.user_id for mark in marks):
            notes.add("frame", frame)
    await socket.close()
    return notes.lines


def _plain(event: Json) -> list[Any]:
    return [event["seq"], event["type"], event.get("user_id"), event.get("emoji")]


async def _writes(notes: Notes, stranger: Account, socket: Socket, target: Account, title: str) -> None:
    for kind in ("direct", "secret"):
        body = {"type": kind, "participants": [target.public_id], "title": title, "settings": {"x": 1}}
        where = notes.answered(f"make {kind}", await stranger.post("/chats", body))
        path = f"/chats/{where['id']}"
        posted = notes.answered("post", await stranger.post(f"{path}/messages", message()))
        sent = await socket.send("message_send", chat_id=where["id"], **message("again"))
        notes.add("send", {**sent, "id": None})
        edit = {"encrypted_payload": "BBBB"}
        notes.answered("edit", await stranger.put(f"/messages/{posted['id']}", edit))
        notes.answered("react", await stranger.put(f"/messages/{posted['id']}/reactions/{HEART}", None))
        notes.answered("unreact", await stranger.delete(f"/messages/{posted['id']}/reactions/{HEART}"))
        notes.answered("pin", await stranger.put(f"/messages/{posted['id']}/pin", None))
        notes.answered("pins", await stranger.get(f"{path}/pins"))
        notes.answered("unpin", await stranger.delete(f"/messages/{posted['id']}/pin"))
        notes.answered("unpin all", await stranger.delete(f"{path}/pins"))
        notes.answered("receipts", await stranger.post(f"{path}/receipts", {"read_seq": posted["seq"]}))
        notes.add("typing", {**await socket.send("typing", chat_id=where["id"]), "id": None})
        notes.answered("rename", await stranger.put(path, {"title": f"{title} again"}))
        notes.answered("look", await stranger.get(path))
        notes.answered("people", await stranger.get(f"{path}/participants"))
        notes.answered("history", await stranger.get(f"{path}/messages"))
        notes.answered("view", await stranger.put(f"{path}/me", {"archived": True}))
        notes.answered("accept", await stranger.post(f"{path}/accept", {}))
        notes.answered("add", await stranger.post(f"{path}/participants", {"public_id": target.public_id}))
        notes.answered("take back", await stranger.delete(f"/messages/{posted['id']}"))
    notes.answered("list", await stranger.get("/chats"))


async def _looks(notes: Notes, stranger: Account, socket: Socket, target: Account) -> None:
    notes.answered("profile", await stranger.get(f"/users/{target.public_id}"))
    notes.answered("search", await stranger.get(f"/users/search?q={target.public_id}"))
    notes.answered("bundle", await stranger.get(f"/users/{target.public_id}/prekeys"))
    verification = {"verified_fingerprint": target.fingerprint, "method": "manual"}
    notes.answered("verify", await stranger.post(f"/users/{target.public_id}/verify", verification))
    watched = await socket.send("presence_subscribe", user_ids=[target.user_id])
    notes.add("presence", {**watched, "id": None})
    call = str(uuid4())
    offer = {"call_id": call, "to_user_id": target.user_id, "encrypted_payload": "AAAA", "call_type": "audio"}
    for kind, fields in (
        ("call_offer", offer),
        ("ice_candidate", {"call_id": call, "encrypted_payload": "AAAA"}),
        ("call_hangup", {"call_id": call, "reason": "cancelled"}),
    ):
        notes.add(kind, {**await socket.send(kind, **fields), "id": None})
    notes.answered("calls", await stranger.get(f"/calls/{call}"))


async def _groups(notes: Notes, stranger: Account, helper: Account, target: Account) -> None:
    for kind in ("group", "channel", "cloud"):
        people = [target.public_id, helper.public_id]
        where = notes.answered(f"make {kind}", await stranger.post("/chats", {"type": kind, "participants": people}))
        second = (await stranger.post("/chats", {"type": kind})).json
        path = f"/chats/{second['id']}"
        body = {"public_id": target.public_id}
        notes.answered("add", await stranger.post(f"{path}/participants", body))
        notes.answered("add again", await stranger.post(f"{path}/participants", body))
        notes.answered("promote", await stranger.put(f"{path}/participants/{target.user_id}", {"role": "admin"}))
        notes.answered("look", await stranger.get(path))
        notes.answered("remove", await stranger.delete(f"{path}/participants/{target.user_id}"))
        notes.answered("ban", await stranger.delete(f"{path}/participants/{target.user_id}?ban=true"))
        posted = notes.answered("post", await stranger.post(f"/chats/{where['id']}/messages", message()))
        notes.answered("look again", await stranger.get(f"/chats/{where['id']}"))
        notes.answered("look as another", await helper.get(f"/chats/{where['id']}"))
        assert posted["seq"] > 0


@pytest.mark.gen_test(timeout=120)
@pytest.mark.parametrize("servers", [1, 2])
async def test_a_block_shows_nothing_that_silence_does_not(services: Services, servers: int) -> None:
    """All three users here hide their presence and are added by request only. A user who shows more is seen to show it
    no longer."""
    async with town(services, servers, people=9) as made:
        found = {}
        for number, blocks in enumerate(("never", "before", "meanwhile")):
            stranger, helper, target = made.people[number * 3 : number * 3 + 3]
            privacy = {"privacy": {"last_seen": "nobody", "add": "requests"}}
            assert (await target.put("/users/me", {"settings": privacy})).status == 200
            found[blocks] = await observe(made, stranger, helper, target, blocks)
            found[blocks] = [
                line.replace(stranger.public_id, "STRANGER").replace(helper.public_id, "HELPER")
                for line in found[blocks]
            ]
        assert len(found["never"]) > 100
        assert found["before"] == found["never"]
        assert found["meanwhile"] == found["never"]
