"""Visibility: what a membership of a chat lets its user see. One rule for sockets, ``/sync``, histories and counts.

A membership is bounded on both sides. Its user sees nothing from before it, not even later changes of earlier messages;
only channels and clouds can be read from their beginning. The user sees nothing from after its end either: a message
that was changed since is shown as it was, or hidden. In a channel readers do not see each other
(docs/decisions/0032-what-a-membership-shows.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

GOVERNING = ("owner", "admin")
OPEN = ("channel", "cloud")  # new participants see everything

UNEXPIRED = "(m.expires_at IS NULL OR m.expires_at > now())"
# The first seq that participant ``p`` of chat ``t`` may see.
SEEN_FROM = "CASE WHEN t.type IN ('channel', 'cloud') THEN 1 ELSE p.joined_seq END"
# True if participant ``p`` of chat ``t`` sees its message ``m``: it exists, is in their time, and has not expired.
VISIBLE = f"(m.seq > 0 AND m.seq >= {SEEN_FROM} AND {UNEXPIRED})"


def blocked(one: str, other: str) -> str:
    """True if one of two users (parameters or columns) has blocked the other."""
    return f"""EXISTS (SELECT 1 FROM user_blocks b
        WHERE (b.blocker_id, b.blocked_id) IN (({one}, {other}), ({other}, {one})))"""


# The scope of an event says which of the participants at its time see it: everybody (``""``), those who may see the
# message at a seq (``m17``), or the owner, the admins and one user (``u`` with the user's id).
EVERYBODY = ""
_ABOUT_READERS = ("participant_invited", "participant_added", "participant_removed", "participant_role")


def seen_from(kind: str, joined_seq: int) -> int:
    """The first seq that a participant who joined at ``joined_seq`` may see."""
    return 1 if kind in OPEN else joined_seq


def scope_of(chat_type: str, event: str, about: int | None, user_id: UUID | None, data: Mapping[str, Any]) -> str:
    """The scope of an event. ``about`` is the seq of the message that it names, None if it names none; ``user_id`` is
    who reacted, came or went, ``data`` is what is stored with it: a ``role``, and for a change of it the one before,
    ``was``. Users see an event of any type only if they see the message that it names."""
    if chat_type == "channel":
        governs = data.get("role") in GOVERNING or data.get("was") in GOVERNING
        if event in ("reaction_added", "reaction_removed") or (event in _ABOUT_READERS and not governs):
            return f"u{user_id}"
    elif chat_type != "cloud" and about is not None:
        return f"m{about}"
    return EVERYBODY


class Membership(NamedTuple):
    """The time of a user in a chat. ``joined`` and ``left`` are the seqs of its first and last event; ``left`` is None
    while it lasts. ``role`` is None once it has ended."""

    type: str
    user_id: UUID
    role: str | None
    joined: int
    left: int | None = None

    @property
    def seen_from(self) -> int:
        return seen_from(self.type, self.joined)

    def sees(self, scope: str) -> bool:
        """True if an event of this scope, from the time of this membership, may be shown."""
        if scope.startswith("m"):
            return int(scope[1:]) >= self.seen_from
        return not scope or self.role in GOVERNING or scope[1:] == str(self.user_id)


@dataclass(frozen=True, slots=True)
class HiddenFrom:
    """The participants who may not see an event of this scope, as a set that is never built, because a channel has
    100,000. ``joined`` has only those who were not there from the beginning."""

    type: str
    roles: Mapping[UUID, str]
    joined: Mapping[UUID, int]
    scope: str

    def __contains__(self, user_id: object) -> bool:
        assert isinstance(user_id, UUID)
        role = self.roles.get(user_id)
        return not Membership(self.type, user_id, role, self.joined.get(user_id, 1)).sees(self.scope)

    def __bool__(self) -> bool:
        """False if everybody may see it."""
        if not self.scope.startswith("m"):
            return bool(self.scope)
        return any(user_id in self for user_id in self.joined)
