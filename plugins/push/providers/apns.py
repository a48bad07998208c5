"""APNs: alerts, background pushes and PushKit over HTTP/2, with a token signed by our key (ES256)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from models.database import Row
from plugins.push.payload import Push, padded
from plugins.push.providers.client import ProviderClient
from plugins.push.providers.outcomes import Verdict, documented_word, retry_after

PRODUCTION, SANDBOX = "https://api.push.apple.com", "https://api.sandbox.push.apple.com"
RENEWAL = 40 * 60  # seconds: Apple rejects tokens older than an hour, and new ones more often than every 20 minutes
SIZE = 256  # bytes of every payload; the largest, an alert with its id, has some 180
# The texts of the alert are in the app, which shows the decrypted message instead (mutable-content).
TITLES = {"message_new": "MESSAGE_NEW", "call_offer": "CALL_OFFER", "test": "TEST"}

WORDS = frozenset(
    (
        *("BadCollapseId", "BadDeviceToken", "BadExpirationDate", "BadMessageId", "BadPriority", "BadTopic"),
        *("DeviceTokenNotForTopic", "DuplicateHeaders", "IdleTimeout", "InvalidPushType", "MissingDeviceToken"),
        *("MissingTopic", "PayloadEmpty", "TopicDisallowed", "BadCertificate", "BadCertificateEnvironment"),
        *("ExpiredProviderToken", "Forbidden", "InvalidProviderToken", "MissingProviderToken", "BadPath"),
        *("UnrelatedKeyIdInToken", "BadEnvironmentKeyIdInToken", "MethodNotAllowed", "ExpiredToken", "Unregistered"),
        *("PayloadTooLarge", "TooManyProviderTokenUpdates", "TooManyRequests", "InternalServerError"),
        *("ServiceUnavailable", "Shutdown"),
    )
)
# The meaning of some of them, for operators.
EXPLAINED: Mapping[str, str] = {
    "BadDeviceToken": "The token is not of this environment: a development build registers with environment sandbox.",
    "DeviceTokenNotForTopic": "The token belongs to another app than APNS_TOPIC names.",
    "TopicDisallowed": "The key may not be used for the app that APNS_TOPIC names.",
    "BadTopic": "APNS_TOPIC is not a bundle id.",
    "InvalidProviderToken": "Apple rejects the key: see APNS_KEY_FILE, APNS_KEY_ID and APNS_TEAM_ID.",
    "ExpiredProviderToken": "Apple says that our token is too old: is this machine's clock right?",
    "Unregistered": "The app was removed from the device, or the token was renewed.",
    "TooManyProviderTokenUpdates": "Too many servers use the key at once, each with other tokens.",
    "TooManyRequests": "Too many pushes to this one device.",
}


class Identity(NamedTuple):
    """The key of a team, and the app that receives its pushes."""

    key: EllipticCurvePrivateKey
    key_id: str
    team_id: str
    topic: str
    base_url: str | None  # for both environments; None: Apple's


class Apns:
    named_by_users = False
    explained = EXPLAINED

    def __init__(self, client: ProviderClient, identity: Identity) -> None:
        self._client, self._identity = client, identity
        self._token, self._made = "", -1e9

    def place(self, device: Row) -> str:
        return self._identity.base_url or (SANDBOX if device["sandbox"] else PRODUCTION)

    async def send(self, device: Row, push: Push) -> Verdict:
        verdict = await self._send(device, push)
        if verdict.reason == "ExpiredProviderToken":  # our clock or Apple's is wrong: retry once with a new token
            self._made = -1e9
            verdict = await self._send(device, push)
        return verdict

    async def _send(self, device: Row, push: Push) -> Verdict:
        voip = device["provider"] == "apns_voip"
        quiet = not voip and silent(device, push)
        headers = {
            "authorization": f"bearer {self._bearer()}",
            "apns-topic": self._identity.topic + (".voip" if voip else ""),
            "apns-push-type": "voip" if voip else "background" if quiet else "alert",
            "apns-priority": "5" if quiet else "10",  # Apple rejects background pushes of another priority
            "apns-expiration": str(push.expires),
            "apns-collapse-id": push.collapse,
            "content-type": "application/json",
        }
        url = f"{self.place(device)}/3/device/{device['token']}"
        answer = await self._client.post(url, headers, padded({"aps": _aps(push, voip, quiet), **push.data}, SIZE))
        return _verdict(answer.status, retry_after(answer.headers), answer.body)

    def _bearer(self) -> str:
        now = time.monotonic()
        if now - self._made > RENEWAL:
            identity = self._identity
            claims = {"iss": identity.team_id, "iat": int(time.time())}
            self._token = jwt.encode(claims, identity.key, "ES256", headers={"kid": identity.key_id})
            self._made = now
        return self._token


def silent(device: Row, push: Push) -> bool:
    """True if the push wakes the app in the background, which Apple allows a few times an hour only."""
    return device["provider"] == "apns" and (device["quiet"] or push.kind not in TITLES)


def _aps(push: Push, voip: bool, quiet: bool) -> dict[str, Any]:
    if voip:
        return {}
    if quiet:
        return {"content-available": 1}
    return {"alert": {"title-loc-key": TITLES[push.kind]}, "mutable-content": 1, "sound": "default"}


def _verdict(status: int, after: float | None, body: bytes) -> Verdict:
    if status == 200:
        return Verdict("sent", status)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    error = value if isinstance(value, dict) else {}
    reason = documented_word(error.get("reason"), WORDS)
    if status == 410:
        stamp = error.get("timestamp")
        since = None
        if isinstance(stamp, int) and 0 < stamp < 4e12:  # milliseconds
            since = datetime.fromtimestamp(stamp / 1000, UTC)
        return Verdict("gone", status, reason, gone_since=since)
    if status == 429:
        return Verdict("later", status, reason, after, failing=reason == "TooManyProviderTokenUpdates")
    if status >= 500:
        return Verdict("later", status, reason, after, failing=True)
    if status == 403:  # about our key: the pushes wait until the operator corrects it
        return Verdict("later", status, reason, after, failing=True)
    return Verdict("refused", status, reason)
