"""Alerts: what features announce about users who are away, and the one listener of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from uuid import UUID


class Listener:
    """Events that features announce; a listener overrides those that it needs. Features call it during their own work,
    so it only records the event: it must neither wait nor raise."""

    def message(self, chat_id: UUID, members: Collection[UUID], sender_id: UUID | None) -> None:
        """A message was stored; a sealed one has no sender. Called for each message, so it must cost very little."""

    def ring(self, call_id: UUID, callee_id: UUID, expires_at: datetime) -> None:
        """A call rings, and no socket of the callee's took the offer."""

    def ring_over(self, call_id: UUID, session_id: UUID | None) -> None:
        """A call that may have been ringing was answered, or is over; the device of that session knows, if any."""

    def prekeys_low(self, user_id: UUID) -> None:
        """Few of a user's one-time prekeys are left."""

    def lost(self, user_id: UUID, seconds: float) -> None:
        """A user's sockets are gone, and what was sent to them in the last so many seconds may not have arrived."""

    def seen(self, user_id: UUID) -> None:
        """A user asks what has happened, and receives all that was announced before."""


# What a viewer may see of a user's presence may have changed; what anybody may see where the viewer is None.
Visibility = Callable[[UUID, UUID | None], None]


class Alerts:
    """Where features announce; without a listener it costs nothing. The push feature listens, if it has a provider, and
    presence sets ``visibility``, which is called after the commit by the feature that changed a setting, a block or a
    verification."""

    def __init__(self) -> None:
        self.visibility: Visibility = _ignore
        self.listen(Listener())

    def listen(self, listener: Listener) -> None:
        """Pass everything on to this listener from now on; there is one."""
        self.message, self.seen = listener.message, listener.seen
        self.ring, self.ring_over = listener.ring, listener.ring_over
        self.prekeys_low, self.lost = listener.prekeys_low, listener.lost


def _ignore(_user: UUID, _viewer: UUID | None) -> None:
    """Do nothing: no feature shows presence."""
