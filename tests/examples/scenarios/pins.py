"""Examples of pinned messages."""

from __future__ import annotations

from tests.client import b64
from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    tell = recorder.ask
    alice, bob = await recorder.people()
    chat = (await alice.post("/chats", {"type": "group", "participants": ["bob"]})).json["id"]
    message = {
        "client_id": recorder.made("a message"),
        "encrypted_payload": b64(b"where we meet on Sunday"),
        "message_type": "signal",
    }
    posted = (await alice.post(f"/chats/{chat}/messages", message)).json["id"]
    await tell("PUT", f"/messages/{posted}/pin", by=alice)
    await tell("PUT", f"/messages/{posted}/pin", by=bob)
    await tell("GET", f"/chats/{chat}/pins", by=bob)
    await tell("DELETE", f"/messages/{posted}/pin", by=alice)
    await tell("DELETE", f"/chats/{chat}/pins", by=alice)
