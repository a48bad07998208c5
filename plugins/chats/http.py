"""The endpoints of ``/chats``, but for messages."""

from __future__ import annotations

from uuid import UUID

from config.settings import Rate
from handlers.base import ApiHandler
from handlers.pages import reply_page
from plugins.chats import shapes
from plugins.chats.chats import Chats
from plugins.chats.invites import Invites


class Listing(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate, people: Rate) -> None:
        self._chats, self._rate, self._people = chats, rate, people

    async def get(self) -> None:
        """200 list of Chat, the last active first, with a Link to the next page; 400."""
        query = self.query(shapes.ListQuery)
        entries = await self._chats.entries(self.session.user_id, query.limit + 1, query.place)
        reply_page(self, query, entries, "updated_at", "id")

    async def post(self) -> None:
        """201 Chat; 200 for the direct chat that the two have; 400, 403, 429."""
        request = self.body(shapes.NewChat)
        user = str(self.session.user_id)
        await self.limit("chats", self._rate, user)
        if request.participants:
            await self.application.limits.spend("participants", user, self._people, len(request.participants))
        chat, new = await self._chats.create(self.session.user_id, request)
        self.reply(chat, 201 if new else 200)


class One(ApiHandler):
    def initialize(self, chats: Chats) -> None:
        self._chats = chats

    async def get(self, chat_id: str) -> None:
        """200 Chat with its participants; 404."""
        self.reply(await self._chats.get(self.session.user_id, UUID(chat_id)))

    async def put(self, chat_id: str) -> None:
        """200 Chat after the change; 400, 403, 404."""
        request = self.body(shapes.ChangeChat)
        self.reply(await self._chats.change(self.session.user_id, UUID(chat_id), request))

    async def delete(self, chat_id: str) -> None:
        """204, by its owner; 403, 404."""
        await self._chats.delete(self.session.user_id, UUID(chat_id))
        self.reply_nothing()


class Participants(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate) -> None:
        self._chats, self._rate = chats, rate

    async def get(self, chat_id: str) -> None:
        """200 list of participants, with a Link to the next page; 400, 403, 404."""
        query = self.query(shapes.ParticipantsQuery)
        people = await self._chats.participants(self.session.user_id, UUID(chat_id), query.limit + 1, query.place)
        reply_page(self, query, people, "joined_at", "user_id")

    async def post(self, chat_id: str) -> None:
        """201 the new participant; 400, 403, 404, 409, 429."""
        request = self.body(shapes.NewParticipant)
        await self.limit("participants", self._rate, str(self.session.user_id))
        self.reply(await self._chats.add(self.session.user_id, UUID(chat_id), request), 201)


class Participant(ApiHandler):
    def initialize(self, chats: Chats) -> None:
        self._chats = chats

    async def put(self, chat_id: str, user_id: str) -> None:
        """200 the participant with the role; 400, 403, 404, 409."""
        role = self.body(shapes.ChangeRole).role
        self.reply(await self._chats.set_role(self.session.user_id, UUID(chat_id), UUID(user_id), role))

    async def delete(self, chat_id: str, user_id: str) -> None:
        """204, also for leaving; 403, 404, 409."""
        await self._chats.remove(self.session.user_id, UUID(chat_id), UUID(user_id))
        self.reply_nothing()


class InviteList(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    async def get(self, chat_id: str) -> None:
        """200 list of invites, without their tokens; 403, 404, 409."""
        self.reply(await self._invites.entries(self.session.user_id, UUID(chat_id)))

    async def post(self, chat_id: str) -> None:
        """201 the invite with its token; 400, 403, 404, 409."""
        request = self.body(shapes.NewInvite)
        self.reply(await self._invites.create(self.session.user_id, UUID(chat_id), request), 201)


class Invite(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    async def delete(self, chat_id: str, invite_id: str) -> None:
        """204; 403, 404, 409."""
        await self._invites.withdraw(self.session.user_id, UUID(chat_id), UUID(invite_id))
        self.reply_nothing()


class Join(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate) -> None:
        self._chats, self._rate = chats, rate

    async def post(self) -> None:
        """200 Chat; 400, 404, 409, 429."""
        request = self.body(shapes.Join)
        await self.limit("join", self._rate, str(self.session.user_id))
        self.reply(await self._chats.join(self.session.user_id, request.token))
