"""Web Push: browsers and UnifiedPush, encrypted to the device (RFC 8030, 8188, 8291), signed by this server (8292)."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from urllib.parse import urlsplit

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02, VapidException

from handlers.wire.shapes import b64
from models.database import Row
from plugins.push.payload import Push, padded
from plugins.push.providers.client import ProviderClient
from plugins.push.providers.outcomes import Verdict, retry_after
from plugins.push.providers.vapid import public_point

SIZE = 128  # bytes of every payload before encryption; the largest has some 75
LIFE = 12 * 3600  # seconds that a signature is valid; RFC 8292 allows a day
MAX_ORIGINS = 1_000  # push services whose Authorization header is cached
EXPLAINED: Mapping[str, str] = {
    "Subscription": "Nothing can be encrypted with the subscription's keys, or signed for its URL.",
}


class WebPush:
    named_by_users = True
    explained = EXPLAINED

    def __init__(self, client: ProviderClient, key: ec.EllipticCurvePrivateKey, subject: str) -> None:
        self._client, self._vapid, self._subject = client, Vapid02(key), subject
        self._authorizations: OrderedDict[str, tuple[float, str]] = OrderedDict()  # origin: creation time, header

    def place(self, device: Row) -> str:
        return str(urlsplit(device["token"]).netloc.lower())

    async def send(self, device: Row, push: Push) -> Verdict:
        endpoint = device["token"]
        try:
            authorization = self._authorization(endpoint)
            body = http_ece.encrypt(
                padded(push.data, SIZE),
                private_key=ec.generate_private_key(ec.SECP256R1()),
                dh=device["p256dh"],
                auth_secret=device["auth"],
                version="aes128gcm",
            )
        except (VapidException, http_ece.ECEException):  # py_vapid signs no origin with an IPv6 address in brackets
            return Verdict("refused", 0, "Subscription")
        headers = {
            "authorization": authorization,
            "content-encoding": "aes128gcm",
            "content-type": "application/octet-stream",
            "ttl": str(max(0, push.expires - int(time.time()))),
            "urgency": "normal" if push.kind == "prekeys_low" else "high",
            "topic": push.collapse,
        }
        answer = await self._client.post(endpoint, headers, body, guarded=True)
        return _verdict(answer.status, retry_after(answer.headers))

    def _authorization(self, endpoint: str) -> str:
        """Return the Authorization header. A push service keeps the same one for half of its life."""
        parts, now = urlsplit(endpoint), time.time()
        origin = f"https://{parts.netloc.lower().removesuffix(':443')}"
        made = self._authorizations.get(origin)
        if made is None or made[0] < now - LIFE / 2:
            claims = {"aud": origin, "exp": int(now) + LIFE, "sub": self._subject}
            made = now, str(self._vapid.sign(claims)["Authorization"])
            self._authorizations[origin] = made
            if len(self._authorizations) > MAX_ORIGINS:
                self._authorizations.popitem(last=False)
        return made[1]


def public_key(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Return the key that apps subscribe with, in standard base64 and in the form that browsers need."""
    standard = b64(public_point(key))
    return {
        "public_key": standard,
        "application_server_key": standard.replace("+", "-").replace("/", "_").rstrip("="),
    }


def _verdict(status: int, after: float | None) -> Verdict:
    if 200 <= status < 300:
        return Verdict("sent", status)
    if status in (404, 410):
        return Verdict("gone", status)
    if status == 429 or status >= 500:
        return Verdict("later", status, "", after, failing=True)
    return Verdict("refused", status)
