"""Examples of messages and ``/sync``."""

from __future__ import annotations

from tests.client import b64
from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    tell = recorder.ask
    alice, bob = await recorder.people()
    await bob.put("/users/me", {"sealed_access_key": b64(b"k" * 16)})
    cursor = (await tell("GET", "/sync", by=alice)).json["cursor"]
    chat = await recorder.group(alice)
    message = recorder.message()
    posted = await recorder.post(chat, message, by=alice)
    await tell("POST", f"/chats/{chat}/messages", {**message, "encrypted_payload": b64(b"another")}, by=alice)
    await tell("PUT", f"/messages/{posted['id']}/reactions/%F0%9F%91%8D", by=bob)
    await tell("GET", f"/chats/{chat}/messages", by=bob)
    await tell("GET", f"/messages/{posted['id']}", by=bob)
    await tell("PUT", f"/messages/{posted['id']}", {"encrypted_payload": b64(b"what only they can read")}, by=alice)
    await tell("POST", f"/chats/{chat}/receipts", {"read_seq": posted["seq"]}, by=bob)
    await tell("GET", f"/chats/{chat}/receipts", by=alice)
    await tell("GET", f"/messages/{posted['id']}/reads", by=alice)
    sealed = {**message, "public_id": "bob", "client_id": recorder.made("sealed message")}
    await tell("POST", "/messages/sealed", sealed, Unidentified_Access_Key=b64(b"k" * 16))
    assert len((await tell("GET", f"/sync?cursor={cursor}", by=alice)).json["events"]) == 5
