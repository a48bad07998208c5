"""FCM: pushes through Google's HTTP v1 API, with the access token of a service account (RS256)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import jwt
import orjson

from models.database import Row
from plugins.push.payload import Push, padded
from plugins.push.providers.client import Failed, ProviderClient
from plugins.push.providers.outcomes import Verdict, documented_word, retry_after
from plugins.push.providers.vapid import Account

GOOGLE = "https://fcm.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"  # RFC 7523
LIFE = 3600  # seconds of the assertion, Google's maximum
EARLY = 300  # seconds before it expires that an access token is replaced
SIZE = 512  # bytes of every request, less the token

# FCM's error codes, and Google's general ones.
WORDS = frozenset(
    (
        *("UNSPECIFIED_ERROR", "INVALID_ARGUMENT", "UNREGISTERED", "SENDER_ID_MISMATCH", "QUOTA_EXCEEDED"),
        *("UNAVAILABLE", "INTERNAL", "THIRD_PARTY_AUTH_ERROR", "NOT_FOUND", "PERMISSION_DENIED", "UNAUTHENTICATED"),
        "RESOURCE_EXHAUSTED",
    )
)
# The meaning of some of them, and of our own, for operators.
EXPLAINED: Mapping[str, str] = {
    "UNREGISTERED": "The app was removed from the device, or the token was renewed.",
    "SENDER_ID_MISMATCH": "The token belongs to another Firebase project than the service account.",
    "INVALID_ARGUMENT": "The token is not an FCM token.",
    "PERMISSION_DENIED": "The service account may not send messages in this project.",
    "THIRD_PARTY_AUTH_ERROR": "Firebase has no valid key of Apple's for this app.",
    "TokenEndpointRefused": "Google issues no access token: is the service account's key deleted, or the clock wrong?",
    "TokenEndpointUnreachable": "Google's token endpoint can't be reached from the server.",
}


class _NoToken(Exception):
    """Google's token endpoint issued no token; ``verdict`` is the result for the push."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class Fcm:
    named_by_users = False
    explained = EXPLAINED

    def __init__(self, client: ProviderClient, account: Account, base_url: str) -> None:
        self._client, self._account, self._base = client, account, base_url
        self._url = f"{base_url}/v1/projects/{account.project_id}/messages:send"
        self._token, self._until = "", -1e9
        self._renewing = asyncio.Lock()

    def place(self, device: Row) -> str:
        return self._base

    async def send(self, device: Row, push: Push) -> Verdict:
        try:
            token = await self._bearer()
            verdict = await self._send(device, push, token)
            if verdict.status == 401:  # revoked, or our clock is wrong: retry once with a new token
                if self._token == token:
                    self._until = -1e9
                verdict = await self._send(device, push, await self._bearer())
        except _NoToken as none:
            return none.verdict
        return verdict

    async def _send(self, device: Row, push: Push, token: str) -> Verdict:
        android: dict[str, Any] = {
            "priority": "NORMAL" if push.kind == "prekeys_low" else "HIGH",
            "ttl": f"{max(0, push.expires - int(time.time()))}s",
        }
        if not push.urgent:  # FCM may delay collapsible messages
            android["collapse_key"] = push.collapse
        message = {"token": device["token"], "data": push.data, "android": android}
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        body = padded({"message": message}, SIZE + len(device["token"]))
        answer = await self._client.post(self._url, headers, body)
        return _verdict(answer.status, retry_after(answer.headers), answer.body)

    async def _bearer(self) -> str:
        """Return a valid access token. Raises _NoToken."""
        async with self._renewing:
            if time.monotonic() > self._until:
                self._token, life = await self._renew()
                self._until = time.monotonic() + life - EARLY
            return self._token

    async def _renew(self) -> tuple[str, float]:
        account, now = self._account, int(time.time())
        claims = {"iss": account.client_email, "scope": SCOPE, "aud": account.token_uri, "iat": now, "exp": now + LIFE}
        assertion = jwt.encode(claims, account.private_key, "RS256", headers={"kid": account.private_key_id})
        form = urlencode({"grant_type": GRANT, "assertion": assertion}).encode()
        headers = {"content-type": "application/x-www-form-urlencoded"}
        try:
            answer = await self._client.post(account.token_uri, headers, form)
            fields = _object(answer.body)
        except Failed as error:
            raise _NoToken(Verdict("later", 0, "TokenEndpointUnreachable", failing=True)) from error
        token, life = fields.get("access_token"), fields.get("expires_in")
        if answer.status != 200 or not isinstance(token, str) or not isinstance(life, int):
            # Google rejects our key or its server fails: neither is about this push, so it waits.
            after = retry_after(answer.headers)
            raise _NoToken(Verdict("later", answer.status, "TokenEndpointRefused", after, failing=True))
        return token, max(float(life), EARLY + 1.0)


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _verdict(status: int, after: float | None, body: bytes) -> Verdict:
    if status == 200:
        return Verdict("sent", status)
    value = _object(body).get("error")
    error = value if isinstance(value, dict) else {}
    details = error.get("details")
    codes = [detail.get("errorCode") for detail in details if isinstance(detail, dict)] if details else []
    reason = documented_word(next((code for code in codes if code), error.get("status")), WORDS)
    # A 404 from a proxy in between, or for a wrong URL, says nothing about the token.
    if status == 404 and reason in ("UNREGISTERED", "NOT_FOUND"):
        return Verdict("gone", status, reason)
    if status == 429 or status >= 500:
        return Verdict("later", status, reason, after, failing=True)
    if status in (401, 404):
        return Verdict("later", status, reason, after, failing=True)
    return Verdict("refused", status, reason)
