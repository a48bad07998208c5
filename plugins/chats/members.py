"""Members: adding, joining, roles, leaving, removing and banning, in chats of many."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from handlers.http.pages import PageCursor
from handlers.wire.errors import Conflict, Fault, Forbidden, InvalidRequest, NotFound
from models.chats import chat_list, invitations, invites, participants, sanctions
from models.chats.changes import ChatChanges
from models.chats.events import Change
from models.database import Database, Row
from plugins.chats import shapes
from plugins.chats.chats import MAX_PARTICIPANTS, EntriesPage
from plugins.chats.invites import NOT_VALID
from plugins.chats.rights import (
    NO_CHAT,
    RANK,
    lock_as_admin,
    lock_as_participant,
    reject_pair,
    require_higher_role,
    require_role,
)

MAX_BANS = 10_000  # of a chat: about 1 MB


class Members:
    """Who is in a chat of many, and in which role. To who is not in a chat it does not exist."""

    def __init__(self, db: Database, changes: ChatChanges) -> None:
        self._db, self._changes = db, changes

    async def entries(self, user_id: UUID, chat_id: UUID, limit: int, before: PageCursor | None) -> EntriesPage:
        """A page of the participants, the last to join first, and whether there are more. In a channel only its owner
        and admins see its readers."""
        place = await chat_list.membership_of(self._db, user_id, chat_id)
        if place is None:
            raise NotFound(NO_CHAT)
        if place["type"] == "channel" and RANK[place["role"]] < RANK["admin"]:
            raise Forbidden("Only the owner and admins see who reads a channel.")
        return await participants.list_page(self._db, user_id, chat_id, limit, before)

    async def add(self, user_id: UUID, chat_id: UUID, request: shapes.NewParticipant) -> dict[str, Any]:
        """Let somebody in, or invite them. Raises NotFound, Forbidden, Conflict (in already, invited already, banned,
        full, a chat of two), InvalidRequest."""
        other = (await participants.find_by_public_id(self._db, [request.public_id])).get(request.public_id.lower())
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            if request.role == "admin":
                require_role(change, "owner")
            if other is None:
                raise InvalidRequest("Some fields are not valid.", details=[Fault("public_id", "no such user")])
            if await participants.role_of(change, other) is not None:
                raise Conflict("This user is in the chat already.")
            sanction = await sanctions.get(change, other)
            if sanction is not None and sanction["banned_at"] is not None:
                raise Conflict("This user is banned from the chat. Lift the ban first.")
            invite = await invitations.find_invite_only(self._db, user_id, [other], [], chat_id)
            if invite:
                role = await self._invite(change, other, request.role, sanction, unseen=invite[other])
            else:
                role = await self._let_in(change, other, request.role, sanction, accepted=False)
        return {"chat_id": chat_id, "user_id": other, "role": role, "invited": bool(invite)}

    async def _invite(self, change: Change, user_id: UUID, role: str, sanction: Row | None, *, unseen: bool) -> str:
        """Invite a user, and say in which role they would come."""
        await self._check_room(change, user_id)
        if await invitations.count_open(change, user_id) >= invitations.MAX_PER_CHAT:
            raise Conflict(f"A chat has at most {invitations.MAX_PER_CHAT:,} invitations that are not answered.")
        if not await invitations.invite(change, user_id, role, unseen=unseen):
            raise Conflict("This user is invited already.")
        return sanctions.role_on_return(sanction, role)

    async def join(self, user_id: UUID, token: str) -> UUID:
        """Join by an invite, and say which chat; who is in already uses nothing up. Raises NotFound, the same for every
        reason why the invite doesn't let this user in, and Conflict when the chat is full."""
        chat_id = await invites.chat_of(self._db, token)
        gone = NotFound(NOT_VALID)
        if chat_id is None:
            raise gone
        async with self._changes.lock(chat_id, user_id) as change:
            if change is None:
                raise gone
            if change.role is None:
                if not await invites.use(change, token):
                    raise gone
                sanction = await sanctions.get(change, user_id)
                if not await self._reveal(change, user_id):
                    await self._let_in(change, user_id, "member", sanction, accepted=True)
        return chat_id

    async def _reveal(self, change: Change, user_id: UUID) -> bool:
        """Show the chat again to a participant who does not see it; False for all others."""
        if not await participants.is_concealed(change, user_id):
            return False
        await invitations.delete(change, user_id)
        await invitations.reveal(change, user_id)
        change.notices[user_id] = None
        return True

    async def _check_room(self, change: Change, user_id: UUID) -> None:
        """Raises Conflict when the chat is full; who is invited counts."""
        most = MAX_PARTICIPANTS[change.type]
        if change.participant_count + await invitations.count_open(change, user_id) >= most:
            raise Conflict(f"A {change.type} has at most {most} participants.")

    async def _let_in(self, change: Change, user_id: UUID, role: str, sanction: Row | None, *, accepted: bool) -> str:
        """Add a user, and say in which role they are."""
        await self._check_room(change, user_id)
        role = sanctions.role_on_return(sanction, role)
        if not await participants.add(change, user_id, role, accepted=accepted):
            raise Conflict("This user is in the chat already.")
        return role

    async def set_role(self, user_id: UUID, chat_id: UUID, other: UUID, role: str) -> dict[str, Any]:
        """Change a role. Only the owner makes admins and owners; nobody changes who is not below them. Raises NotFound,
        Forbidden, Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            present = await participants.role_of(change, other)
            if present is None:
                raise NotFound("This user is not in the chat.")
            if present != role:
                require_higher_role(change, present)
                if RANK[role] >= RANK["admin"]:
                    require_role(change, "owner")
                await participants.set_role(change, other, role)
        return {"chat_id": chat_id, "user_id": other, "role": role}

    async def leave(self, user_id: UUID, chat_id: UUID) -> None:
        """Leave a chat; the last one ends it. Raises NotFound, Conflict."""
        async with lock_as_participant(self._changes, user_id, chat_id) as change:
            reject_pair(change)
            if change.role == "owner":
                raise Conflict("The owner can't leave; give the chat to somebody first, or delete it.")
            change.notices[user_id] = await participants.remove(change, user_id)
            await participants.end_if_empty(change)

    async def remove(self, user_id: UUID, chat_id: UUID, other: UUID, *, ban: bool) -> None:
        """Remove a participant whose role is below the user's, or withdraw an invitation. With ``ban`` nothing lets the
        other in again, and also users who are not in the chat can be banned. Raises NotFound, Forbidden, Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            if other == user_id:
                raise Conflict("You can't ban yourself.")
            present = await participants.role_of(change, other)
            if present is not None:
                require_higher_role(change, present)
                change.notices[other] = await participants.remove(change, other)
            elif not await invitations.withdraw(change, other):
                if not ban:
                    raise NotFound("This user is not in the chat.")
                if not await participants.exists(change, other):
                    raise NotFound("There is no such user.")
            if ban and not await sanctions.ban(change, other, MAX_BANS):
                raise Conflict(f"A chat has at most {MAX_BANS:,} bans.")

    async def bans(self, user_id: UUID, chat_id: UUID, limit: int, before: PageCursor | None) -> EntriesPage:
        """A page of who is banned, the latest first, and whether there are more. Raises NotFound, Forbidden,
        Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id):
            return await sanctions.bans(self._db, chat_id, limit, before)

    async def unban(self, user_id: UUID, chat_id: UUID, other: UUID) -> None:
        """Lift a ban. Raises NotFound, Forbidden, Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            if not await sanctions.unban(change, other):
                raise NotFound("This user is not banned.")
