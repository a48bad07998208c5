"""Jobs: events to push, in the form in which they wait in Redis. They contain no token and no name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import orjson

from plugins.push.payload import URGENT

LIFE = 24 * 3600 * 1000  # milliseconds after which a push is dropped, contract section 9
HANGUP_LIFE = 60 * 1000  # milliseconds after the ring's end within which a call_hangup may be sent


class Poison(Exception):
    """An entry of the queue is not a job."""


@dataclass(frozen=True, slots=True)
class Job:
    """One event for a user: for all their devices, or for the one of ``token_id``.

    Times are milliseconds by Redis's clock. ``subject`` is a chat or a call. ``tries`` counts the provider's temporary
    failures. ``reply`` is the key on which a script waits for the verdict.
    """

    kind: str
    user_id: UUID
    subject: UUID | None
    raised: int
    expires: int
    token_id: UUID | None = None
    tries: int = 0
    reply: str = ""

    @property
    def key(self) -> str:
        """The key under which the job waits: a later job with the same key replaces it."""
        return f"{self.kind}|{self.user_id}|{self.subject or ''}|{self.token_id or ''}"

    @property
    def urgent(self) -> bool:
        return self.kind in URGENT or bool(self.reply)

    def to(self, token_id: UUID) -> Job:
        return replace(self, token_id=token_id)

    def again(self) -> Job:
        return replace(self, tries=self.tries + 1)

    def encode(self) -> bytes:
        ids = [str(id_) if id_ else None for id_ in (self.user_id, self.subject, self.token_id)]
        return orjson.dumps([self.kind, *ids, self.raised, self.expires, self.tries, self.reply])

    @classmethod
    def decode(cls, raw: bytes | None) -> Job:
        """Decode a job. Raises Poison."""
        try:
            kind, user, subject, token, raised, expires, tries, reply = orjson.loads(raw or b"")
            numbers: tuple[Any, ...] = (raised, expires, tries)
            if not all(type(number) is int for number in numbers) or not isinstance(kind, str):
                raise ValueError
            return cls(
                kind,
                UUID(user),
                UUID(subject) if subject else None,
                raised,
                expires,
                UUID(token) if token else None,
                tries,
                str(reply),
            )
        except (ValueError, TypeError, AttributeError):
            raise Poison from None
