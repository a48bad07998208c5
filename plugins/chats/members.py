"""Members: add, invite, remove and ban users in chats of many, change roles, join and leave."""

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

MAX_BANS = 10_000  # of a chat; about 1 MB


class Members:
    """What users do with the participants of chats of many. For users who are not in a chat it does not exist."""

    def __init__(self, db: Database, changes: ChatChanges) -> None:
        self._db, self._changes = db, changes

    async def entries(self, user_id: UUID, chat_id: UUID, limit: int, before: PageCursor | None) -> EntriesPage:
        """A page of the participants, the last to join first, and True if there are more. In a channel only its owner
        and admins see them. Raises NotFound, Forbidden."""
        place = await chat_list.membership_of(self._db, user_id, chat_id)
        if place is None:
            raise NotFound(NO_CHAT)
        if place["type"] == "channel" and RANK[place["role"]] < RANK["admin"]:
            raise Forbidden("Only the owner and admins can see the readers of a channel.")
        return await participants.list_page(self._db, user_id, chat_id, limit, before)

    async def add(self, user_id: UUID, chat_id: UUID, request: shapes.NewParticipant) -> dict[str, Any]:
        """Add or invite a user. Raises NotFound, Forbidden, Conflict (in the chat already, already invited, banned,
        chat full, a chat of two), InvalidRequest."""
        other = (await participants.find_by_public_id(self._db, [request.public_id])).get(request.public_id.lower())
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            if request.role == "admin":
                require_role(change, "owner")
            if other is None:
                raise InvalidRequest("Some fields are not valid.", details=[Fault("public_id", "no such user")])
            if await participants.role_of(change, other) is not None:
                raise Conflict("This user is already in the chat.")
            sanction = await sanctions.get(change, other)
            if sanction is not None and sanction["banned_at"] is not None:
                raise Conflict("This user is banned from the chat. Lift the ban first.")
            invite_only = await invitations.find_invite_only(self._db, user_id, [other], [], chat_id)
            if invite_only:
                role = await self._invite(change, other, request.role, sanction, unseen=invite_only[other])
            else:
                role = await self._let_in(change, other, request.role, sanction, accepted=False)
        return {"chat_id": chat_id, "user_id": other, "role": role, "invited": bool(invite_only)}

    async def _invite(self, change: Change, user_id: UUID, role: str, sanction: Row | None, *, unseen: bool) -> str:
        """Invite a user. Returns the role that they would have."""
        await self._check_room(change, user_id)
        if await invitations.count_open(change, user_id) >= invitations.MAX_PER_CHAT:
            raise Conflict(f"A chat can have at most {invitations.MAX_PER_CHAT:,} open invitations.")
        if not await invitations.invite(change, user_id, role, unseen=unseen):
            raise Conflict("This user is already invited.")
        return sanctions.role_on_return(sanction, role)

    async def join(self, user_id: UUID, token: str) -> UUID:
        """Join with an invite. Returns the chat. A participant who joins again does not use the invite up. Raises
        NotFound, the same for every reason why the invite does not admit the user, and Conflict if the chat is full."""
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
        """Reveal the chat to a participant from whom it is concealed. Returns False for all other users."""
        if not await participants.is_concealed(change, user_id):
            return False
        await invitations.delete(change, user_id)
        await invitations.reveal(change, user_id)
        change.notices[user_id] = None
        return True

    async def _check_room(self, change: Change, user_id: UUID) -> None:
        """Raises Conflict if the chat is full. Invited users count."""
        most = MAX_PARTICIPANTS[change.type]
        if change.participant_count + await invitations.count_open(change, user_id) >= most:
            raise Conflict(f"A {change.type} can have at most {most} participants.")

    async def _let_in(self, change: Change, user_id: UUID, role: str, sanction: Row | None, *, accepted: bool) -> str:
        """Add a user. Returns their role."""
        await self._check_room(change, user_id)
        role = sanctions.role_on_return(sanction, role)
        if not await participants.add(change, user_id, role, accepted=accepted):
            raise Conflict("This user is already in the chat.")
        return role

    async def set_role(self, user_id: UUID, chat_id: UUID, other: UUID, role: str) -> dict[str, Any]:
        """Change the role of a participant whose role is below the user's. Only the owner makes admins and owners.
        Raises NotFound, Forbidden, Conflict."""
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
        """Leave a chat; the last participant who leaves ends it. Raises NotFound, Conflict."""
        async with lock_as_participant(self._changes, user_id, chat_id) as change:
            reject_pair(change)
            if change.role == "owner":
                raise Conflict("The owner can't leave. Hand the chat over to another participant first, or delete it.")
            change.notices[user_id] = await participants.remove(change, user_id)
            await participants.end_if_empty(change)

    async def remove(self, user_id: UUID, chat_id: UUID, other: UUID, *, ban: bool) -> None:
        """Remove a participant whose role is below the user's, or withdraw an invitation. With ``ban`` also ban the
        other user, who need not be in the chat. Raises NotFound, Forbidden, Conflict."""
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
                raise Conflict(f"A chat can have at most {MAX_BANS:,} bans.")

    async def bans(self, user_id: UUID, chat_id: UUID, limit: int, before: PageCursor | None) -> EntriesPage:
        """A page of the banned users, the latest ban first, and True if there are more. Raises NotFound, Forbidden,
        Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id):
            return await sanctions.bans(self._db, chat_id, limit, before)

    async def unban(self, user_id: UUID, chat_id: UUID, other: UUID) -> None:
        """Lift a ban. Raises NotFound, Forbidden, Conflict."""
        async with lock_as_admin(self._changes, user_id, chat_id) as change:
            if not await sanctions.unban(change, other):
                raise NotFound("This user is not banned.")
