"""The interface that APNs, FCM and Web Push share, and the verdicts on a push."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

from models.database import Row
from plugins.push.payload import Push

# sent: accepted. gone: the provider does not know the token (any more). later: retry. refused: it will never be
# accepted.
ProviderOutcome = Literal["sent", "gone", "later", "refused"]

# Our own reasons, which any provider's push may have.
EXPLAINED: Mapping[str, str] = {
    "PrivateAddress": "The endpoint's name resolves to a private address, where the server sends nothing.",
    "ConnectError": "The provider can't be reached: is there a firewall, or a certificate of an unknown authority?",
    "ConnectTimeout": "The provider can't be reached in time.",
    "TimeoutError": "The provider did not answer in time.",
}
BY_STATUS = {
    200: "Accepted. If nothing arrives, check the app, and if the device allows its notifications.",
    201: "Accepted. If nothing arrives, check the distributor or browser.",
    400: "The provider rejects the push as malformed.",
    401: "The provider rejects our signature or token.",
    403: "The push service rejects our key: did the app subscribe with the one of GET /push/vapid?",
    404: "The token is no longer valid.",
    410: "The token is no longer valid.",
    413: "The provider rejects the push as too large.",
    429: "The provider receives too many requests.",
    500: "The provider has an internal error.",
    503: "The provider is overloaded or under maintenance.",
}


class Verdict(NamedTuple):
    """The result of one push. ``reason`` is a word that the provider documents, or ours; ``after`` the pause in seconds
    that the provider asks for; ``gone_since`` the time since when it has not known the token. ``failing``: the provider
    as a whole fails now, not this push alone."""

    outcome: ProviderOutcome
    status: int = 0
    reason: str = ""
    after: float | None = None
    gone_since: datetime | None = None
    failing: bool = False


class Provider(Protocol):
    """Sends to one provider. Raises one of client.Failed when it can't be reached."""

    named_by_users: bool  # users name its hosts, which may be anything
    explained: Mapping[str, str]  # the meaning of its reasons, for operators

    def place(self, device: Row) -> str:
        """Return the destination of a device's pushes, for which failures are counted."""

    async def send(self, device: Row, push: Push) -> Verdict: ...


def explain(verdict: Verdict, explained: Mapping[str, str]) -> str:
    """Explain a verdict in a sentence, by the provider's reason, else by its status."""
    words = explained.get(verdict.reason) or EXPLAINED.get(verdict.reason) or BY_STATUS.get(verdict.status)
    return words or "The provider's documentation does not explain this answer."


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a response asks us to wait (RFC 9110 section 10.2.3), at most a day."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal() and len(text) < 10:
        seconds = float(text)
    else:
        try:
            moment = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), 86_400.0)


def documented_word(reason: object, words: frozenset[str]) -> str:
    """Return the provider's word if it is a documented one, else "other": the response may contain anything."""
    return reason if isinstance(reason, str) and reason in words else "other"
