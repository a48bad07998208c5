"""Redis channels that servers and operators' scripts both speak on, and the form of what is said there."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import orjson

SESSIONS_ENDED = "sessions:ended"  # heard by every instance


def sessions_ended(ended: Iterable[tuple[UUID, UUID]]) -> bytes:
    """The message on SESSIONS_ENDED for these pairs of session and user."""
    return orjson.dumps([[str(session), str(user)] for session, user in ended])


def read_sessions_ended(message: bytes) -> list[tuple[UUID, UUID]]:
    """The pairs of session and user in a message on SESSIONS_ENDED."""
    return [(UUID(session), UUID(user)) for session, user in orjson.loads(message)]
