"""Examples of ``/chats``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    tell = recorder.ask
    alice, bob = await recorder.people()
    chat = await recorder.group(alice)
    await recorder.post(chat, recorder.message(), by=alice)
    await tell("GET", "/chats", by=bob)
    await tell("GET", f"/chats/{chat}", by=bob)
    await tell("PUT", f"/chats/{chat}", {"title": "Walking on Saturday"}, by=alice)
    await tell("GET", f"/chats/{chat}/participants", by=bob)
    await tell("PUT", f"/chats/{chat}/participants/{bob.user_id}", {"role": "admin"}, by=alice)
    invite = (await tell("POST", f"/chats/{chat}/invites", {"max_uses": 1, "expires_in": 86400}, by=alice)).json
    await tell("GET", f"/chats/{chat}/invites", by=alice)
    await tell("DELETE", f"/chats/{chat}/participants/{bob.user_id}", by=bob)
    await tell("POST", "/chats/join/preview", {"token": invite["token"]}, by=bob)
    await tell("POST", "/chats/join", {"token": invite["token"]}, by=bob)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds").replace("+00:00", "Z")
    await tell("PUT", f"/chats/{chat}/me", {"archived": True, "muted_until": tomorrow}, by=bob)
    await tell("DELETE", f"/chats/{chat}/participants/{bob.user_id}?ban=true", by=alice)
    await tell("GET", f"/chats/{chat}/bans", by=alice)
    await tell("DELETE", f"/chats/{chat}/bans/{bob.user_id}", by=alice)
    await bob.put("/users/me", {"settings": {"privacy": {"add": "requests"}}})
    await tell("POST", f"/chats/{chat}/participants", {"public_id": "bob"}, by=alice)
    await tell("POST", f"/chats/{chat}/accept", by=bob)
    await tell("POST", "/chats/requests/decline", {"all": True, "block": False}, by=bob)
