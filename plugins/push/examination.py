"""The doctor's check that the providers accept our keys: it sends a push to a device that does not exist."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from py_vapid import Vapid02, VapidException

from config.findings import Examination, Finding, good, skipped, weak, wrong
from models.database import Row
from plugins.push.payload import Push, data
from plugins.push.providers.client import Failed, ProviderClient
from plugins.push.providers.outcomes import Provider, Verdict

LIFE = 60  # seconds for which a provider may keep the test push
PARTS = ("apns", "fcm", "webpush")
# Reserved domains (RFC 2606): push services that check the subject reject them, for example Apple's.
RESERVED_DOMAINS = ("localhost", "example.org", "example.com", "example.net")

APNS_KEY = "Compare APNS_KEY_FILE, APNS_KEY_ID and APNS_TEAM_ID with Apple's page of keys, and check the clock."
FCM_ACCOUNT = "Check in Google's console that the service account's key exists and may send messages. Check the clock."


def examination(
    client: ProviderClient,
    providers: Mapping[str, Provider],
    key: ec.EllipticCurvePrivateKey | None,
    subject: str | None,
) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        async with client.open():
            for name, judge in (("apns", _apns), ("fcm", _fcm)):
                if name not in providers:
                    yield skipped(name, "Not used: no key is configured.")
                    continue
                try:
                    yield judge(await providers[name].send(_imaginary_device(name), _push()))
                except Failed as error:
                    says = f"The provider can't be reached ({type(error).__name__})."
                    yield wrong(name, says, "Check firewalls, DNS, and if a certificate's authority is unknown.")
        yield _vapid(key, subject)

    return Examination("push", "Push", PARTS, look)


def _imaginary_device(provider: str) -> Row:
    """Return a device that does not exist: a random token of the right form."""
    token = secrets.token_hex(32) if provider == "apns" else secrets.token_urlsafe(106)
    device: dict[str, Any] = {"provider": provider, "token": token, "sandbox": False, "quiet": False}
    return cast(Row, device)


def _push() -> Push:
    return Push("test", data("test", None), int(time.time()) + LIFE, secrets.token_hex(16))


def _reason(verdict: Verdict) -> str:
    return f"{verdict.status} {verdict.reason}".strip() if verdict.status else verdict.reason


def _apns(verdict: Verdict) -> Finding:
    if verdict.reason in ("TopicDisallowed", "BadTopic", "MissingTopic"):
        says = f"Apple accepts the key but rejects the app ({_reason(verdict)})."
        return wrong("apns", says, "Compare APNS_TOPIC with the app's bundle id.")
    if verdict.reason in ("BadDeviceToken", "DeviceTokenNotForTopic", "Unregistered") or verdict.outcome == "sent":
        return good("apns", "Apple accepts our key.")
    if verdict.status == 403:
        return wrong("apns", f"Apple rejects our key ({_reason(verdict)}).", APNS_KEY)
    return weak("apns", f"Apple's response shows nothing about our key ({_reason(verdict)}).", "Try again later.")


def _fcm(verdict: Verdict) -> Finding:
    if verdict.reason in ("UNREGISTERED", "INVALID_ARGUMENT", "SENDER_ID_MISMATCH") or verdict.outcome == "sent":
        return good("fcm", "Google accepts our service account.")
    if verdict.reason == "TokenEndpointUnreachable":
        do = "Check firewalls and DNS, and the token_uri in FCM_SERVICE_ACCOUNT_FILE."
        return wrong("fcm", "Google's token endpoint can't be reached.", do)
    if verdict.reason == "TokenEndpointRefused":
        return wrong("fcm", f"Google issues no access token to our service account ({verdict.status}).", FCM_ACCOUNT)
    if verdict.status in (401, 403, 404):
        return wrong("fcm", f"Our service account may not send here ({_reason(verdict)}).", FCM_ACCOUNT)
    return weak("fcm", f"Google's response shows nothing about our key ({_reason(verdict)}).", "Try again later.")


def _vapid(key: ec.EllipticCurvePrivateKey | None, subject: str | None) -> Finding:
    if key is None or subject is None:
        return skipped("webpush", "Not used: no key is configured.")
    do = "Create a key: python -m scripts.vapid_keys FILE"
    claims = {"aud": "https://push.example.org", "exp": int(time.time()) + LIFE, "sub": subject}
    try:
        # No service can check it: a push service knows a key only from the subscriptions made with it.
        signed = Vapid02.verify(str(Vapid02(key).sign(claims)["Authorization"]))
    except VapidException as error:
        return wrong("webpush", f"Nothing can be signed with the key ({type(error).__name__}).", do)
    if not signed:
        return wrong("webpush", "A signature by the key does not verify.", do)
    where = subject.rpartition("@")[2] if subject.startswith("mailto:") else urlsplit(subject).hostname or ""
    if where in RESERVED_DOMAINS:
        says = f"VAPID_SUBJECT is at {where}, which reaches no operator; some push services reject it."
        return weak("webpush", says, "Set it to your address: mailto:ops@your.domain")
    return good("webpush", "The key signs, and the subject is a valid address.")
