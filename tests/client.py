"""A client for tests: it makes keys, registers, asks over HTTP and talks over a socket, and keeps all it got."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import itertools
import json
import secrets
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from nacl.public import PrivateKey
from nacl.signing import SigningKey
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect
from xeddsa import ed25519_priv_sign, priv_force_sign

from tests import canaries, conformance, connections
from tests.waiting import WAIT


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


class Answer:
    """An HTTP answer with its JSON."""

    def __init__(self, response: HTTPResponse) -> None:
        conformance.judge(response)
        self.status = response.code
        self.headers = response.headers
        self.raw = response.body or b""
        if self.status >= 400:
            assert not canaries.escaped(self.text + str(self.headers)), "an error repeats a secret"

    @property
    def content(self) -> bytes:
        packed = self.headers.get("Content-Encoding") == "gzip" and self.raw
        return gzip.decompress(self.raw) if packed else self.raw

    @property
    def text(self) -> str:
        return self.content.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.json["error"])

    def fields(self) -> list[str]:
        """The fields that an error's details name."""
        return [fault["field"] for fault in self.json.get("details", [])]


async def ask(
    url: str, method: str, path: str, body: Any = None, token: str | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """One request, to a server of the tests' on a connection that is kept; ``body`` is sent as JSON unless it is bytes
    already."""
    sent = dict(headers or {})
    if token:
        sent["Authorization"] = f"Bearer {token}"
    raw: bytes | None = None
    if body is not None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    request = HTTPRequest(
        url + path,
        method=method,
        body=raw,
        headers=sent,
        allow_nonstandard_methods=True,
        follow_redirects=False,
        decompress_response=False,  # what comes is looked at as it came
        request_timeout=WAIT,
    )
    kept = connections.pool(url)
    if kept is not None:
        return Answer(await kept.fetch(request))
    client: AsyncHTTPClient = SimpleAsyncHTTPClient(force_instance=True, max_clients=200)
    try:
        return Answer(await client.fetch(request, raise_error=False))
    finally:
        client.close()


@dataclass
class Account:
    """A user with keys as phones make them: X25519 identity, Ed25519 signing key, prekeys."""

    public_id: str = field(default_factory=lambda: "u_" + secrets.token_hex(6))
    password: str = "correct horse battery"
    one_time: int = 5
    identity: PrivateKey = field(default_factory=PrivateKey.generate, repr=False)
    signing: SigningKey = field(default_factory=SigningKey.generate, repr=False)
    url: str = ""
    user_id: str = ""
    session_id: str = ""
    token: str = ""
    refresh_token: str = ""

    @property
    def identity_key(self) -> bytes:
        return bytes(self.identity.public_key)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.identity_key).hexdigest()

    def prekey(self, key_id: int) -> dict[str, Any]:
        return {"key_id": key_id, "public_key": b64(bytes(PrivateKey.generate().public_key))}

    def signed_prekey(self, key_id: int) -> dict[str, Any]:
        key = bytes(PrivateKey.generate().public_key)
        return {"key_id": key_id, "public_key": b64(key), "signature": b64(self.signing.sign(key).signature)}

    def xeddsa(self, message: bytes) -> bytes:
        """Signal's XEdDSA by the identity key. The xeddsa package wants it clamped."""
        clamped = bytearray(bytes(self.identity))
        clamped[0] &= 248
        clamped[31] = clamped[31] & 127 | 64
        return ed25519_priv_sign(priv_force_sign(bytes(clamped), False), message, secrets.token_bytes(64))

    def libsignal_prekey(self, key_id: int) -> dict[str, Any]:
        """A signed prekey as libsignal makes it: XEdDSA over the key's 33 bytes."""
        key = b"\x05" + bytes(PrivateKey.generate().public_key)
        return {"key_id": key_id, "public_key": b64(key), "signature": b64(self.xeddsa(key))}

    def kyber_prekey(self, key_id: int) -> dict[str, Any]:
        key = b"\x08" + secrets.token_bytes(1568)
        return {"key_id": key_id, "public_key": b64(key), "signature": b64(self.signing.sign(key).signature)}

    def body(self, **changes: Any) -> dict[str, Any]:
        """The body of a registration."""
        return {
            "public_id": self.public_id,
            "password": self.password,
            "identity_key": b64(self.identity_key),
            "fingerprint": self.fingerprint,
            "signing_public_key": b64(bytes(self.signing.verify_key)),
            "registration_id": 12345,
            "signed_prekey": self.signed_prekey(1),
            "one_time_prekeys": [self.prekey(number) for number in range(1, self.one_time + 1)],
            **changes,
        }

    async def register(self, url: str, **changes: Any) -> Account:
        self.url = url
        answer = await ask(url, "POST", "/auth/register", self.body(**changes))
        assert answer.status == 201, answer.text
        self._keep(answer.json)
        return self

    def __post_init__(self) -> None:
        canaries.plant(self.password, b64(bytes(self.identity)), b64(bytes(self.signing)))

    async def login(self) -> Answer:
        credentials = {"public_id": self.public_id, "password": self.password}
        answer = await ask(self.url, "POST", "/auth/login", credentials)
        if answer.status == 200:
            self._keep(answer.json)
        return answer

    def _keep(self, signed_in: dict[str, Any]) -> None:
        self.user_id, self.session_id = signed_in["user_id"], signed_in["session_id"]
        self.token, self.refresh_token = signed_in["access_token"], signed_in["refresh_token"]
        canaries.plant(self.token, self.refresh_token)

    async def get(self, path: str, **headers: str) -> Answer:
        return await ask(self.url, "GET", path, token=self.token, headers=headers)

    async def post(self, path: str, body: Any) -> Answer:
        return await ask(self.url, "POST", path, body, token=self.token)

    async def put(self, path: str, body: Any) -> Answer:
        return await ask(self.url, "PUT", path, body, token=self.token)

    async def delete(self, path: str) -> Answer:
        return await ask(self.url, "DELETE", path, token=self.token)

    @contextlib.asynccontextmanager
    async def socket(self, url: str | None = None) -> AsyncIterator[Socket]:
        """An open socket, after its ``ready``."""
        address = (url or self.url).replace("http", "ws", 1) + "/ws"
        request = HTTPRequest(address, headers={"Authorization": f"Bearer {self.token}"})
        socket = Socket(await websocket_connect(request))
        try:
            socket.ready = await socket.expect("ready")
            yield socket
        finally:
            await socket.close()


class Socket:
    """An open socket whose frames are kept in the order they came."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection
        self.ready: dict[str, Any] = {}
        self.frames: list[dict[str, Any]] = []
        self._arrived = asyncio.Condition()
        self._ids = itertools.count(1)
        self._asked: dict[str, deque[str]] = defaultdict(
            deque
        )  # the types of frames by their id, until each is answered
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        while True:
            message = await self.connection.read_message()
            async with self._arrived:
                if message is None:
                    self.frames.append({"type": "closed", "code": self.connection.close_code})
                    self._arrived.notify_all()
                    return
                frame = json.loads(message)
                conformance.judge_frame(self.connection.request.url, frame, self._answered(frame))
                self.frames.append(frame)
                self._arrived.notify_all()

    def _answered(self, frame: dict[str, Any]) -> str | None:
        """The type of the frame that this one answers, if it answers one."""
        asked = self._asked.get(frame.get("id", "")) if frame["type"] in ("ack", "error") else None
        return asked.popleft() if asked else None

    async def expect(self, kind: str, seconds: float = WAIT, **fields: Any) -> dict[str, Any]:
        """The next frame of that type with those fields; earlier frames of other types stay."""

        def place() -> int | None:
            for number, frame in enumerate(self.frames):
                if frame["type"] == kind and all(frame.get(name) == value for name, value in fields.items()):
                    return number
            return None

        try:
            async with asyncio.timeout(seconds), self._arrived:
                await self._arrived.wait_for(lambda: place() is not None)
                found = place()
                assert found is not None
                return self.frames.pop(found)
        except TimeoutError:
            raise AssertionError(f"no {kind} {fields} within {seconds} s, but {self.frames}") from None

    async def silent(self, seconds: float = 0.3) -> None:
        """Nothing (more) comes."""
        await asyncio.sleep(seconds)
        assert self.frames == []

    async def send(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a frame with an id; its ack or error."""
        frame_id = f"f{next(self._ids)}"
        canaries.plant(*(value for name, value in fields.items() if name in ("encrypted_payload", "access_token")))
        await self.raw(json.dumps({"type": kind, "id": frame_id, **fields}))
        async with asyncio.timeout(WAIT), self._arrived:
            while True:
                for number, frame in enumerate(self.frames):
                    if frame.get("id") == frame_id:
                        assert frame["type"] != "error" or not canaries.escaped(json.dumps(frame))
                        return self.frames.pop(number)
                await self._arrived.wait()

    async def raw(self, message: str | bytes, binary: bool = False) -> None:
        with contextlib.suppress(ValueError, TypeError, AttributeError):  # what is no frame is answered without an id
            frame = json.loads(message)
            if isinstance(frame.get("id"), str) and isinstance(frame.get("type"), str):
                self._asked[frame["id"]].append(frame["type"])
        await self.connection.write_message(message, binary=binary)

    async def close(self) -> None:
        self.connection.close()
        await asyncio.wait([self._reader], timeout=5)
