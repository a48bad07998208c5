"""Chats: making, finding, changing and ending them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from handlers.http.pages import PageCursor
from handlers.sockets.hub import Hub
from handlers.wire.avatars import AvatarHosts, avatar_fault
from handlers.wire.errors import Fault, Forbidden, InvalidRequest, NotFound
from handlers.wire.frames import chat_changed
from handlers.wire.shapes import encode
from models import files
from models.chats import chat_list as listing
from models.chats import chats, invitations, participants, views
from models.chats.changes import ChatChanges
from models.database import Database
from models.paging import Page
from plugins.chats import shapes
from plugins.chats.rights import NO_CHAT, at_least, locked

Entries = tuple[list[dict[str, Any]], bool]  # a page, and whether there are more

# Contract section 7: how many may take part, the owner included.
MOST = {"direct": 2, "secret": 2, "group": 1024, "cloud": 1024, "channel": 100_000}


class Chats:
    """What users do with chats. Whoever takes no part in one is told that it does not exist."""

    def __init__(self, db: Database, hub: Hub, changes: ChatChanges, avatars: AvatarHosts) -> None:
        self._db, self._hub, self._changes, self._avatars = db, hub, changes, avatars

    # Looking ----------------------------------------------------------------------------------------------------------

    async def entries(self, user_id: UUID, limit: int, before: PageCursor | None, *, hidden: bool) -> Entries:
        """A page of the user's chats, or of those that they have hidden, the last active first, each with at most 8
        participants; and whether there are more. Among them are the invitations that they have not answered."""
        rows, more = await listing.entries(self._db, user_id, limit, before, hidden=hidden)
        people = await participants.shown(self._db, user_id, [row["id"] for row in rows])
        asked = [] if hidden else await invitations.entries(self._db, user_id, limit + 1, before)
        found = sorted([*rows, *map(dict, asked)], key=lambda row: (row["updated_at"], row["id"]), reverse=True)
        page, shown = Page(), list[dict[str, Any]]()
        for row in found:
            if len(shown) == limit:
                break
            if "inviter_id" in row:
                answer = request(row)
                size = len(encode(answer))
            else:
                room = people.get(row["id"])
                if room is None and shown:
                    break  # no room for its participants, or the user has left it a moment ago
                some, weight = room or ((), 0)
                answer = entry(row, user_id, some)
                size = row["size"] + weight + (weight if answer["peer"] else 0)
            if not page.add(size):
                break
            shown.append(answer)
            if more and row is rows[-1]:
                break  # invitations behind it belong between the chats that are not read yet
        return shown, more or len(shown) < len(found)

    async def get(self, user_id: UUID, chat_id: UUID) -> dict[str, Any]:
        """One of the user's chats, as in the list, with all its participants, or as many as one page has room for,
        which are null in a channel, and those who are ``invited``, if any. Or an invitation that the user has not
        answered."""
        row = await listing.entry(self._db, user_id, chat_id)
        if row is None:
            asked = await invitations.entry(self._db, user_id, chat_id)
            if asked is None:
                raise NotFound(NO_CHAT)
            return request(dict(asked))
        governs = row["role"] in ("owner", "admin")
        if row["type"] == "channel":
            shown = {**entry(dict(row), user_id, ()), "participants": None}
        else:
            people, _ = await participants.listed(self._db, user_id, chat_id, MOST["group"])
            shown = entry(dict(row), user_id, people)
        if row["type"] in ("group", "cloud") or (row["type"] == "channel" and governs):
            invited = await invitations.invited(self._db, chat_id)
            return {**shown, "invited": [dict(person) for person in invited]} if invited else shown
        return shown

    # Making, changing, ending -----------------------------------------------------------------------------------------

    async def create(self, user_id: UUID, request: shapes.NewChat) -> tuple[dict[str, Any], bool]:
        """A new chat, and True; or the direct chat that the two have already. Raises InvalidRequest, Forbidden."""
        others = await self._others(user_id, request)
        file_id = request.avatar_url and self._avatars.check(request.avatar_url)
        new = chats.NewChat(request.type, request.title, request.avatar_url, request.settings or {}, others)
        async with self._db.transaction():
            found = await chats.create(self._changes, user_id, new)
            if found is None:
                raise Forbidden("You have blocked this user. Unblock them first.")
            chat_id, is_new = found
            if is_new and file_id:
                await self._give(file_id, user_id, chat_id)
        if not is_new and await views.reopen(self._db, user_id, chat_id):
            self._hub.send(user_id, chat_changed(chat_id))
        return await self.get(user_id, chat_id), is_new

    async def _give(self, file_id: UUID, user_id: UUID, chat_id: UUID) -> None:
        """Let a file be the avatar of a chat, for its participants to read. Raises InvalidRequest."""
        if not await files.give_to_chat(self._db, file_id, user_id, chat_id):
            raise avatar_fault("names no complete file of yours, or one of another chat")

    async def _others(self, user_id: UUID, request: shapes.NewChat) -> Sequence[UUID]:
        """The participants that a new chat names, without its owner."""
        names = [name.lower() for name in request.participants]
        found = await participants.named(self._db, names)
        faults = [Fault(f"participants[{n}]", "no such user") for n, name in enumerate(names) if name not in found]
        others = list(dict.fromkeys(found[name] for name in names if name in found))
        if request.type in ("direct", "secret"):
            if not faults and (len(others) != 1 or others[0] == user_id):
                faults.append(Fault("participants", "exactly one other"))
        else:
            others = [other for other in others if other != user_id]
        if faults:
            raise InvalidRequest("Some fields are not valid.", details=faults)
        return others

    async def change(self, user_id: UUID, chat_id: UUID, request: shapes.ChangeChat) -> dict[str, Any]:
        """Set the fields that were sent; null clears. Raises NotFound, Forbidden."""
        changes = {name: getattr(request, name) for name in request.model_fields_set & request.columns}
        if "settings" in changes:
            changes["settings"] = changes["settings"] or {}
        avatar = changes.get("avatar_url")
        file_id = avatar and self._avatars.check(avatar)
        async with locked(self._changes, user_id, chat_id) as change:
            if not change.two:
                at_least(change, "admin")
            elif not change.may_write:
                raise Forbidden("You may only read here.")
            if file_id:
                await self._give(file_id, user_id, chat_id)
            if changes:
                await chats.update(change, changes)
        return await self.get(user_id, chat_id)

    async def view(self, user_id: UUID, chat_id: UUID, request: shapes.ChangeView) -> dict[str, Any]:
        """Set how the user sees a chat: the fields that were sent. Raises NotFound."""
        fields = {name: getattr(request, name) for name in request.model_fields_set & request.columns}
        if fields:
            if not await views.change(self._db, user_id, chat_id, fields):
                raise NotFound(NO_CHAT)
            self._hub.send(user_id, chat_changed(chat_id))
        return await self.get(user_id, chat_id)

    async def delete(self, user_id: UUID, chat_id: UUID) -> None:
        """End the chat for everybody, by its owner, and erase its messages; a direct chat goes for the user alone.
        Raises NotFound, Forbidden."""
        async with locked(self._changes, user_id, chat_id) as change:
            if change.type != "direct":
                at_least(change, "owner")
                await chats.end(change)
            else:
                await views.delete(change)
                if change.participant_count == 1:  # the other one has deleted their account
                    await participants.end_if_empty(change)
        if change.type == "direct":
            self._hub.send(user_id, chat_changed(chat_id))


def entry(row: Mapping[str, Any], user_id: UUID, people: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A chat as its participant sees it in the list."""
    two = row["type"] in ("direct", "secret")
    peer = next((person for person in people if two and person["user_id"] != user_id), None)
    return {
        **{
            name: row[name]
            for name in (
                *("id", "type", "title", "avatar_url", "created_by", "settings", "created_at", "updated_at", "role"),
                *("participant_count", "last_seq", "read_seq", "delivered_seq", "unread_count"),
                *("hidden", "archived", "muted_until", "marked_unread"),
            )
        },
        "participants": people,
        "peer": peer and {name: peer[name] for name in ("user_id", "public_id", "display_name", "avatar_url")},
        "last_message": row["message_id"] and _newest(row),
    }


def request(row: Mapping[str, Any]) -> dict[str, Any]:
    """An invitation that the user has not answered, in the form of a chat: what it is, and nothing of what happens
    there."""
    names = ("id", "type", "title", "avatar_url", "created_by", "created_at", "updated_at", "role", "participant_count")
    inviter = ("user_id", "inviter_id"), ("public_id", "public_id"), ("display_name", "display_name")
    by = {name: row[column] for name, column in (*inviter, ("avatar_url", "inviter_avatar"))}
    return {
        **{name: row[name] for name in names},
        "settings": {},
        "request": True,
        "invited_by": by if row["inviter_id"] else None,
        **dict.fromkeys(("last_seq", "read_seq", "delivered_seq"), row["last_seq"]),
        **dict.fromkeys(("hidden", "archived", "marked_unread"), False),
        **dict.fromkeys(("muted_until", "peer", "last_message")),
        "unread_count": 0,
        "participants": [],
    }


def _newest(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["message_id"],
        "chat_id": row["id"],
        **{
            name: row[name]
            for name in (
                *("seq", "sender_id", "client_id", "encrypted_payload", "message_type", "metadata", "reply_to"),
                *("reply_to_seq", "forwarded_from", "reactions"),
            )
        },
        **({} if row["reaction_counts"] is None else {"reaction_counts": row["reaction_counts"]}),
        "created_at": row["sent_at"],
        "edited_at": row["edited_at"],
        "expires_at": row["expires_at"],
    }
