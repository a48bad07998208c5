"""Short forms of what ``python -m tests.nemesis`` does at length."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.client import Account, Answer, ask, b64
from tests.plugins.chatting import message
from tests.running import Place, Services, place, serving
from tests.test_failover import cluster_server, eventually, folder, pair_of_machines

__all__ = ["folder"]


Change = tuple[str, str, Any]  # method, path, body


async def _changes(alice: Account, bob: Account, carol: Account, dave: Account) -> dict[str, Change]:
    """Requests by Alice that may be repeated and then change nothing."""
    chat = (await alice.post("/chats", {"type": "direct", "participants": [bob.public_id]})).json["id"]
    group = (await bob.post("/chats", {"type": "group", "title": "g", "participants": []})).json["id"]
    other = (await bob.post("/chats", {"type": "group", "title": "o", "participants": [alice.public_id]})).json["id"]
    invite = (await bob.post(f"/chats/{group}/invites", {})).json["token"]
    posted = [(await bob.post(f"/chats/{chat}/messages", message("hello"))).json for _ in range(2)]
    push = (await alice.put("/push/tokens", {"provider": "fcm", "token": b64(b"y" * 60)})).json["id"]
    content = b"some bytes"
    about = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    file = (await alice.post("/files", about)).json
    upload = file["upload"]
    assert (await ask(alice.url, upload["method"], upload["url"].removeprefix(alice.url), content, None)).status < 300
    seen = {"verified_fingerprint": bob.fingerprint, "method": "manual"}
    thumb = "reactions/%F0%9F%91%8D"
    assert (await alice.put(f"/messages/{posted[1]['id']}/{thumb}", None)).status == 204
    assert (await alice.put(f"/users/{dave.public_id}/block", None)).status == 204
    assert await alice.post(f"/users/{carol.public_id}/verify", {**seen, "verified_fingerprint": carol.fingerprint})
    return {
        "a direct chat": ("POST", "/chats", {"type": "direct", "participants": [carol.public_id]}),
        "an accepted chat": ("POST", f"/chats/{chat}/accept", {}),
        "a receipt": ("POST", f"/chats/{chat}/receipts", {"read_seq": posted[1]["seq"]}),
        "a reaction": ("PUT", f"/messages/{posted[0]['id']}/{thumb}", None),
        "a way into a group": ("POST", "/chats/join", {"token": invite}),
        "an archived chat": ("PUT", f"/chats/{chat}/me", {"archived": True}),
        "a block": ("PUT", f"/users/{carol.public_id}/block", None),
        "a verification": ("POST", f"/users/{bob.public_id}/verify", seen),
        "prekeys": ("POST", "/users/me/prekeys", {"one_time_prekeys": [alice.prekey(77)]}),
        "a name": ("PUT", "/users/me", {"display_name": "Alice"}),
        "settings": ("PUT", "/users/me", {"settings": {"theme": "dark"}}),
        "a push token": ("PUT", "/push/tokens", {"provider": "fcm", "token": b64(b"x" * 60)}),
        "a file": ("POST", f"/files/{file['file_id']}/complete", {}),
        "a reaction taken back": ("DELETE", f"/messages/{posted[1]['id']}/{thumb}", None),
        "a block taken back": ("DELETE", f"/users/{dave.public_id}/block", None),
        "a verification taken back": ("DELETE", f"/users/{carol.public_id}/verify", None),
        "a push token taken back": ("DELETE", f"/push/tokens/{push}", None),
        "a group that was left": ("DELETE", f"/chats/{other}/participants/{alice.user_id}", None),
        "a refresh token": ("POST", "/auth/refresh", {"refresh_token": alice.refresh_token}),
    }


@pytest.mark.gen_test(timeout=120)
async def test_no_repetition_is_acknowledged_before_it_is_replicated(services: Services, folder: Path) -> None:
    async with pair_of_machines(folder) as (made, first, second):
        await first.value("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await first.value("SELECT pg_reload_conf()")
        async with cluster_server(services, made.dsn(), folder / "data", DATABASE_MAX_CONNECTIONS="30") as server:
            people = [await Account(one_time=0).register(server.url) for _ in range(4)]
            changes = await _changes(*people)

            async def do(method: str, path: str, body: Any) -> Answer:
                return await ask(server.url, method, path, body, people[0].token)

            second.freeze()
            try:
                for _ in range(2):
                    answers = await asyncio.gather(*(do(*change) for change in changes.values()))
                    said = {name: (a.status, a.text[:90]) for name, a in zip(changes, answers, strict=True)}
                    # Of what is gone a repetition may say so: that is no acknowledgement.
                    assert {name: said for name, said in said.items() if said[0] not in (503, 404)} == {}
                    await asyncio.sleep(0.6)
            finally:
                second.thaw()

            async def done(name: str) -> bool:
                answer = await do(*changes[name])
                assert answer.status in (200, 201, 202, 204, 503) or changes[name][0] == "DELETE", (name, answer.text)
                return answer.status != 503

            for name in changes:
                await eventually(lambda name=name: done(name))


@pytest.mark.gen_test(timeout=120)
async def test_a_late_commit_is_announced_by_whichever_instance_it_is_repeated_to(
    services: Services, folder: Path
) -> None:
    async with pair_of_machines(folder) as (made, first, second), place(services) as shared:
        await first.set("synchronous_standby_names", "*")
        there = Place(made.dsn(), shared.redis)
        async with (
            serving(there, MIMU_DATA_DIR=str(folder / "one")) as one,
            serving(there, MIMU_DATA_DIR=str(folder / "other")) as other,
        ):
            alice, bob = await Account(one_time=0).register(one.url), await Account(one_time=0).register(other.url)
            chat = (await alice.post("/chats", {"type": "direct", "participants": [bob.public_id]})).json["id"]

            async def not_ready() -> bool:
                ready = await ask(other.url, "GET", "/health/ready")
                return (ready.status, ready.json["database"]) == (503, "error")

            async with bob.socket() as his:
                for again in (one, other):
                    body = message(f"late, then sent to {again.port}")
                    second.freeze()
                    try:
                        answer = await alice.post(f"/chats/{chat}/messages", body)
                        assert (answer.status, answer.code) == (503, "unavailable")
                        await eventually(not_ready)  # once what it found two seconds ago counts no more
                    finally:
                        second.thaw()
                    await asyncio.sleep(1)

                    async def acknowledged(url: str = again.url, body: Any = body) -> Any:
                        repeated = await ask(url, "POST", f"/chats/{chat}/messages", body, alice.token)
                        return repeated.status == 200 and repeated.json["id"]

                    known = await eventually(acknowledged)
                    assert (await his.expect("message_new"))["message"]["id"] == known
