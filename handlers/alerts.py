"""Alerts: what a user who is away may want to know of. Features announce it, and whoever listens hears it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Protocol
from uuid import UUID


class Listener(Protocol):
    """What listens. It is called in the midst of what a feature does: it takes notes, and neither waits nor raises."""

    def message(self, chat_id: UUID, members: Collection[UUID], sender_id: UUID | None) -> None:
        """A message was stored, of nobody when it is sealed. Called for each message, so it costs next to nothing."""

    def ring(self, call_id: UUID, callee_id: UUID, expires_at: datetime) -> None:
        """A call rings, and no socket of the callee's took the offer."""

    def ring_over(self, call_id: UUID, session_id: UUID | None) -> None:
        """A call that may have been ringing was answered, or is over; the device of that session knows, if any."""

    def prekeys_low(self, user_id: UUID) -> None:
        """Few of a user's one-time prekeys are left."""

    def lost(self, user_id: UUID, seconds: float) -> None:
        """A user's sockets are gone, and what was told them in the last so many seconds may not have arrived."""

    def seen(self, user_id: UUID) -> None:
        """A user asks what has happened, and is told of all that was announced before."""


# What a viewer may see of a user may have changed, or what anybody may see of them where the viewer is None.
Visibility = Callable[[UUID, UUID | None], None]


class Alerts:
    """Passes announcements on to those who listen; without a listener they cost nothing."""

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()
        self.on_visibility: list[Visibility] = []

    def visibility(self, user_id: UUID, viewer: UUID | None = None) -> None:
        """A setting, a block or a verification was committed that decides who sees the user's presence; called by the
        feature that changed it, with the ``viewer`` if it concerns one only."""
        for listener in self.on_visibility:
            listener(user_id, viewer)

    def listen(self, listener: Listener) -> None:
        self._listeners += (listener,)

    def message(self, chat_id: UUID, members: Collection[UUID], sender_id: UUID | None) -> None:
        for listener in self._listeners:
            listener.message(chat_id, members, sender_id)

    def ring(self, call_id: UUID, callee_id: UUID, expires_at: datetime) -> None:
        for listener in self._listeners:
            listener.ring(call_id, callee_id, expires_at)

    def ring_over(self, call_id: UUID, session_id: UUID | None) -> None:
        for listener in self._listeners:
            listener.ring_over(call_id, session_id)

    def prekeys_low(self, user_id: UUID) -> None:
        for listener in self._listeners:
            listener.prekeys_low(user_id)

    def lost(self, user_id: UUID, seconds: float) -> None:
        for listener in self._listeners:
            listener.lost(user_id, seconds)

    def seen(self, user_id: UUID) -> None:
        for listener in self._listeners:
            listener.seen(user_id)
