"""Chats: making, finding, changing and ending them, and what each role may do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from handlers.delivery import Delivery
from handlers.errors import Conflict, Fault, Forbidden, InvalidRequest, NotFound
from handlers.pages import Place
from models import chats, listing, participants
from models.changes import Change, changing
from models.database import Database, Row
from plugins.chats import shapes

# Contract section 7: how many may take part, the owner included.
MOST = {"direct": 2, "secret": 2, "group": 1024, "cloud": 1024, "channel": 100_000}
RANK = {"owner": 3, "admin": 2, "member": 1, "restricted": 0}


class Chats:
    """What users do with chats. Whoever takes no part in one is told that it does not exist."""

    def __init__(self, db: Database, delivery: Delivery) -> None:
        self._db, self._delivery = db, delivery

    # Looking ----------------------------------------------------------------------------------------------------------

    async def entries(self, user_id: UUID, limit: int, before: Place | None) -> list[dict[str, Any]]:
        """The user's chats, the last active first."""
        return [entry(row) for row in await listing.entries(self._db, user_id, limit, before)]

    async def get(self, user_id: UUID, chat_id: UUID) -> dict[str, Any]:
        """One of the user's chats, as in the list, with its participants; those of a channel are null."""
        row = await listing.entry(self._db, user_id, chat_id)
        if row is None:
            raise NotFound("There is no such chat.")
        people = None
        if row["type"] != "channel":
            people = [dict(p) for p in await participants.listed(self._db, chat_id, MOST["group"])]
        return {**entry(row), "participants": people}

    async def participants(
        self, user_id: UUID, chat_id: UUID, limit: int, before: Place | None
    ) -> list[dict[str, Any]]:
        """Who takes part, the last to join first. In a channel only its owner and admins see its readers."""
        place = await listing.place_of(self._db, user_id, chat_id)
        if place is None:
            raise NotFound("There is no such chat.")
        if place["type"] == "channel" and RANK[place["role"]] < RANK["admin"]:
            raise Forbidden("Only the owner and admins see who reads a channel.")
        return [dict(row) for row in await participants.listed(self._db, chat_id, limit, before)]

    # Making, changing, ending -----------------------------------------------------------------------------------------

    async def create(self, user_id: UUID, request: shapes.NewChat) -> tuple[dict[str, Any], bool]:
        """A new chat, and True; or the direct chat that the two have already. Raises InvalidRequest, Forbidden."""
        others = await self._others(user_id, request)
        new = chats.NewChat(request.type, request.title, request.avatar_url, request.settings or {}, others)
        chat_id, access, event = await chats.create(self._db, user_id, new)
        if event is not None:
            await self._delivery.announce(chat_id, access, [event.frame])
        return await self.get(user_id, chat_id), event is not None

    async def _others(self, user_id: UUID, request: shapes.NewChat) -> Sequence[UUID]:
        """The participants that a new chat names, without its owner."""
        names = [name.lower() for name in request.participants]
        found = await participants.named(self._db, user_id, names)
        faults = [Fault(f"participants[{n}]", "no such user") for n, name in enumerate(names) if name not in found]
        others = list(dict.fromkeys(found[name]["id"] for name in names if name in found))
        if request.type in ("direct", "secret"):
            if not faults and (len(others) != 1 or others[0] == user_id):
                faults.append(Fault("participants", "exactly one other"))
        else:
            others = [other for other in others if other != user_id]
        if faults:
            raise InvalidRequest("Some fields are not valid.", details=faults)
        if request.type != "direct" and any(found[name]["blocks"] for name in names):
            # In a direct chat they find out when they post; so do those who were blocked afterwards.
            raise Forbidden("One of them does not want to be in a chat with you.")
        return others

    async def change(self, user_id: UUID, chat_id: UUID, request: shapes.ChangeChat) -> dict[str, Any]:
        """Set the fields that were sent; null clears. Raises NotFound, Forbidden."""
        changes = {name: getattr(request, name) for name in request.model_fields_set & request.columns}
        if "settings" in changes:
            changes["settings"] = changes["settings"] or {}
        async with self._changing(user_id, chat_id) as change:
            if not change.two:
                self._at_least(change, "admin")
            elif not change.may_write:
                raise Forbidden("You may only read here.")
            if changes:
                await chats.update(change, changes)
                event = await change.append("chat_updated", user_id=user_id, fields={})
                told = {"chat": await chats.thread(self._db, chat_id)}
                change.events[-1] = event._replace(fields=told)
        await self._tell(change)
        return await self.get(user_id, chat_id)

    async def delete(self, user_id: UUID, chat_id: UUID) -> None:
        """End the chat for everybody; its messages are erased. Raises NotFound, Forbidden."""
        async with self._changing(user_id, chat_id) as change:
            self._at_least(change, "owner")
            event = await change.append("chat_deleted", user_id=user_id, fields={})
            change.events[-1] = event._replace(fields={"chat": await chats.thread(self._db, chat_id)})
            await chats.delete(change)
        await self._tell(change)

    # Participants -----------------------------------------------------------------------------------------------------

    async def add(self, user_id: UUID, chat_id: UUID, request: shapes.NewParticipant) -> dict[str, Any]:
        """Let somebody in. Raises NotFound, Forbidden, Conflict (in already, full, a chat of two), InvalidRequest."""
        found = await participants.named(self._db, user_id, [request.public_id])
        other = found.get(request.public_id.lower())
        async with self._changing(user_id, chat_id) as change:
            self._many(change)
            self._at_least(change, "owner" if request.role == "admin" else "admin")
            if other is None:
                raise InvalidRequest("Some fields are not valid.", details=[Fault("public_id", "no such user")])
            if other["blocks"]:
                raise Forbidden("They do not want to be in a chat with you.")
            await self._let_in(change, other["id"], request.role)
        await self._tell(change)
        return {"chat_id": chat_id, "user_id": other["id"], "role": request.role}

    async def set_role(self, user_id: UUID, chat_id: UUID, other: UUID, role: str) -> dict[str, Any]:
        """Change a role. Only the owner makes admins and owners; nobody changes who is not below them. Raises NotFound,
        Forbidden, Conflict."""
        async with self._changing(user_id, chat_id) as change:
            self._many(change)
            self._at_least(change, "admin")
            present = await participants.role_of(change, other)
            if present is None:
                raise NotFound("They take no part in this chat.")
            if present != role:
                self._above(change, present)
                if RANK[role] >= RANK["admin"]:
                    self._at_least(change, "owner")
                await participants.set_role(change, other, role)
        await self._tell(change)
        return {"chat_id": chat_id, "user_id": other, "role": role}

    async def remove(self, user_id: UUID, chat_id: UUID, other: UUID) -> None:
        """Let a participant go, or leave oneself. Raises NotFound, Forbidden, Conflict."""
        async with self._changing(user_id, chat_id) as change:
            self._many(change)
            if other == user_id:
                if change.role == "owner":
                    raise Conflict("The owner can't leave; give the chat to somebody first, or delete it.")
            else:
                self._at_least(change, "admin")
                present = await participants.role_of(change, other)
                if present is None:
                    raise NotFound("They take no part in this chat.")
                self._above(change, present)
            await participants.remove(change, other)
        await self._tell(change, also=other)

    async def join(self, user_id: UUID, token: str) -> dict[str, Any]:
        """Join by an invite; who is in already uses nothing up. Raises NotFound, Conflict when the chat is full."""
        chat_id = await participants.invited_to(self._db, token)
        gone = NotFound("This invite is not good any more.")
        if chat_id is None:
            raise gone
        async with changing(self._db, chat_id, user_id) as change:
            if change is None:
                raise gone
            if change.role is None:
                if not await participants.use(change, token):
                    raise gone
                await self._let_in(change, user_id, "member")
        await self._tell(change)
        return await self.get(user_id, chat_id)

    async def _let_in(self, change: Change, user_id: UUID, role: str) -> None:
        most = MOST[change.type]
        if change.participant_count >= most:
            raise Conflict(f"A {change.type} has at most {most} participants.")
        if not await participants.add(change, user_id, role):
            raise Conflict("They take part already.")

    # What is asked before ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _changing(self, user_id: UUID, chat_id: UUID) -> AsyncIterator[Change]:
        """The chat, locked, of which the user is a participant. Raises NotFound."""
        async with changing(self._db, chat_id, user_id) as change:
            if change is None or change.role is None:
                raise NotFound("There is no such chat.")
            yield change

    @asynccontextmanager
    async def governing(self, user_id: UUID, chat_id: UUID) -> AsyncIterator[Change]:
        """The chat, locked, of many, of which the user is owner or admin. Raises NotFound, Conflict, Forbidden."""
        async with self._changing(user_id, chat_id) as change:
            self._many(change)
            self._at_least(change, "admin")
            yield change

    @staticmethod
    def _at_least(change: Change, role: str) -> None:
        assert change.role is not None
        if RANK[change.role] < RANK[role]:
            raise Forbidden(f"Only {'the owner' if role == 'owner' else 'the owner and admins'} may do this.")

    @staticmethod
    def _above(change: Change, other: str) -> None:
        assert change.role is not None
        if RANK[change.role] <= RANK[other]:
            raise Forbidden("They are not below you in this chat.")

    @staticmethod
    def _many(change: Change) -> None:
        if change.two:
            raise Conflict(f"The participants of a {change.type} chat don't change.")

    async def _tell(self, change: Change, also: UUID | None = None) -> None:
        await self._delivery.announce(
            change.chat_id, change.access, [event.frame for event in change.events], also=also
        )


def entry(row: Row) -> dict[str, Any]:
    """A chat as its participant sees it in the list."""
    return {
        **{
            name: row[name]
            for name in (
                *("id", "type", "title", "avatar_url", "created_by", "settings", "created_at", "updated_at", "role"),
                *("participant_count", "last_seq", "read_seq", "delivered_seq", "unread_count"),
            )
        },
        "peer": row["peer_id"]
        and {
            "user_id": row["peer_id"],
            "public_id": row["peer_public_id"],
            "display_name": row["peer_name"],
            "avatar_url": row["peer_avatar"],
        },
        "last_message": row["message_id"] and _newest(row),
    }


def _newest(row: Row) -> dict[str, Any]:
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
