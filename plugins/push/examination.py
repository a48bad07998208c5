"""What the doctor asks of the providers: whether they take our keys, by a push to a device that can't be."""

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
from plugins.push.providers.client import Failed, Road
from plugins.push.providers.outcomes import Provider, Verdict

LIFE = 60  # seconds for which a push to nobody would be kept
PARTS = ("apns", "fcm", "webpush")
# Domains that nobody has (RFC 2606): push services that look at the subject refuse them, Apple's for one.
NOBODYS = ("localhost", "example.org", "example.com", "example.net")

APNS_KEY = "Compare APNS_KEY_FILE, APNS_KEY_ID and APNS_TEAM_ID with Apple's page of keys; is the clock right?"
FCM_ACCOUNT = "See in Google's console that the service account's key exists and may send messages; is the clock right?"


def examination(
    road: Road, providers: Mapping[str, Provider], key: ec.EllipticCurvePrivateKey | None, subject: str | None
) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        async with road.open():
            for name, judge in (("apns", _apns), ("fcm", _fcm)):
                if name not in providers:
                    yield skipped(name, "It has no key, and is not used.")
                    continue
                try:
                    yield judge(await providers[name].send(_nobody(name), _push()))
                except Failed as error:
                    says = f"The provider can't be reached ({type(error).__name__})."
                    yield wrong(name, says, "See firewalls, DNS, and whether a certificate is of an unknown authority.")
        yield _vapid(key, subject)

    return Examination("push", "Push", PARTS, look)


def _nobody(provider: str) -> Row:
    """A device that does not exist: a token of the right form, by chance."""
    token = secrets.token_hex(32) if provider == "apns" else secrets.token_urlsafe(106)
    device: dict[str, Any] = {"provider": provider, "token": token, "sandbox": False, "quiet": False}
    return cast(Row, device)


def _push() -> Push:
    return Push("test", data("test", None), int(time.time()) + LIFE, secrets.token_hex(16))


def _said(verdict: Verdict) -> str:
    return f"{verdict.status} {verdict.reason}".strip() if verdict.status else verdict.reason


def _apns(verdict: Verdict) -> Finding:
    if verdict.reason in ("TopicDisallowed", "BadTopic", "MissingTopic"):
        says = f"Apple takes the key, and not the app ({_said(verdict)})."
        return wrong("apns", says, "Compare APNS_TOPIC with the app's bundle id.")
    if verdict.reason in ("BadDeviceToken", "DeviceTokenNotForTopic", "Unregistered") or verdict.outcome == "sent":
        return good("apns", "Apple takes our key.")
    if verdict.status == 403:
        return wrong("apns", f"Apple does not take our key ({_said(verdict)}).", APNS_KEY)
    return weak("apns", f"Apple did not say whether it takes our key ({_said(verdict)}).", "Ask again in a while.")


def _fcm(verdict: Verdict) -> Finding:
    if verdict.reason in ("UNREGISTERED", "INVALID_ARGUMENT", "SENDER_ID_MISMATCH") or verdict.outcome == "sent":
        return good("fcm", "Google takes our service account.")
    if verdict.reason == "TokenEndpointUnreachable":
        do = "See firewalls and DNS, and the token_uri in FCM_SERVICE_ACCOUNT_FILE."
        return wrong("fcm", "Google's token endpoint can't be reached.", do)
    if verdict.reason == "TokenEndpointRefused":
        return wrong("fcm", f"Google gives our service account no access token ({verdict.status}).", FCM_ACCOUNT)
    if verdict.status in (401, 403, 404):
        return wrong("fcm", f"Our service account may not send here ({_said(verdict)}).", FCM_ACCOUNT)
    return weak("fcm", f"Google did not say whether it takes us ({_said(verdict)}).", "Ask again in a while.")


def _vapid(key: ec.EllipticCurvePrivateKey | None, subject: str | None) -> Finding:
    if key is None or subject is None:
        return skipped("webpush", "It has no key, and is not used.")
    do = "Make one with: python -m scripts.vapid_keys FILE"
    claims = {"aud": "https://push.example.org", "exp": int(time.time()) + LIFE, "sub": subject}
    try:
        # There is nobody to ask: a push service knows a key only by what subscribed with it.
        signed = Vapid02.verify(str(Vapid02(key).sign(claims)["Authorization"]))
    except VapidException as error:
        return wrong("webpush", f"Nothing can be signed with the key ({type(error).__name__}).", do)
    if not signed:
        return wrong("webpush", "What the key signs is not true.", do)
    where = subject.rpartition("@")[2] if subject.startswith("mailto:") else urlsplit(subject).hostname or ""
    if where in NOBODYS:
        says = f"VAPID_SUBJECT is at {where}, where nobody is reached; some push services refuse it."
        return weak("webpush", says, "Set it to an address of your own: mailto:ops@your.domain")
    return good("webpush", "The key signs, and the subject is an address.")
