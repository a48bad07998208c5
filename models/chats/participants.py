"""Participants: add and remove them, change their roles, and list them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from config.pages import MAX_PAGE
from models.chats import invitations, invites, sanctions, views
from models.chats.changes import ChatChanges
from models.chats.chats import end
from models.chats.events import Change, Event
from models.database import Database
from models.paging import cut, read_page, text_size

ROLES = ("owner", "admin", "member", "restricted")  # the highest first
GOVERNING = ROLES[:2]  # who may invite


async def find_by_public_id(db: Database, public_ids: Sequence[str]) -> dict[str, UUID]:
    """Users by their public ids in lower case."""
    rows = await db.fetch(
        "SELECT lower(public_id) AS name, id FROM users WHERE lower(public_id) = ANY ($1::text[])",
        [public_id.lower() for public_id in public_ids],
    )
    return {row["name"]: row["id"] for row in rows}


async def role_of(change: Change, user_id: UUID) -> str | None:
    """A participant's role in a locked chat; None if the user is not in it."""
    role: str | None = await change.db.value(
        "SELECT role::text FROM chat_participants WHERE chat_id = $1 AND user_id = $2", change.chat_id, user_id
    )
    return role


async def is_concealed(change: Change, user_id: UUID) -> bool:
    """True if a locked chat is concealed from a participant."""
    return bool(
        await change.db.value(
            "SELECT concealed FROM chat_participants WHERE chat_id = $1 AND user_id = $2", change.chat_id, user_id
        )
    )


async def exists(change: Change, user_id: UUID) -> bool:
    """True if the account exists. It can't be erased until the transaction ends."""
    return bool(await change.db.value("SELECT 1 FROM users WHERE id = $1 FOR KEY SHARE", user_id))


async def add(change: Change, user_id: UUID, role: str, *, accepted: bool) -> bool:
    """Add a user to a locked chat. Returns False if they are already in it.

    What happened before counts as read. Earlier sanctions end; ``role`` already includes what is left of them.
    ``accepted``: they join by their own action.
    """
    if await role_of(change, user_id) is not None:
        return False
    await sanctions.lift(change, user_id)
    await invitations.delete(change, user_id)
    await views.forget(change, user_id)
    event = await change.append("participant_added", user_id=user_id, data={"role": role})
    await change.db.execute(
        """INSERT INTO chat_participants
               (chat_id, user_id, role, joined_seq, delivered_seq, read_seq, read_number, accepted)
           SELECT id, $2, $3::text::participant_role, $4, $4, $4, last_number, $5 FROM chat_threads WHERE id = $1""",
        change.chat_id,
        user_id,
        role,
        event.seq,
        accepted,
    )
    await invitations.ask_to_stay(change, user_id)
    await _add_to_count(change, 1)
    return True


async def remove(change: Change, user_id: UUID) -> Event | None:
    """Remove a user from a locked chat. Returns the event, which is the last one that they may see; None if they are
    not in the chat.

    Revokes their invites. Stores a restriction, and the time if another user removes them.
    """
    role = await role_of(change, user_id)
    if role is None:
        return None
    event = await change.append("participant_removed", user_id=user_id, data={"role": role})
    if role in GOVERNING:
        await invites.revoke_all_by(change, user_id)
    removed = user_id != change.user_id
    await sanctions.record_departure(change, user_id, restricted=role == "restricted", removed=removed)
    await change.db.execute(
        """WITH gone AS (DELETE FROM chat_participants WHERE chat_id = $1 AND user_id = $2 RETURNING joined_seq)
           INSERT INTO chat_departures (chat_id, user_id, joined_seq, left_seq, position)
           SELECT id, $2, joined_seq, $3, last_position FROM gone, chat_threads WHERE id = $1""",
        change.chat_id,
        user_id,
        event.seq,
    )
    await views.forget(change, user_id)
    await invitations.delete(change, user_id)
    await _add_to_count(change, -1)
    return event


async def _add_to_count(change: Change, more: int) -> None:
    change.participant_count += more
    await change.db.execute(
        "UPDATE chat_threads SET participant_count = participant_count + $2 WHERE id = $1", change.chat_id, more
    )
    await change.renew_access()


async def set_role(change: Change, user_id: UUID, role: str) -> None:
    """Change a participant's role. An owner who hands the chat over becomes admin: there is never more than one owner.

    Revokes the invites of a participant who can no longer invite.
    """
    if role == "owner":
        await _set_role(change, change.user_id, "admin")
    await _set_role(change, user_id, role)
    if role not in GOVERNING:
        await invites.revoke_all_by(change, user_id)
    await change.renew_access()


async def _set_role(change: Change, user_id: UUID, role: str) -> None:
    was = await role_of(change, user_id)
    await change.db.execute(
        "UPDATE chat_participants SET role = $3::text::participant_role WHERE chat_id = $1 AND user_id = $2",
        change.chat_id,
        user_id,
        role,
    )
    await change.append("participant_role", user_id=user_id, data={"role": role, "was": was})


# Participants as shown ----------------------------------------------------------------------------------------------

# Watermarks are shown to the two of a direct chat, unless one has blocked the other. If the chat is concealed they are
# shown as those of a user who does not answer.
_PERSON = """p.user_id, users.public_id, users.display_name, users.avatar_url, users.fingerprint, p.role::text,
    p.delivered_seq, p.read_seq, t.type = 'direct' AND (p.user_id = $1 OR p.concealed OR NOT EXISTS (
        SELECT 1 FROM user_blocks b WHERE (b.blocker_id, b.blocked_id) IN ((p.user_id, $1), ($1, p.user_id)))) AS marked
"""


_PERSON_SIZE = f"480 + {text_size('display_name', 'avatar_url')}"


def _person(row: Mapping[str, Any]) -> dict[str, Any]:
    person = dict(row)
    if not person.pop("marked"):
        person["delivered_seq"] = person["read_seq"] = None
    return person


async def list_page(
    db: Database, viewer: UUID, chat_id: UUID, limit: int, before: tuple[datetime, UUID] | None = None
) -> tuple[list[dict[str, Any]], bool]:
    """A page of a chat's participants with their profiles, the last to join first; and True if there are more."""
    rows = await db.fetch(_EARLIER if before else _LATEST, viewer, chat_id, limit, *(before or ()))
    people, more = read_page(rows)
    return [_person(person) for person in people], more


_LISTED = f"""SELECT {_PERSON}, p.joined_at
    FROM chat_participants p JOIN users ON users.id = p.user_id JOIN chat_threads t ON t.id = p.chat_id
    WHERE p.chat_id = $2"""
_ORDER = "joined_at DESC, user_id DESC"
_LATEST = cut(_LISTED, _PERSON_SIZE, _ORDER, "$3")
_EARLIER = cut(f"{_LISTED} AND (p.joined_at, p.user_id) < ($4, $5)", _PERSON_SIZE, _ORDER, "$3")


MAX_FIRST = 8  # participants that a list shows of each chat (contract section 7)

# The viewer first, then the owner, admins, and the others, whom readers of a channel don't see. Each part reads at most
# MAX_FIRST rows, from its own index.
_SHOWN = f"""
SELECT wanted.place, t.id AS chat_id, {_PERSON}
FROM unnest($2::uuid[]) WITH ORDINALITY AS wanted (id, place)
JOIN chat_participants mine ON mine.chat_id = wanted.id AND mine.user_id = $1
JOIN chat_threads t ON t.id = mine.chat_id,
LATERAL (
    SELECT mine.user_id, mine.role, mine.delivered_seq, mine.read_seq, mine.concealed
    UNION ALL
    (SELECT user_id, role, delivered_seq, read_seq, concealed FROM chat_participants
     WHERE chat_id = t.id AND role = 'owner' AND user_id <> $1)
    UNION ALL
    (SELECT user_id, role, delivered_seq, read_seq, concealed FROM chat_participants
     WHERE chat_id = t.id AND role IN ('owner', 'admin') AND role = 'admin' AND user_id <> $1
     ORDER BY user_id LIMIT {MAX_FIRST})
    UNION ALL
    (SELECT user_id, role, delivered_seq, read_seq, concealed FROM chat_participants
     WHERE chat_id = t.id AND role NOT IN ('owner', 'admin') AND user_id <> $1
       AND (t.type <> 'channel' OR mine.role IN ('owner', 'admin'))
     ORDER BY user_id LIMIT {MAX_FIRST})
    LIMIT {MAX_FIRST}
) AS p JOIN users ON users.id = p.user_id
"""
# As many chats as one page has room for, in their order: all rows of a chat have the same total.
_SHOWN_PAGE = f"""
SELECT * FROM (
    SELECT page.*, {_PERSON_SIZE} AS size, sum({_PERSON_SIZE}) OVER (ORDER BY place) AS total FROM ({_SHOWN}) AS page
) AS page WHERE total <= {MAX_PAGE} OR place = 1
"""


class FirstParticipants(NamedTuple):
    """The first participants of a chat, and their bytes of JSON."""

    people: list[dict[str, Any]]
    size: int


async def first_participants(db: Database, viewer: UUID, chat_ids: Sequence[UUID]) -> dict[UUID, FirstParticipants]:
    """The first participants of the viewer's chats: at most MAX_FIRST of each, including the viewer. Returns as many of
    the chats, in their order, as one page has room for."""
    found: dict[UUID, list[dict[str, Any]]] = {}
    sizes: dict[UUID, int] = {}
    for row in await db.fetch(_SHOWN_PAGE, viewer, list(chat_ids)):
        person = {name: value for name, value in row.items() if name not in ("place", "size", "total")}
        chat_id = person.pop("chat_id")
        found.setdefault(chat_id, []).append(_person(person))
        sizes[chat_id] = sizes.get(chat_id, 0) + row["size"]
    for people in found.values():
        people.sort(
            key=lambda person: (person["user_id"] != viewer, ROLES.index(person["role"]), person["public_id"].lower())
        )
    return {chat_id: FirstParticipants(people, sizes[chat_id]) for chat_id, people in found.items()}


# When an account is erased ------------------------------------------------------------------------------------------


async def remove_from_all(changes: ChatChanges, user_id: UUID) -> None:
    """Remove a user from all their chats, in one transaction for each.

    A chat that they own goes to the admin who joined first, a chat of two to the other user. Without an admin it has no
    owner from then on. A chat without participants ends.
    """
    db = changes.db
    while True:
        chat_ids = [
            row["chat_id"]
            for row in await db.fetch(
                "SELECT chat_id FROM chat_participants WHERE user_id = $1 ORDER BY chat_id LIMIT 500", user_id
            )
        ]
        for chat_id in chat_ids:
            async with changes.lock(chat_id, user_id, concealed=True, charged=False) as change:
                if change is None:  # deleted, and about to be purged
                    await db.execute(
                        "DELETE FROM chat_participants WHERE chat_id = $1 AND user_id = $2", chat_id, user_id
                    )
                elif change.role is not None:
                    await _leave(change)
        if len(chat_ids) < 500:
            break
    # Remove them as creator of chats: PostgreSQL checks that reference when a transaction changes such a chat twice.
    while await db.execute(
        """UPDATE chat_threads SET created_by = NULL WHERE id IN (
               SELECT id FROM chat_threads WHERE created_by = $1 ORDER BY id LIMIT 500 FOR NO KEY UPDATE)""",
        user_id,
    ):
        continue


async def leave_concealed(change: Change) -> None:
    """Remove a user who does not want to stay from a locked chat. To others they leave."""
    await _leave(change)


async def _leave(change: Change) -> None:
    owner = change.role == "owner"
    await remove(change, change.user_id)
    if await end_if_empty(change) or not owner:
        return
    # Never a plain member: a user who joined to read or write should not suddenly govern the others.
    heir = await change.db.value(
        """SELECT user_id FROM chat_participants WHERE chat_id = $1 AND ($2 OR (role = 'admin' AND NOT concealed))
           ORDER BY role, joined_at, user_id LIMIT 1""",
        change.chat_id,
        change.is_pair,
    )
    if heir is not None:
        await _set_role(change, heir, "owner")
        await change.renew_access()


async def end_if_empty(change: Change) -> bool:
    """End a locked chat if all its participants have left or deleted it. Returns True if it ended."""
    if change.participant_count > 0 and not (change.is_pair and await views.all_have_deleted(change)):
        return False
    await end(change)
    return True
