"""Jobs: what is to be pushed, in the form in which it waits in Redis. No token and no name is in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import orjson

from plugins.push.payload import URGENT

LIFE = 24 * 3600 * 1000  # milliseconds after which a push is of no use to anybody, contract section 9
AFTERWARDS = 60 * 1000  # milliseconds after its ring for which a call_hangup may still come


class Poison(Exception):
    """What stands in the queue is no job."""


@dataclass(frozen=True, slots=True)
class Job:
    """One thing that happened to a user: for all their devices, or for the one of ``token_id``.

    Times are milliseconds by Redis's clock. ``subject`` is a chat or a call. ``tries`` counts how often the provider
    could not take it. ``reply`` is where a script waits for the verdict.
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
        """Of two jobs with one key that wait, the later one takes the place of the other."""
        return f"{self.kind}|{self.user_id}|{self.subject or ''}|{self.token_id or ''}"

    @property
    def urgent(self) -> bool:
        return self.kind in URGENT or bool(self.reply)

    def to(self, token_id: UUID) -> Job:
        return replace(self, token_id=token_id)

    def again(self) -> Job:
        return replace(self, tries=self.tries + 1)

    def encode(self) -> bytes:
        ids = [str(given) if given else None for given in (self.user_id, self.subject, self.token_id)]
        return orjson.dumps([self.kind, *ids, self.raised, self.expires, self.tries, self.reply])

    @classmethod
    def decode(cls, raw: bytes | None) -> Job:
        """A job from its bytes. Raises Poison."""
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
