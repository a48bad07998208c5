"""Chats: list, create, change and delete them."""

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
from models.chats import chat_list, chats, invitations, participants, views
from models.chats.changes import ChatChanges
from models.database import Database
from models.paging import Page
from plugins.chats import shapes
from plugins.chats.rights import NO_CHAT, lock_as_participant, require_role

EntriesPage = tuple[list[dict[str, Any]], bool]  # entries, and True if there are more

# Participants of a chat, including the owner (contract section 7).
MAX_PARTICIPANTS = {"direct": 2, "secret": 2, "group": 1024, "cloud": 1024, "channel": 100_000}


class Chats:
    """What users do with chats. For users who are not in a chat it does not exist."""

    def __init__(self, db: Database, hub: Hub, changes: ChatChanges, avatars: AvatarHosts) -> None:
        self._db, self._hub, self._changes, self._avatars = db, hub, changes, avatars

    # Reading ----------------------------------------------------------------------------------------------------------

    async def entries(self, user_id: UUID, limit: int, before: PageCursor | None, *, hidden: bool) -> EntriesPage:
        """A page of the user's chats, or of those that they have hidden, the last active first, each with at most 8
        participants; and True if there are more. It includes the user's open invitations."""
        rows, more = await chat_list.entries(self._db, user_id, limit, before, hidden=hidden)
        people = await participants.first_participants(self._db, user_id, [row["id"] for row in rows])
        invited = [] if hidden else await invitations.entries(self._db, user_id, limit + 1, before)
        candidates = sorted([*rows, *map(dict, invited)], key=lambda row: (row["updated_at"], row["id"]), reverse=True)
        page, shown = Page(), list[dict[str, Any]]()
        for row in candidates:
            if len(shown) == limit:
                break
            if "inviter_id" in row:
                answer = invitation_entry(row)
                size = len(encode(answer))
            else:
                room = people.get(row["id"])
                if room is None and shown:
                    break  # no room for its participants, or the user has just left it
                some, weight = room or ((), 0)
                answer = entry(row, user_id, some)
                size = row["size"] + weight + (weight if answer["peer"] else 0)
            if not page.add(size):
                break
            shown.append(answer)
            if more and row is rows[-1]:
                break  # later invitations belong between the chats of the next page
        return shown, more or len(shown) < len(candidates)

    async def get(self, user_id: UUID, chat_id: UUID) -> dict[str, Any]:
        """One of the user's chats, as in the list, with all its participants, or as many as one page has room for; they
        are null in a channel. It includes ``invited`` users, if there are any. Or an open invitation of the user.
        Raises NotFound."""
        row = await chat_list.entry(self._db, user_id, chat_id)
        if row is None:
            invitation = await invitations.entry(self._db, user_id, chat_id)
            if invitation is None:
                raise NotFound(NO_CHAT)
            return invitation_entry(dict(invitation))
        governs = row["role"] in ("owner", "admin")
        if row["type"] == "channel":
            shown = {**entry(dict(row), user_id, ()), "participants": None}
        else:
            people, _ = await participants.list_page(self._db, user_id, chat_id, MAX_PARTICIPANTS["group"])
            shown = entry(dict(row), user_id, people)
        if row["type"] in ("group", "cloud") or (row["type"] == "channel" and governs):
            invited = await invitations.list_invited(self._db, chat_id)
            return {**shown, "invited": [dict(person) for person in invited]} if invited else shown
        return shown

    # Changing -----------------------------------------------------------------------------------------------------

    async def create(self, user_id: UUID, request: shapes.NewChat) -> tuple[dict[str, Any], bool]:
        """Create a chat. Returns it and True, or the existing direct chat of the two and False. Raises InvalidRequest,
        Forbidden."""
        others = await self._resolve_participants(user_id, request)
        file_id = request.avatar_url and self._avatars.check(request.avatar_url)
        new = chats.NewChat(request.type, request.title, request.avatar_url, request.settings or {}, others)
        async with self._db.transaction():
            created = await chats.create(self._changes, user_id, new)
            if created is None:
                raise Forbidden("You have blocked this user. Unblock them first.")
            chat_id, is_new = created
            if is_new and file_id:
                await self._share_avatar(file_id, user_id, chat_id)
        if not is_new and await views.reopen(self._db, user_id, chat_id):
            self._hub.send(user_id, chat_changed(chat_id))
        return await self.get(user_id, chat_id), is_new

    async def _share_avatar(self, file_id: UUID, user_id: UUID, chat_id: UUID) -> None:
        """Share a file with the participants of a chat, as its avatar. Raises InvalidRequest."""
        if not await files.give_to_chat(self._db, file_id, user_id, chat_id):
            raise avatar_fault("names no complete file of yours, or one of another chat")

    async def _resolve_participants(self, user_id: UUID, request: shapes.NewChat) -> Sequence[UUID]:
        """The users that the request names as participants, without the owner. Raises InvalidRequest."""
        names = [name.lower() for name in request.participants]
        found = await participants.find_by_public_id(self._db, names)
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
        """Change the fields of a chat that were sent; null clears. Raises NotFound, Forbidden, InvalidRequest."""
        changes = {name: getattr(request, name) for name in request.model_fields_set & request.columns}
        if "settings" in changes:
            changes["settings"] = changes["settings"] or {}
        avatar = changes.get("avatar_url")
        file_id = avatar and self._avatars.check(avatar)
        async with lock_as_participant(self._changes, user_id, chat_id) as change:
            if not change.is_pair:
                require_role(change, "admin")
            elif not change.may_write:
                raise Forbidden("You can only read in this chat.")
            if file_id:
                await self._share_avatar(file_id, user_id, chat_id)
            if changes:
                await chats.update(change, changes)
        return await self.get(user_id, chat_id)

    async def view(self, user_id: UUID, chat_id: UUID, request: shapes.ChangeView) -> dict[str, Any]:
        """Change the user's own settings of a chat: the fields that were sent. Raises NotFound."""
        fields = {name: getattr(request, name) for name in request.model_fields_set & request.columns}
        if fields:
            if not await views.update(self._db, user_id, chat_id, fields):
                raise NotFound(NO_CHAT)
            self._hub.send(user_id, chat_changed(chat_id))
        return await self.get(user_id, chat_id)

    async def delete(self, user_id: UUID, chat_id: UUID) -> None:
        """Delete a chat for everybody, as its owner, and erase its messages; a direct chat only for the user. Raises
        NotFound, Forbidden."""
        async with lock_as_participant(self._changes, user_id, chat_id) as change:
            if change.type != "direct":
                require_role(change, "owner")
                await chats.end(change)
            else:
                await views.delete(change)
                if change.participant_count == 1:  # the other user has deleted their account
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
        "last_message": row["message_id"] and _last_message(row),
    }


def invitation_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """An open invitation of the user, in the form of a chat: its title and the inviter, without its messages."""
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


def _last_message(row: Mapping[str, Any]) -> dict[str, Any]:
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
