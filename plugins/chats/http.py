"""The endpoints of ``/chats``, but for messages."""

from __future__ import annotations

from uuid import UUID

from config.settings import Rate
from handlers.base import ApiHandler
from handlers.errors import Conflict, Forbidden, NotFound
from handlers.operations import Answer, operation
from handlers.pages import PAGED, reply_page
from plugins.chats import shapes
from plugins.chats.chats import Chats
from plugins.chats.invites import Invites


class ChatsHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate, people: Rate) -> None:
        self._chats, self._rate, self._people = chats, rate, people

    @operation({200: Answer(list[shapes.Chat], headers=PAGED)})
    async def get(self, query: shapes.ListQuery) -> None:
        """List one's chats, the last active first.

        Posting makes a chat active, and so does a change of the chat or of who takes part.
        """
        entries = await self._chats.entries(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "updated_at", "id")

    @operation(
        {201: shapes.ChatInFull, 200: Answer(shapes.ChatInFull, "The direct chat that the two have already.")},
        refuses=(Forbidden, NotFound),
        limits={"rate_limit_chats": "user", "rate_limit_participants": "user, of all whom they bring into chats"},
    )
    async def post(self, body: shapes.NewChat) -> None:
        """Make a chat.

        `direct` and `secret` are of two, and want exactly one participant; the others may do without. The server reads
        titles, avatars and settings: what it should not know goes into messages.
        """
        user = str(self.session.user_id)
        await self.limit("chats", self._rate, user)
        if body.participants:
            await self.application.limits.spend("participants", user, self._people, len(body.participants))
        chat, new = await self._chats.create(self.session.user_id, body)
        self.reply(chat, 201 if new else 200)


class ChatHandler(ApiHandler):
    def initialize(self, chats: Chats) -> None:
        self._chats = chats

    @operation({200: shapes.ChatInFull}, refuses=(NotFound,))
    async def get(self, chat_id: UUID) -> None:
        """Look at a chat in which one takes part."""
        self.reply(await self._chats.get(self.session.user_id, chat_id))

    @operation({200: shapes.ChatInFull}, refuses=(Forbidden, NotFound))
    async def put(self, chat_id: UUID, body: shapes.ChangeChat) -> None:
        """Change a chat: only the fields that are sent; null clears.

        By its owner and admins; in a chat of two by either.
        """
        self.reply(await self._chats.change(self.session.user_id, chat_id, body))

    @operation({204: None}, refuses=(Forbidden, NotFound))
    async def delete(self, chat_id: UUID) -> None:
        """End a chat for everybody, by its owner; all that was in it is erased."""
        await self._chats.delete(self.session.user_id, chat_id)
        self.reply_nothing()


class ParticipantsHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate) -> None:
        self._chats, self._rate = chats, rate

    @operation({200: Answer(list[shapes.Participant], headers=PAGED)}, refuses=(Forbidden, NotFound))
    async def get(self, chat_id: UUID, query: shapes.ParticipantsQuery) -> None:
        """List who takes part, who joined last first.

        In a channel by its owner and admins only.
        """
        people = await self._chats.participants(self.session.user_id, chat_id, query.limit + 1, query.place)
        reply_page(self, query, people, "joined_at", "user_id")

    @operation({201: shapes.Place}, refuses=(Forbidden, NotFound, Conflict), limits={"rate_limit_participants": "user"})
    async def post(self, chat_id: UUID, body: shapes.NewParticipant) -> None:
        """Bring somebody into a chat of many, by its owner and admins."""
        await self.limit("participants", self._rate, str(self.session.user_id))
        self.reply(await self._chats.add(self.session.user_id, chat_id, body), 201)


class ParticipantHandler(ApiHandler):
    def initialize(self, chats: Chats) -> None:
        self._chats = chats

    @operation({200: shapes.Place}, refuses=(Forbidden, NotFound, Conflict))
    async def put(self, chat_id: UUID, user_id: UUID, body: shapes.ChangeRole) -> None:
        """Give a participant another role, by the owner and admins, of who is below them.

        Only the owner makes admins. `owner` hands the chat over, and the giver becomes admin.
        """
        self.reply(await self._chats.set_role(self.session.user_id, chat_id, user_id, body.role))

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict))
    async def delete(self, chat_id: UUID, user_id: UUID) -> None:
        """Remove a participant, by the owner and admins, of who is below them; or leave, of oneself.

        The owner gives the chat away first, or deletes it.
        """
        await self._chats.remove(self.session.user_id, chat_id, user_id)
        self.reply_nothing()


class InvitesHandler(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    @operation({200: list[shapes.Invite]}, refuses=(Forbidden, NotFound, Conflict))
    async def get(self, chat_id: UUID) -> None:
        """List the invites of a chat of many, the latest first, by its owner and admins."""
        self.reply(await self._invites.entries(self.session.user_id, chat_id))

    @operation({201: shapes.InviteWithToken}, refuses=(Forbidden, NotFound, Conflict))
    async def post(self, chat_id: UUID, body: shapes.NewInvite) -> None:
        """Make an invite into a chat of many, by its owner and admins. Its token is shown this once."""
        self.reply(await self._invites.create(self.session.user_id, chat_id, body), 201)


class InviteHandler(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict))
    async def delete(self, chat_id: UUID, invite_id: UUID) -> None:
        """Withdraw an invite, by the owner and admins."""
        await self._invites.withdraw(self.session.user_id, chat_id, invite_id)
        self.reply_nothing()


class JoinHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate) -> None:
        self._chats, self._rate = chats, rate

    @operation({200: shapes.ChatInFull}, refuses=(NotFound, Conflict), limits={"rate_limit_join": "user"})
    async def post(self, body: shapes.Join) -> None:
        """Join a chat by an invite. Who is in already uses nothing up."""
        await self.limit("join", self._rate, str(self.session.user_id))
        self.reply(await self._chats.join(self.session.user_id, body.token))
