"""The recorder of one feature's examples: requests and answers with made-up ids, times and tokens.

A made-up id is derived from a name: that of the person or thing, if the scenario gives one, else the field where it
stands. So what one feature shows does not depend on the requests of another one.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from nacl.public import PrivateKey
from nacl.signing import SigningKey

from server import Server
from tests.client import Account, Answer, ask, b64
from tests.conformance import UUID as ANY_UUID
from tests.conformance import Contract, contract_of

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
    """A user whose keys are the same in every run."""

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


class Recorder:
    """What was sent to one feature and answered, by the operation of the document; of each status the first time, or
    the last look. What a scenario asks of other features is not kept."""

    def __init__(self, server: Server, feature: str) -> None:
        contract = contract_of(server.url)
        assert contract is not None
        self.server, self.url, self.feature = server, server.url, feature
        self.examples: dict[str, Json] = {}
        self._contract: Contract = contract
        self._ids: dict[str, str] = {}
        self._of_fields: Counter[str] = Counter()
        self._times: dict[str, str] = {}
        self._began = datetime.now(UTC)

    async def people(self) -> tuple[Person, Person]:
        """Alice and Bob, registered."""
        found = []
        for public_id, name in (("alice", "Alice"), ("bob", "Bob")):
            person = Person(public_id)
            person.url = self.url
            body = person.body(display_name=name, language="en")
            answer = await self.ask("POST", "/auth/register", body, {"user_id": public_id})
            assert answer.status == 201, answer.text
            person._keep(answer.json)
            found.append(person)
        return found[0], found[1]

    async def group(self, owner: Account) -> str:
        """The id of a group of the owner and Bob."""
        # Alone at first: people who came at the same moment are listed by their ids, which are others in each run.
        fields = {"type": "group", "title": "Walking on Sunday"}
        answer = await self.ask("POST", "/chats", fields, {"id": "walking on Sunday"}, by=owner)
        chat: str = answer.json["id"]
        await self.ask("POST", f"/chats/{chat}/participants", {"public_id": "bob"}, by=owner)
        return chat

    def message(self) -> Json:
        """The fields of a message that disappears after a week."""
        return {
            "client_id": self.made("first message"),
            "encrypted_payload": b64(b"what only the two of them can read"),
            "message_type": "signal",
            "expires_in": 604800,
        }

    async def post(self, chat: str, message: Json, by: Account) -> Json:
        """Post the first message of a chat. Returns the answer."""
        names = {"id": "the first message's own id"}
        answer = await self.ask("POST", f"/chats/{chat}/messages", message, names, by=by)
        posted: Json = answer.json
        return posted

    def made(self, name: str) -> str:
        """An id that an app would have made by chance."""
        own = str(uuid5(NAMESPACE, name))
        self._ids[own] = own
        return own

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        names: dict[str, str] | None = None,
        by: Account | None = None,
        **headers: str,
    ) -> Answer:
        """Ask, and keep it if it is the feature's. ``names`` are those of ids in the answer, by their fields."""
        bears = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await ask(self.url, method, path, body, by.token if by else None, bears)
        for field, name in (names or {}).items():
            self._ids[answer.json[field]] = str(uuid5(NAMESPACE, name))
        self._keep(method, path, body, answer)
        return answer

    def _keep(self, method: str, path: str, body: Any, answer: Answer) -> None:
        address = self._contract.address(path)
        [tag] = self._contract.document["paths"][address][method.lower()]["tags"]
        if tag != self.feature:
            return
        kept = self.examples.setdefault(f"{method} {address}", {})
        if body is not None and answer.status < 300:
            kept.setdefault("request", self._plain(body))
        if answer.raw:
            answers = kept.setdefault("answers", {})
            if method == "GET" or str(answer.status) not in answers:
                answers[str(answer.status)] = self._plain(answer.json)

    def _plain(self, value: Any, field: str = "") -> Any:
        if isinstance(value, dict):
            made_up = {"signature": b64(bytes(64))} if "challenge" in value else {}
            return {key: self._plain(made_up.get(key, item), key) for key, item in value.items()}
        if isinstance(value, list):
            return [self._plain(item, field) for item in value]
        if not isinstance(value, str | int) or isinstance(value, bool):
            return value
        if field in MADE_UP and not str(value).startswith("0a0a"):  # a token of a device is none of ours
            return MADE_UP[field]
        if isinstance(value, int):
            return value
        if field == "username":
            value = f"1767272400:{value.partition(':')[2]}"
        if field == "url":
            value = re.sub(r"expires=\d+&signature=[0-9a-f]{64}", f"expires=1767272400&signature={'0' * 64}", value)
        value = value.replace(self.url, SERVER)
        return _TIME.sub(self._time, _UUID.sub(lambda found: self._id(found[0], field), value))

    def _id(self, real: str, field: str) -> str:
        if real not in self._ids:
            self._of_fields[field] += 1
            self._ids[real] = str(uuid5(NAMESPACE, f"{self.feature} {field} {self._of_fields[field]}"))
        return self._ids[real]

    def _time(self, found: re.Match[str]) -> str:
        later = datetime.fromisoformat(found[0]) - self._began
        if later > SOON:  # as far away as it is, but for what the run itself took
            moment = BEGAN + timedelta(minutes=10) * round(later / timedelta(minutes=10))
        else:
            moment = BEGAN + timedelta(seconds=len(self._times))
        return self._times.setdefault(found[0], moment.isoformat().replace("+00:00", "Z"))
