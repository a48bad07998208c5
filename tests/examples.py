"""Examples: the requests and answers that the OpenAPI document shows, taken from a run of a real server.

``python -m tests.examples`` plays the scenario below and writes plugins/*/examples.json and handlers/examples.json;
tests/test_examples.py plays it again and compares. Keys are the same in every run; ids, times and tokens are replaced
by made-up ones, the same ones for the same things.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from nacl.public import PrivateKey
from nacl.signing import SigningKey

from config import logs
from handlers.reference.openapi import HOUSE
from server import Server
from tests.client import Account, Answer, ask, b64
from tests.conformance import UUID as ANY_UUID
from tests.conformance import Contract, contract_of
from tests.files.transfer import send
from tests.plugins.paying import purchase, voucher
from tests.running import ROOT, Services, place, serving

Json = dict[str, Any]

SERVER = "https://mimu.example"
SOON = timedelta(minutes=5)  # longer than a run takes
BEGAN = datetime(2026, 1, 1, 12, tzinfo=UTC)
NAMESPACE = UUID("0f268f7d-b420-4c41-922d-8995ce3c4b1b")
# What is secret, random or of the moment, by the names of fields.
MADE_UP = {
    "access_token": "eyJhbGciOiJIUzI1NiIsImtpZCI6…",
    "refresh_token": "9d7c…",
    "challenge": "pX0r…",
    "cursor": "AQ5uIGV4YW1wbGUgb25seQ",
    "token": "Zm9yIGV4YW1wbGUgb25seSEh",
    "credential": "3q2+7w8oZkq0b1s3cN5x0m9v1eY=",
    "request_id": "a78d3ddeb87ef5f4",
    "uptime_seconds": 86400,
    "payment_proof": "MIMU-ABCD-EFGH-JKLM-NPQR",
}
_UUID = re.compile(ANY_UUID)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")


class Person(Account):
    """Somebody whose keys are the same in every run."""

    def __init__(self, public_id: str) -> None:
        super().__init__(
            public_id,
            identity=PrivateKey(_seed(public_id, "identity")),
            signing=SigningKey(_seed(public_id, "signing")),
            one_time=2,
        )

    def prekey(self, key_id: int) -> Json:
        return {"key_id": key_id, "public_key": b64(bytes(PrivateKey(_seed(self.public_id, key_id)).public_key))}

    def signed_prekey(self, key_id: int) -> Json:
        key = bytes(PrivateKey(_seed(self.public_id, "signed", key_id)).public_key)
        return {"key_id": key_id, "public_key": b64(key), "signature": b64(self.signing.sign(key).signature)}


def _seed(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def _id(name: str) -> str:
    """An id that an app would have made by chance."""
    return str(uuid5(NAMESPACE, name))


class Recorder:
    """What was sent and answered, by the operation of the document; of each status the first time, or the last look."""

    def __init__(self, url: str) -> None:
        self.url = url
        contract = contract_of(url)
        assert contract is not None
        self._contract: Contract = contract
        self.examples: dict[str, dict[str, Json]] = {}
        self._ids: dict[str, str] = {}
        self._times: dict[str, str] = {}
        self._began = datetime.now(UTC)

    async def ask(self, method: str, path: str, body: Any = None, by: Account | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await ask(self.url, method, path, body, by.token if by else None, named)
        self._keep(method, path, body, answer)
        return answer

    def _keep(self, method: str, path: str, body: Any, answer: Answer) -> None:
        address = self._contract.address(path)
        [tag] = self._contract.document["paths"][address][method.lower()]["tags"]
        folder = "handlers" if tag == HOUSE else f"plugins/{tag}"
        if not (ROOT / folder).is_dir():
            return  # a feature of one file shows none
        kept = self.examples.setdefault(folder, {}).setdefault(f"{method} {address}", {})
        if body is not None and answer.status < 300:
            kept.setdefault("request", self._plain(body))
        if answer.raw:
            answers = kept.setdefault("answers", {})
            if method == "GET" or str(answer.status) not in answers:
                answers[str(answer.status)] = self._plain(answer.json)

    def _plain(self, value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            made_up = {"signature": b64(bytes(64))} if "challenge" in value else {}
            return {key: self._plain(made_up.get(key, item), key) for key, item in value.items()}
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        if not isinstance(value, str | int) or isinstance(value, bool):
            return value
        if name in MADE_UP and not str(value).startswith("0a0a"):  # a token of a device is none of ours
            return MADE_UP[name]
        if isinstance(value, int):
            return value
        if name == "username":
            value = f"1767272400:{value.partition(':')[2]}"
        if name == "url":
            value = re.sub(r"expires=\d+&signature=[0-9a-f]{64}", f"expires=1767272400&signature={'0' * 64}", value)
        value = value.replace(self.url, SERVER)
        return _TIME.sub(self._time, _UUID.sub(self._name, value))

    def _name(self, found: re.Match[str]) -> str:
        return self._ids.setdefault(found[0], str(uuid5(NAMESPACE, f"thing {len(self._ids)}")))

    def _time(self, found: re.Match[str]) -> str:
        later = datetime.fromisoformat(found[0]) - self._began
        if later > SOON:  # as far away as it is, but for what the run itself took
            moment = BEGAN + timedelta(minutes=10) * round(later / timedelta(minutes=10))
        else:
            moment = BEGAN + timedelta(seconds=len(self._times))
        return self._times.setdefault(found[0], moment.isoformat().replace("+00:00", "Z"))


async def play(server: Server) -> dict[str, dict[str, Json]]:
    """The examples by folder and operation."""
    recorder = Recorder(server.url)
    tell: Callable[..., Any] = recorder.ask
    alice, bob = Person("alice"), Person("bob")
    await tell("GET", "/auth/available?public_id=alice")
    for person, name in ((alice, "Alice"), (bob, "Bob")):
        person.url = server.url
        answer = await tell("POST", "/auth/register", person.body(display_name=name, language="en"))
        assert answer.status == 201, answer.text
        person._keep(answer.json)
    await _accounts(tell, alice, bob)
    await _keys_and_contacts(tell, alice, bob)
    await _chats(tell, alice, bob)
    await _calls_and_files(tell, alice, bob)
    await _subscriptions(tell, server, alice)
    for path in ("/health", "/health/ready", "/health/live"):
        await tell("GET", path)
    # A feature that is played last leaves the ids and times in the examples of all others as they are.
    await _pins(tell, alice)
    return recorder.examples


async def _accounts(tell: Callable[..., Any], alice: Account, bob: Account) -> None:
    credentials = {"public_id": "alice", "password": alice.password}
    answer = await tell("POST", "/auth/login", credentials)
    refreshed = await tell("POST", "/auth/refresh", {"refresh_token": answer.json["refresh_token"]})
    await tell("POST", "/auth/login", {**credentials, "password": "a wrong one"})
    app = {"X_Platform": "ios", "X_Client_Version": "1.4.0"}
    reset = {"identity_key": b64(bob.identity_key), "new_password": "a longer password"}
    challenge = (await tell("POST", "/auth/reset-password", reset)).json["challenge"]
    text = f"mimu-reset-v1|{reset['identity_key']}|{challenge}|{hashlib.sha256(b'a longer password').hexdigest()}"
    signature = b64(bob.signing.sign(text.encode()).signature)
    answer = await tell(
        "POST", "/auth/reset-password", {**reset, "challenge": challenge, "signature": signature}, **app
    )
    bob._keep(answer.json)
    change = {"old_password": "a longer password", "new_password": bob.password}
    await tell("POST", "/auth/change-password", change, by=bob)
    await tell("GET", "/auth/sessions", by=bob)
    alice_elsewhere = Account(url=alice.url, token=refreshed.json["access_token"])
    await tell("POST", "/auth/logout", {"all": False}, by=alice_elsewhere)
    await tell("GET", "/users/search?q=bob", by=alice)
    await tell("GET", "/users/bob", by=alice)
    await tell("GET", "/users/nobody", by=alice)
    await tell("PUT", "/users/me", {"bio": "Only here to call.", "sealed_access_key": b64(b"k" * 16)}, by=bob)
    await tell("GET", "/users/me", by=bob)


async def _keys_and_contacts(tell: Callable[..., Any], alice: Account, bob: Account) -> None:
    await tell("GET", "/users/bob/prekeys", by=alice)
    await tell("POST", "/users/me/prekeys", {"one_time_prekeys": [bob.prekey(7)]}, by=bob)
    await tell("GET", "/users/me/prekeys", by=bob)
    compared = {"verified_fingerprint": bob.fingerprint, "method": "qr_code", "notes": "At the station."}
    await tell("POST", "/users/bob/verify", compared, by=alice)
    await tell("POST", "/users/bob/verify", {**compared, "verified_fingerprint": "0" * 64}, by=alice)
    await tell("GET", "/users/me/verifications", by=alice)
    await tell("PUT", "/users/alice/block", by=bob)
    await tell("GET", "/users/me/blocks", by=bob)
    await tell("DELETE", "/users/alice/block", by=bob)
    await tell("PUT", "/push/tokens", {"provider": "apns", "token": "0a" * 32}, by=bob)
    await tell("GET", "/push/tokens", by=bob)
    hours = {"start": "22:00", "end": "07:00", "time_zone": "Europe/Berlin", "calls": False}
    await tell("PUT", "/push/settings", {"kinds": ["message_new", "call_offer"], "quiet_hours": hours}, by=bob)
    await tell("GET", "/push/settings", by=bob)


async def _chats(tell: Callable[..., Any], alice: Account, bob: Account) -> None:
    cursor = (await tell("GET", "/sync", by=alice)).json["cursor"]
    # Alone at first: people who came at the same moment are listed by their ids, which are others in each run.
    chat = (await tell("POST", "/chats", {"type": "group", "title": "Walking on Sunday"}, by=alice)).json["id"]
    await tell("POST", f"/chats/{chat}/participants", {"public_id": "bob"}, by=alice)
    message = {
        "client_id": _id("first message"),
        "encrypted_payload": b64(b"what only the two of them can read"),
        "message_type": "signal",
        "expires_in": 604800,
    }
    posted = (await tell("POST", f"/chats/{chat}/messages", message, by=alice)).json
    await tell("POST", f"/chats/{chat}/messages", {**message, "encrypted_payload": b64(b"another")}, by=alice)
    await tell("PUT", f"/messages/{posted['id']}/reactions/%F0%9F%91%8D", by=bob)
    await tell("GET", f"/chats/{chat}/messages", by=bob)
    await tell("GET", f"/messages/{posted['id']}", by=bob)
    await tell("PUT", f"/messages/{posted['id']}", {"encrypted_payload": b64(b"what only they can read")}, by=alice)
    await tell("POST", f"/chats/{chat}/receipts", {"read_seq": posted["seq"]}, by=bob)
    await tell("GET", f"/chats/{chat}/receipts", by=alice)
    await tell("GET", f"/messages/{posted['id']}/reads", by=alice)
    sealed = {**message, "public_id": "bob", "client_id": _id("sealed message")}
    await tell("POST", "/messages/sealed", sealed, Unidentified_Access_Key=b64(b"k" * 16))
    assert len((await tell("GET", f"/sync?cursor={cursor}", by=alice)).json["events"]) == 5
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


async def _calls_and_files(tell: Callable[..., Any], alice: Account, bob: Account) -> None:
    call = _id("a call")
    async with alice.socket() as at_alice, bob.socket() as at_bob:
        offer = {"call_id": call, "to_user_id": bob.user_id, "encrypted_payload": "AAAA"}
        assert (await at_alice.send("call_offer", **offer))["type"] == "ack"
        await at_bob.expect("call_offer")
        assert (await at_bob.send("call_hangup", call_id=call, reason="busy"))["type"] == "ack"
        await at_alice.expect("call_hangup")
    await tell("GET", "/calls", by=alice)
    await tell("GET", f"/calls/{call}", by=alice)
    await tell("GET", "/calls/turn-credentials", by=alice)
    content = b"ciphertext of a picture"
    announced = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "media_type": "image/jpeg"}
    answer = (await tell("POST", "/files", announced, by=alice)).json
    await tell("POST", f"/files/{answer['file_id']}/complete", by=alice)
    upload = answer["upload"]
    assert (await send(upload["method"], upload["url"], content, upload["headers"])).code == 204
    await tell("POST", f"/files/{answer['file_id']}/complete", by=alice)
    for path in (f"/files/{answer['file_id']}", "/files", "/files/usage"):
        await tell("GET", path, by=alice)


async def _pins(tell: Callable[..., Any], alice: Account) -> None:
    chat = (await alice.post("/chats", {"type": "cloud", "title": "Notes"})).json["id"]
    body = {"client_id": _id("a note"), "encrypted_payload": b64(b"what only she can read"), "message_type": "signal"}
    note = (await alice.post(f"/chats/{chat}/messages", body)).json["id"]
    await tell("PUT", f"/messages/{note}/pin", by=alice)
    await tell("GET", f"/chats/{chat}/pins", by=alice)
    await tell("DELETE", f"/messages/{note}/pin", by=alice)
    await tell("DELETE", f"/chats/{chat}/pins", by=alice)


async def _subscriptions(tell: Callable[..., Any], server: Server, alice: Account) -> None:
    await tell("GET", "/subscriptions/tiers")
    prid = _id("a prid")
    await tell("POST", "/subscriptions/purchase", purchase(alice, prid, "voucher", "no such code"))
    await tell("POST", "/subscriptions/purchase", purchase(alice, prid, "voucher", await voucher(server)))
    await tell("GET", "/subscriptions/restore", by=alice)
    asked = alice.signing.sign(f"mimu-sub-validate-v1|{prid}".encode()).signature
    await tell("POST", "/subscriptions/validate", {"prid": prid, "signature": b64(asked)})


def text(examples: dict[str, Json]) -> str:
    """As the files have it."""
    return json.dumps(examples, indent=1, ensure_ascii=False) + "\n"


async def write(services: Services) -> None:
    async with place(services) as home, serving(home) as server:
        for folder, examples in (await play(server)).items():
            (ROOT / folder / "examples.json").write_text(text(examples))


def main() -> None:
    logs.configure("error", sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="mimu-examples-"))
    folder.chmod(0o755)
    command = [sys.executable, "-m", "tests.services", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())
        asyncio.run(write(Services(addresses["dsn"], addresses["redis"])))


if __name__ == "__main__":
    main()
