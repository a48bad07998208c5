"""TURN: short-lived credentials for coturn, which relays calls that NAT would prevent (seed)."""

from __future__ import annotations

import base64
import hmac
import time
from typing import Literal
from uuid import UUID, uuid4

from pydantic import Field, SecretStr
from typing_extensions import TypedDict

from config.findings import Examination
from config.keyring import Keyring, KeyringFile
from config.settings import Core, Section
from config.values import Rate, RateLimit
from handlers.http.base import ApiHandler
from handlers.wire.costs import READS
from handlers.wire.operations import operation
from plugins import App, Plugin
from plugins.turn import examination

TTL = 3600  # seconds (seed)
DAY = 86_400  # seconds


class Settings(Section):
    turn_host: str = Field("localhost", description="Public name or address of coturn, as clients reach it.")
    turn_secret: SecretStr = Field(
        SecretStr(""),
        description="static-auth-secret of coturn; at least 32 characters: openssl rand -hex 32. Required in "
        "production, and different from JWT_SECRET. Unset in development: the server makes one and "
        "keeps it in MIMU_DATA_DIR/secrets.",
    )
    turn_port: int = Field(3478, ge=1, le=65535, description="Port of coturn for UDP and TCP.")
    turn_tls_port: int = Field(
        5349, ge=0, le=65535, description="Port of coturn for TLS. 0: it has no certificate, so no TLS."
    )
    turn_username: Literal["user_id", "opaque"] = Field(
        "user_id",
        description="How coturn sees a user: user_id, or opaque, an HMAC that changes every day. Use opaque when "
        "somebody else runs coturn.",
    )
    rate_limit_turn: RateLimit = Field(Rate(20, 3600), description="TURN credentials per user.")


class TurnCredentials(TypedDict):
    """For the ``iceServers`` of WebRTC. The number in ``username`` is the time of expiry; ``ttl`` is in seconds."""

    urls: list[str]
    username: str
    credential: str
    ttl: int


class Turn:
    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        host, port, tls = settings.turn_host, settings.turn_port, settings.turn_tls_port
        self._urls = [f"stun:{host}:{port}", f"turn:{host}:{port}?transport=udp", f"turn:{host}:{port}?transport=tcp"]
        if tls:
            self._urls.append(f"turns:{host}:{tls}?transport=tcp")
        self._keyring = keyring
        self._opaque = settings.turn_username == "opaque"

    def credentials(self, user_id: UUID) -> TurnCredentials:
        """Return the relay's URLs and credentials for a client."""
        username, credential = self.sign(user_id, TTL)
        return {"urls": self._urls, "username": username, "credential": credential, "ttl": TTL}

    def sign(self, user_id: UUID, seconds: int) -> tuple[str, str]:
        """Return a username with its expiry, and its HMAC-SHA1, as coturn's use-auth-secret checks them."""
        now = int(time.time())
        # One name per user and day: coturn counts allocations by the name after the colon.
        name = (
            self._keyring.derive("turn-user", f"{user_id}|{now // DAY}".encode()).hex()[:32]
            if self._opaque
            else user_id
        )
        username = f"{now + seconds}:{name}"
        digest = hmac.digest(self._keyring.signing[1], username.encode(), "sha1")
        return username, base64.b64encode(digest).decode()


class Credentials(ApiHandler):
    head_allowed = False

    def initialize(self, turn: Turn, rate: Rate) -> None:
        self._turn, self._rate = turn, rate

    @operation({200: TurnCredentials}, limits={"rate_limit_turn": "user"}, cost=READS)
    async def get(self) -> None:
        """Get credentials for the TURN relay."""
        await self.limit("turn", self._rate, str(self.session.user_id))
        self.reply(self._turn.credentials(self.session.user_id))


def setup(app: App, settings: Settings) -> Plugin:
    turn = Turn(settings, app.keyrings.ring("turn", [settings.turn_secret.get_secret_value()]))
    return Plugin(
        name="turn",
        guide="calls.md#turn",
        routes=(("/calls/turn-credentials", Credentials, {"turn": turn, "rate": settings.rate_limit_turn}),),
    )


def examine(core: Core, settings: Settings) -> Examination:
    """Return the doctor's check of coturn, from a user's point of view. Each try uses a new user: each may have ten."""
    turn = Turn(settings, KeyringFile(core.keyring_path).ring("turn", [settings.turn_secret.get_secret_value()]))
    relay = examination.Relay(
        settings.turn_host,
        settings.turn_port,
        settings.turn_tls_port,
        credentials=lambda seconds: turn.sign(uuid4(), seconds),
        required=core.production or settings.turn_host != "localhost",
    )
    return examination.examination(relay)
