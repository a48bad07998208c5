"""Providers: what is common to APNs, FCM and Web Push, and what their answers mean."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

from models.database import Row
from plugins.push.payload import Push

# sent: taken. gone: the provider does not know the token (any more). later: not now. refused: never, as it is.
Outcome = Literal["sent", "gone", "later", "refused"]


class Verdict(NamedTuple):
    """What became of one push. ``reason`` is the provider's own word for it, of those that it documents, or ours;
    ``after`` the seconds for which it wants to be left alone; ``gone_since`` the moment from which a token was not
    known. ``failing``: it is not about this push, the provider serves nobody just now."""

    outcome: Outcome
    status: int = 0
    reason: str = ""
    after: float | None = None
    gone_since: datetime | None = None
    failing: bool = False


class Provider(Protocol):
    """Sends to one provider. Raises what is in road.Failed when it can't be reached."""

    named_by_users: bool  # its hosts are, and may be anything

    def place(self, device: Row) -> str:
        """Where a device's pushes go: what fails there may work elsewhere."""

    async def send(self, device: Row, push: Push) -> Verdict: ...


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that an answer asks us to wait (RFC 9110 section 10.2.3), at most a day."""
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
    """A provider's word, if it is one of those that it documents: what else it says may be anything."""
    return reason if isinstance(reason, str) and reason in words else "other"
