"""The endpoints of ``/chats``, without messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from config.settings import Rate
from handlers.http.base import ApiHandler
from handlers.http.pages import PAGED, place_of, reply_page
from handlers.wire.costs import CHANGES, JOINS, READS, UPDATES, WRITES
from handlers.wire.errors import Conflict, Forbidden, NotFound
from handlers.wire.operations import Answer, Header, operation
from plugins.chats import shapes
from plugins.chats.chats import Chats
from plugins.chats.invites import Invites
from plugins.chats.members import Members
from plugins.chats.requests import Requests

PEOPLE = (Header("Link", 'If there are more participants: `<…>; rel="next"` (RFC 8288), a path.'),)
IN_FULL = Answer(shapes.ChatInFull, headers=PEOPLE)
NEXT_LIMIT = 1024  # participants on the next page


def reply_chat(handler: ApiHandler, chat: Mapping[str, Any], status: int = 200) -> None:
    """Reply with a chat, and with a link to the other participants if not all are shown."""
    people = chat["participants"]
    if people and len(people) < chat["participant_count"]:
        rest = place_of(people[-1], "joined_at", "user_id")
        handler.link_next(f"/chats/{chat['id']}/participants", limit=NEXT_LIMIT, before=rest)
    handler.reply(chat, status)


class ChatsHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate, people: Rate) -> None:
        self._chats, self._rate, self._people = chats, rate, people

    @operation({200: Answer(list[shapes.Chat], headers=PAGED)}, cost=READS)
    async def get(self, query: shapes.ListQuery) -> None:
        """List your chats, the last active first.

        A new message makes a chat active, and so does a change of the chat or of its participants. Hidden chats are
        left out until there is a new message; `hidden` lists only them. A page has at most `limit` chats and at most
        1 MiB.
        """
        await self.reserve()
        entries, more = await self._chats.entries(self.session.user_id, query.limit, query.place, hidden=query.hidden)
        filters = {"hidden": "true"} if query.hidden else {}
        reply_page(self, query, entries, "updated_at", "id", more=more, **filters)

    @operation(
        {
            201: IN_FULL,
            200: Answer(shapes.ChatInFull, "The direct chat that you two already have."),
        },
        refuses=(Forbidden, NotFound),
        limits={"rate_limit_chats": "user", "rate_limit_participants": "user, for each participant"},
        cost=CHANGES,
    )
    async def post(self, body: shapes.NewChat) -> None:
        """Create a chat.

        `direct` and `secret` chats are of two, and need exactly one participant; other chats need none. The server can
        read titles, avatars and settings: put what it should not read into messages.
        """
        user = str(self.session.user_id)
        await self.limit("chats", self._rate, user)
        await self.reserve()
        if body.participants:
            await self.limit("participants", self._people, user, len(body.participants))
            self.spend_rows(len(body.participants))
        chat, is_new = await self._chats.create(self.session.user_id, body)
        reply_chat(self, chat, 201 if is_new else 200)


class ChatHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate) -> None:
        self._chats, self._rate = chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound,), cost=READS)
    async def get(self, chat_id: UUID) -> None:
        """Get one of your chats.

        The profiles of participants take at most 1 MiB: `Link` leads to the others.
        """
        await self.reserve()
        reply_chat(self, await self._chats.get(self.session.user_id, chat_id))

    @operation(
        {200: IN_FULL},
        refuses=(Forbidden, NotFound),
        limits={"rate_limit_chat_changes": "user"},
        cost=CHANGES,
    )
    async def put(self, chat_id: UUID, body: shapes.ChangeChat) -> None:
        """Change a chat: only the fields that are sent; null clears.

        For its owner and admins; in a chat of two for both.
        """
        await self.limit("chat-changes", self._rate, str(self.session.user_id))
        await self.reserve()
        reply_chat(self, await self._chats.change(self.session.user_id, chat_id, body))

    @operation({204: None}, refuses=(Forbidden, NotFound), cost=CHANGES)
    async def delete(self, chat_id: UUID) -> None:
        """Delete a chat for everybody and erase its content, as its owner. A direct chat is deleted only for you.

        A direct chat comes back with the next message, without its earlier content; the other user keeps everything.
        """
        await self._chats.delete(self.session.user_id, chat_id)
        self.reply_nothing()


class ChatViewHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate) -> None:
        self._chats, self._rate = chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound,), limits={"rate_limit_chat_views": "user"}, cost=UPDATES)
    async def put(self, chat_id: UUID, body: shapes.ChangeView) -> None:
        """Change your own settings of a chat: only the fields that are sent.

        Your sockets are notified by `account_changed`.
        """
        await self.limit("chat-views", self._rate, str(self.session.user_id))
        await self.reserve()
        reply_chat(self, await self._chats.view(self.session.user_id, chat_id, body))


class ParticipantsHandler(ApiHandler):
    def initialize(self, members: Members, rate: Rate) -> None:
        self._members, self._rate = members, rate

    @operation({200: Answer(list[shapes.Participant], headers=PAGED)}, refuses=(Forbidden, NotFound), cost=READS)
    async def get(self, chat_id: UUID, query: shapes.ParticipantsQuery) -> None:
        """List the participants, the last to join first.

        In a channel for its owner and admins only. A page has at most `limit` participants and at most 1 MiB.
        """
        await self.reserve()
        people, more = await self._members.entries(self.session.user_id, chat_id, query.limit, query.place)
        reply_page(self, query, people, "joined_at", "user_id", more=more)

    @operation(
        {201: shapes.AddedParticipant},
        refuses=(Forbidden, NotFound, Conflict),
        limits={"rate_limit_participants": "user"},
        cost=JOINS,
    )
    async def post(self, chat_id: UUID, body: shapes.NewParticipant) -> None:
        """Add a user to a chat of many, as its owner or admin.

        Users whose settings require it are invited instead (`invited`), and join when they accept.
        """
        await self.limit("participants", self._rate, str(self.session.user_id))
        self.reply(await self._members.add(self.session.user_id, chat_id, body), 201)


class ParticipantHandler(ApiHandler):
    def initialize(self, members: Members, rate: Rate) -> None:
        self._members, self._rate = members, rate

    @operation(
        {200: shapes.ParticipantRole},
        refuses=(Forbidden, NotFound, Conflict),
        limits={"rate_limit_chat_changes": "user"},
        cost=CHANGES,
    )
    async def put(self, chat_id: UUID, user_id: UUID, body: shapes.ChangeRole) -> None:
        """Change the role of a participant whose role is below yours, as owner or admin.

        Only the owner makes admins. `owner` hands the chat over, and the old owner becomes admin.
        """
        await self.limit("chat-changes", self._rate, str(self.session.user_id))
        self.reply(await self._members.set_role(self.session.user_id, chat_id, user_id, body.role))

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), cost=CHANGES)
    async def delete(self, chat_id: UUID, user_id: UUID, query: shapes.RemoveQuery) -> None:
        """Remove a participant whose role is below yours, as owner or admin; or leave, with your own id.

        The owner can't leave before handing the chat over. The invitation of an invited user is withdrawn. With `ban`
        the user can't come back until the ban is lifted; users who are not in the chat can be banned, too.
        """
        own = self.session.user_id
        if user_id == own and not query.ban:
            await self._members.leave(own, chat_id)
        else:
            await self._members.remove(own, chat_id, user_id, ban=query.ban)
        self.reply_nothing()


class BansHandler(ApiHandler):
    def initialize(self, members: Members) -> None:
        self._members = members

    @operation(
        {200: Answer(list[shapes.BannedUser], headers=PAGED)}, refuses=(Forbidden, NotFound, Conflict), cost=READS
    )
    async def get(self, chat_id: UUID, query: shapes.BansQuery) -> None:
        """List the users who are banned from a chat of many, the latest ban first, as its owner or admin.

        A page has at most `limit` users and at most 1 MiB.
        """
        await self.reserve()
        banned, more = await self._members.bans(self.session.user_id, chat_id, query.limit, query.place)
        reply_page(self, query, banned, "banned_at", "user_id", more=more)


class BanHandler(ApiHandler):
    def initialize(self, members: Members) -> None:
        self._members = members

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), cost=UPDATES)
    async def delete(self, chat_id: UUID, user_id: UUID) -> None:
        """Lift a ban, as owner or admin.

        The user can be added again, or join with an invite that was created after the ban.
        """
        await self._members.unban(self.session.user_id, chat_id, user_id)
        self.reply_nothing()


class InvitesHandler(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    @operation({200: list[shapes.Invite]}, refuses=(Forbidden, NotFound, Conflict), cost=READS)
    async def get(self, chat_id: UUID) -> None:
        """List the invites of a chat of many, the latest first, as its owner or admin."""
        await self.reserve()
        self.reply(await self._invites.entries(self.session.user_id, chat_id))

    @operation({201: shapes.InviteWithToken}, refuses=(Forbidden, NotFound, Conflict), cost=WRITES)
    async def post(self, chat_id: UUID, body: shapes.NewInvite) -> None:
        """Create an invite into a chat of many, as its owner or admin. Its token is shown only now."""
        self.reply(await self._invites.create(self.session.user_id, chat_id, body), 201)


class InviteHandler(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), cost=UPDATES)
    async def delete(self, chat_id: UUID, invite_id: UUID) -> None:
        """Revoke an invite, as owner or admin."""
        await self._invites.revoke(self.session.user_id, chat_id, invite_id)
        self.reply_nothing()


class AcceptHandler(ApiHandler):
    def initialize(self, requests: Requests, chats: Chats, rate: Rate) -> None:
        self._requests, self._chats, self._rate = requests, chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound,), limits={"rate_limit_chat_views": "user"}, cost=JOINS)
    async def post(self, chat_id: UUID) -> None:
        """Accept an invitation, or a direct chat without writing. Accepting again changes nothing."""
        user_id = self.session.user_id
        await self.limit("chat-views", self._rate, str(user_id))
        await self._requests.accept(user_id, chat_id)
        await self.reserve()
        reply_chat(self, await self._chats.get(user_id, chat_id))


class DeclineHandler(ApiHandler):
    def initialize(self, requests: Requests, chats: Chats, rate: Rate) -> None:
        self._requests, self._rate = requests, rate

    @operation({204: None}, refuses=(Conflict,), limits={"rate_limit_chat_views": "user"}, cost=UPDATES)
    async def post(self, body: shapes.Decline) -> None:
        """Decline invitations into these chats, or all, and block the inviters if you want.

        Other users are not notified: for them the invitations stay open.
        """
        await self.limit("chat-views", self._rate, str(self.session.user_id))
        await self._requests.decline(self.session.user_id, None if body.all else body.chat_ids, block=body.block)
        self.reply_nothing()


class JoinHandler(ApiHandler):
    def initialize(self, members: Members, chats: Chats, rate: Rate) -> None:
        self._members, self._chats, self._rate = members, chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound, Conflict), limits={"rate_limit_join": "user"}, cost=JOINS)
    async def post(self, body: shapes.Join) -> None:
        """Join a chat with an invite. Joining again does not use it up.

        Restricted users come back restricted. Removed users need an invite that was created after their removal. Banned
        users can't join.
        """
        user_id = self.session.user_id
        await self.limit("join", self._rate, str(user_id))
        await self.reserve()
        reply_chat(self, await self._chats.get(user_id, await self._members.join(user_id, body.token)))


class JoinPreviewHandler(ApiHandler):
    def initialize(self, invites: Invites, rate: Rate) -> None:
        self._invites, self._rate = invites, rate

    @operation(
        {200: shapes.Preview}, refuses=(NotFound,), limits={"rate_limit_join": "user, including joins"}, cost=READS
    )
    async def post(self, body: shapes.Join) -> None:
        """Preview the chat of an invite before joining. Fails if joining would."""
        await self.limit("join", self._rate, str(self.session.user_id))
        self.reply(await self._invites.preview(self.session.user_id, body.token))
