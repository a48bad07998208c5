"""The three kinds of provider, each as strict as the real one about who asks and how, with what they were sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import http_ece
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from py_vapid import Vapid02

from tests import canaries
from tests.client import b64
from tests.providers.certificates import certified, pem
from tests.providers.http2 import Doors, Reply, Request, listening

KEY_ID, TEAM, TOPIC, PROJECT = "ABC123DEFG", "DEF123GHIJ", "org.example.mimu", "mimu-tests"
SUBJECT = "mailto:ops@example.org"


@dataclass(frozen=True)
class Got:
    """A push that a provider accepted: its token, the data for the app, and everything else the provider saw."""

    token: str
    data: dict[str, str]
    headers: dict[str, str]
    body: Any
    size: int
    at: float

    @property
    def kind(self) -> str:
        return self.data["type"]


class Mailbox:
    """The pushes that a provider accepted, in order. The next requests get ``answers`` first, then success."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.answers: deque[Reply] = deque()
        self.always: Reply | None = None
        self.asked: list[float] = []  # when each request that was in order came, taken or not
        self.wrong: list[str] = []  # what the server did that the real provider would refuse
        self.doors = Doors(0)
        self._arrived = asyncio.Condition()

    def refuse(self, status: int, reason: str, **more: Any) -> Reply:
        self.wrong.append(reason)
        return Reply(status, {"reason": reason, **more})

    async def take(self, got: Got) -> Reply:
        self.asked.append(got.at)
        reply = self.answers.popleft() if self.answers else self.always
        if reply is not None and (reply.broken or reply.status >= 300):
            return reply
        async with self._arrived:
            self.got.append(got)
            self._arrived.notify_all()
        return reply or Reply(200)

    async def expect(self, kind: str, seconds: float = 20, **data: str) -> Got:
        """The next push of that type, taken out."""

        def place() -> int | None:
            for number, got in enumerate(self.got):
                if got.kind == kind and all(got.data.get(name) == value for name, value in data.items()):
                    return number
            return None

        try:
            async with asyncio.timeout(seconds), self._arrived:
                await self._arrived.wait_for(lambda: place() is not None)
                found = place()
                assert found is not None
                return self.got.pop(found)
        except TimeoutError:
            raise AssertionError(f"no {kind} {data} within {seconds} s, but {self.got}, {self.wrong}") from None

    async def silent(self, seconds: float = 1.6) -> None:
        """Nothing (more) comes; a message waits for a second before it is pushed."""
        await asyncio.sleep(seconds)
        assert self.got == []


class Apple(Mailbox):
    """APNs: https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns"""

    def __init__(self) -> None:
        super().__init__()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.tokens: set[str] = set()  # the provider tokens that it was shown

    async def answer(self, request: Request) -> Reply:
        headers = request.headers
        found = re.fullmatch("/3/device/([0-9a-f]{16,})", request.path)
        bearer = headers.get("authorization", "")
        if request.method != "POST" or not found:
            return self.refuse(404, "BadPath")
        try:
            token = bearer.removeprefix("bearer ")
            claims = jwt.decode(token, self.key.public_key(), ["ES256"], options={"require": ["iss", "iat"]})
            assert jwt.get_unverified_header(token)["kid"] == KEY_ID
            assert claims["iss"] == TEAM
            assert claims["iat"] > time.time() - 3600
        except (jwt.PyJWTError, AssertionError):
            return self.refuse(403, "InvalidProviderToken")
        self.tokens.add(token)
        canaries.plant(token)
        body = json.loads(bytes(request.body))
        kind, priority = headers["apns-push-type"], headers["apns-priority"]
        if headers["apns-topic"] != TOPIC + (".voip" if kind == "voip" else ""):
            return self.refuse(400, "DeviceTokenNotForTopic")
        if (kind == "background") != (priority == "5") or (kind == "background") != (
            "content-available" in body["aps"]
        ):
            return self.refuse(400, "BadPriority")
        if len(headers["apns-collapse-id"]) > 64:
            return self.refuse(400, "BadCollapseId")
        if not headers["apns-expiration"].isdecimal():
            return self.refuse(400, "BadExpirationDate")
        data = {name: value for name, value in body.items() if name != "aps"}
        return await self.take(Got(found[1], data, headers, body, len(request.body), request.at))


class Google(Mailbox):
    """FCM's HTTP v1 and the token endpoint: https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages"""

    def __init__(self) -> None:
        super().__init__()
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.issued: dict[str, float] = {}
        self.token_answers: deque[Reply] = deque()
        self.life = 3600

    def account(self, url: str) -> dict[str, str]:
        form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "0123abcd",
            "private_key": self.key.private_bytes(serialization.Encoding.PEM, form, plain).decode(),
            "client_email": f"push@{PROJECT}.iam.example.org",
            "token_uri": f"{url}/token",
        }

    async def answer(self, request: Request) -> Reply:
        if request.path == "/token":
            return self._issue(request)
        if request.path != f"/v1/projects/{PROJECT}/messages:send":
            return self.refuse(404, "no such path")
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.issued.get(token, 0) < time.time():
            return Reply(401, {"error": {"code": 401, "status": "UNAUTHENTICATED"}})
        body = json.loads(bytes(request.body))
        message = body["message"]
        data = message["data"]
        if not all(isinstance(value, str) for value in data.values()):
            return self.refuse(400, "INVALID_ARGUMENT")
        if message["android"]["priority"] not in ("NORMAL", "HIGH") or message["android"]["ttl"][-1] != "s":
            return self.refuse(400, "INVALID_ARGUMENT")
        got = Got(message["token"], data, request.headers, body, len(request.body), request.at)
        return await self.take(got)

    def _issue(self, request: Request) -> Reply:
        if self.token_answers:
            return self.token_answers.popleft()
        form = parse_qs(request.body.decode())
        try:
            assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
            claims = jwt.decode(
                form["assertion"][0], self.key.public_key(), ["RS256"], audience=f"{self.doors.url}/token"
            )
            assert claims["scope"] == "https://www.googleapis.com/auth/firebase.messaging"
            assert claims["exp"] - claims["iat"] <= 3600
        except (jwt.PyJWTError, AssertionError, KeyError):
            return self.refuse(401, "invalid_grant")
        token = "ya29." + secrets.token_urlsafe(40)
        canaries.plant(token)
        self.issued[token] = time.time() + self.life
        return Reply(200, {"access_token": token, "expires_in": self.life, "token_type": "Bearer"})

    @staticmethod
    def error(status: int, code: str, word: str = "") -> Reply:
        kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
        return Reply(
            status,
            {"error": {"code": status, "status": word or code, "details": [{"@type": kind, "errorCode": code}]}},
        )


@dataclass
class Device:
    """What a browser or a UnifiedPush distributor keeps of a subscription."""

    name: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    auth: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def subscription(self, url: str) -> dict[str, Any]:
        form = serialization.PublicFormat.UncompressedPoint
        point = self.key.public_key().public_bytes(serialization.Encoding.X962, form)
        canaries.plant(self.name)
        return {"endpoint": f"{url}/push/{self.name}", "keys": {"p256dh": b64(point), "auth": b64(self.auth)}}


class PushService(Mailbox):
    """A Web Push service that can read what it is sent, since it has the devices' keys (RFC 8030, 8291, 8292)."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: dict[str, Device] = {}

    def device(self) -> Device:
        made = Device()
        self.devices[made.name] = made
        return made

    async def answer(self, request: Request) -> Reply:
        headers = request.headers
        device = self.devices.get(request.path.removeprefix("/push/"))
        if device is None:
            return Reply(404)
        authorization = headers["authorization"]
        if not Vapid02.verify(authorization):
            return self.refuse(403, "the signature")
        token = re.search("t=([^,]+)", authorization)
        assert token
        claims = jwt.decode(token[1], options={"verify_signature": False})
        if claims["aud"] != self.doors.url or claims["sub"] != SUBJECT:
            return self.refuse(403, "the claims")
        if not time.time() < claims["exp"] < time.time() + 86_400:
            return self.refuse(403, "the time")
        if not headers["ttl"].isdecimal() or not re.fullmatch("[A-Za-z0-9_-]{1,32}", headers["topic"]):
            return self.refuse(400, "TTL or Topic")
        if headers["content-encoding"] != "aes128gcm" or len(request.body) > 4096:
            return self.refuse(400, "the encoding")
        plain = http_ece.decrypt(
            bytes(request.body), private_key=device.key, auth_secret=device.auth, version="aes128gcm"
        )
        data = json.loads(plain)
        reply = await self.take(Got(device.name, data, headers, data, len(request.body), request.at))
        return Reply(201) if reply.status == 200 and not reply.broken else reply


@dataclass
class World:
    """All three providers, and the settings for a server that uses them."""

    apple: Apple
    google: Google
    service: PushService
    settings: dict[str, str]
    context: ssl.SSLContext

    def assert_right(self) -> None:
        """The server did nothing that a real provider would have refused."""
        assert (self.apple.wrong, self.google.wrong, self.service.wrong) == ([], [], [])


@contextlib.asynccontextmanager
async def providers(folder: Path) -> AsyncIterator[World]:
    ca_file, context = certified(folder)
    apple, google, service = Apple(), Google(), PushService()
    async with contextlib.AsyncExitStack() as stack:
        for one in (apple, google, service):
            one.doors = await stack.enter_async_context(listening(one.answer, context))
        (folder / "apns.p8").write_bytes(pem(apple.key))
        (folder / "vapid.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
        (folder / "fcm.json").write_text(json.dumps(google.account(google.doors.url)))
        settings = {
            "APNS_KEY_FILE": str(folder / "apns.p8"),
            "APNS_KEY_ID": KEY_ID,
            "APNS_TEAM_ID": TEAM,
            "APNS_TOPIC": TOPIC,
            "APNS_BASE_URL": apple.doors.url,
            "FCM_SERVICE_ACCOUNT_FILE": str(folder / "fcm.json"),
            "FCM_BASE_URL": google.doors.url,
            "VAPID_PRIVATE_KEY_FILE": str(folder / "vapid.pem"),
            "VAPID_SUBJECT": SUBJECT,
            "PUSH_CA_FILE": str(ca_file),
            "PUSH_ALLOW_PRIVATE": "true",
        }
        yield World(apple, google, service, settings, context)
