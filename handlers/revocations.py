"""Revocations: ended sessions, published to all instances within a second."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from uuid import UUID

from config import channels
from handlers.sockets.bus import Bus
from handlers.sockets.hub import Hub
from handlers.tokens import Tokens

EndedSession = tuple[UUID, UUID]  # session, user


class Revocations:
    """Rejects the tokens of ended sessions and closes their sockets: here at once, elsewhere through the bus."""

    def __init__(self, tokens: Tokens, hub: Hub, bus: Bus) -> None:
        self._tokens, self._hub, self._bus = tokens, hub, bus

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        await self._bus.subscribe(channels.SESSIONS_ENDED, self._receive)
        yield
        self._bus.unsubscribe(channels.SESSIONS_ENDED)

    def announce(self, ended: Iterable[EndedSession]) -> None:
        """Revoke sessions here and on all other instances. Call it after the commit."""
        pairs = list(ended)
        if pairs:
            self.apply(pairs)
            self._bus.publish(channels.SESSIONS_ENDED, channels.sessions_ended(pairs))

    def apply(self, ended: Iterable[EndedSession]) -> None:
        """Revoke sessions on this instance only."""
        for session_id, user_id in ended:
            self._tokens.revoke(session_id)
            self._hub.end_session(user_id, session_id)

    def _receive(self, _: str, message: bytes) -> None:
        self.apply(channels.read_sessions_ended(message))
