"""Redis channels and streams that both servers and operators' scripts use, and the form of their messages."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

import orjson

SESSIONS_ENDED = "sessions:ended"  # every instance subscribes to it


def sessions_ended(ended: Iterable[tuple[UUID, UUID]]) -> bytes:
    """Encode a message on SESSIONS_ENDED for these pairs of session and user."""
    return orjson.dumps([[str(session), str(user)] for session, user in ended])


def read_sessions_ended(message: bytes) -> list[tuple[UUID, UUID]]:
    """Decode a message on SESSIONS_ENDED into its pairs of session and user."""
    return [(UUID(session), UUID(user)) for session, user in orjson.loads(message)]


PUSH_NOW = "push:judge.now"  # the stream of jobs that are pushed at once (plugins/push/queue/queue.py)


def push_test(user_id: UUID, token_id: UUID, now: int, seconds: int, reply: str) -> bytes:
    """Encode the job on PUSH_NOW that makes a server send one push and write the verdict to the list ``reply``.
    ``now`` is in milliseconds by Redis's clock. The form is that of plugins/push/queue/jobs.py."""
    return orjson.dumps(["test", str(user_id), None, str(token_id), now, now + seconds * 1000, 0, reply])
