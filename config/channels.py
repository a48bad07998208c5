"""Redis channels and streams that servers and operators' scripts both use, and the form of what is said there."""

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


PUSH_NOW = "push:judge.now"  # the stream of what is to be pushed at once (plugins/push/queue/queue.py)


def push_test(user_id: UUID, token_id: UUID, now: int, seconds: int, reply: str) -> bytes:
    """The job on PUSH_NOW by which a script has a server send one push: the verdict comes to the list ``reply``.
    ``now`` is in milliseconds by Redis's clock. In the form of plugins/push/queue/jobs.py."""
    return orjson.dumps(["test", str(user_id), None, str(token_id), now, now + seconds * 1000, 0, reply])
