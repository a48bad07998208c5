"""The endpoints of ``/chats``, but for messages."""

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

PEOPLE = (Header("Link", 'Where there are more participants: `<…>; rel="next"` (RFC 8288), a path.'),)
IN_FULL = Answer(shapes.ChatInFull, headers=PEOPLE)
OTHERS = 1024  # participants on the page that this leads to


def reply_chat(handler: ApiHandler, chat: Mapping[str, Any], status: int = 200) -> None:
    """Answer with a chat; where not all its participants are shown, point to the others."""
    people = chat["participants"]
    if people and len(people) < chat["participant_count"]:
        rest = place_of(people[-1], "joined_at", "user_id")
        handler.link_next(f"/chats/{chat['id']}/participants", limit=OTHERS, before=rest)
    handler.reply(chat, status)


class ChatsHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate, people: Rate) -> None:
        self._chats, self._rate, self._people = chats, rate, people

    @operation({200: Answer(list[shapes.Chat], headers=PAGED)}, cost=READS)
    async def get(self, query: shapes.ListQuery) -> None:
        """List one's chats, the last active first.

        Posting makes a chat active, and so does a change of the chat or of who takes part. Hidden chats are left out
        until somebody posts; `hidden` lists them, and only them. A page has at most `limit` chats and at most 1 MiB.
        """
        await self.reserve()
        entries, more = await self._chats.entries(self.session.user_id, query.limit, query.place, hidden=query.hidden)
        filters = {"hidden": "true"} if query.hidden else {}
        reply_page(self, query, entries, "updated_at", "id", more=more, **filters)

    @operation(
        {
            201: IN_FULL,
            200: Answer(shapes.ChatInFull, "The direct chat that the two have already."),
        },
        refuses=(Forbidden, NotFound),
        limits={"rate_limit_chats": "user", "rate_limit_participants": "user, of all whom they bring into chats"},
        cost=CHANGES,
    )
    async def post(self, body: shapes.NewChat) -> None:
        """Make a chat.

        `direct` and `secret` are of two, and want exactly one participant; the others may do without. The server reads
        titles, avatars and settings: what it should not know goes into messages.
        """
        user = str(self.session.user_id)
        await self.limit("chats", self._rate, user)
        await self.reserve()
        if body.participants:
            await self.limit("participants", self._people, user, len(body.participants))
            self.spend_rows(len(body.participants))
        chat, new = await self._chats.create(self.session.user_id, body)
        reply_chat(self, chat, 201 if new else 200)


class ChatHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate) -> None:
        self._chats, self._rate = chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound,), cost=READS)
    async def get(self, chat_id: UUID) -> None:
        """Look at a chat in which one takes part.

        Participants whose profiles take more than 1 MiB are not all there: `Link` leads to the others.
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

        By its owner and admins; in a chat of two by either.
        """
        await self.limit("chat-changes", self._rate, str(self.session.user_id))
        await self.reserve()
        reply_chat(self, await self._chats.change(self.session.user_id, chat_id, body))

    @operation({204: None}, refuses=(Forbidden, NotFound), cost=CHANGES)
    async def delete(self, chat_id: UUID) -> None:
        """End a chat for everybody, by its owner; all that was in it is erased. A direct chat goes for oneself only.

        A direct chat comes back with the next message, without what was in it; the other one keeps everything.
        """
        await self._chats.delete(self.session.user_id, chat_id)
        self.reply_nothing()


class ChatViewHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate) -> None:
        self._chats, self._rate = chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound,), limits={"rate_limit_chat_views": "user"}, cost=UPDATES)
    async def put(self, chat_id: UUID, body: shapes.ChangeView) -> None:
        """Change how one sees a chat, for oneself: only the fields that are sent.

        One's own sockets are notified by `account_changed`.
        """
        await self.limit("chat-views", self._rate, str(self.session.user_id))
        await self.reserve()
        reply_chat(self, await self._chats.view(self.session.user_id, chat_id, body))


class ParticipantsHandler(ApiHandler):
    def initialize(self, members: Members, rate: Rate) -> None:
        self._members, self._rate = members, rate

    @operation({200: Answer(list[shapes.Participant], headers=PAGED)}, refuses=(Forbidden, NotFound), cost=READS)
    async def get(self, chat_id: UUID, query: shapes.ParticipantsQuery) -> None:
        """List who takes part, who joined last first.

        In a channel by its owner and admins only. A page has at most `limit` of them and at most 1 MiB.
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
        """Bring somebody into a chat of many, by its owner and admins.

        Users who want to be asked are invited instead (`invited`), and come in when they accept.
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
        """Give a participant another role, by the owner and admins, of who is below them.

        Only the owner makes admins. `owner` hands the chat over, and the giver becomes admin.
        """
        await self.limit("chat-changes", self._rate, str(self.session.user_id))
        self.reply(await self._members.set_role(self.session.user_id, chat_id, user_id, body.role))

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), cost=CHANGES)
    async def delete(self, chat_id: UUID, user_id: UUID, query: shapes.RemoveQuery) -> None:
        """Remove a participant, by the owner and admins, of who is below them; or leave, of oneself.

        The owner gives the chat away first, or deletes it. Of an invited user the invitation is withdrawn. With `ban`
        nothing lets the user in again, and also who is not in the chat can be banned.
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
        """List who is banned from a chat of many, the latest first, by its owner and admins.

        A page has at most `limit` of them and at most 1 MiB.
        """
        await self.reserve()
        banned, more = await self._members.bans(self.session.user_id, chat_id, query.limit, query.place)
        reply_page(self, query, banned, "banned_at", "user_id", more=more)


class BanHandler(ApiHandler):
    def initialize(self, members: Members) -> None:
        self._members = members

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), cost=UPDATES)
    async def delete(self, chat_id: UUID, user_id: UUID) -> None:
        """Lift a ban, by the owner and admins.

        The user can be added again, or join by an invite that was made after the ban.
        """
        await self._members.unban(self.session.user_id, chat_id, user_id)
        self.reply_nothing()


class InvitesHandler(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    @operation({200: list[shapes.Invite]}, refuses=(Forbidden, NotFound, Conflict), cost=READS)
    async def get(self, chat_id: UUID) -> None:
        """List the invites of a chat of many, the latest first, by its owner and admins."""
        await self.reserve()
        self.reply(await self._invites.entries(self.session.user_id, chat_id))

    @operation({201: shapes.InviteWithToken}, refuses=(Forbidden, NotFound, Conflict), cost=WRITES)
    async def post(self, chat_id: UUID, body: shapes.NewInvite) -> None:
        """Make an invite into a chat of many, by its owner and admins. Its token is shown this once."""
        self.reply(await self._invites.create(self.session.user_id, chat_id, body), 201)


class InviteHandler(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), cost=UPDATES)
    async def delete(self, chat_id: UUID, invite_id: UUID) -> None:
        """Withdraw an invite, by the owner and admins."""
        await self._invites.revoke(self.session.user_id, chat_id, invite_id)
        self.reply_nothing()


class AcceptHandler(ApiHandler):
    def initialize(self, requests: Requests, chats: Chats, rate: Rate) -> None:
        self._requests, self._chats, self._rate = requests, chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound,), limits={"rate_limit_chat_views": "user"}, cost=JOINS)
    async def post(self, chat_id: UUID) -> None:
        """Accept an invitation into a chat, or accept a direct chat without writing; again changes nothing."""
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
        """Decline invitations, those into these chats or all, and block their makers if wanted.

        Other users are not notified: to them the invitations stay unanswered.
        """
        await self.limit("chat-views", self._rate, str(self.session.user_id))
        await self._requests.decline(self.session.user_id, None if body.all else body.chat_ids, block=body.block)
        self.reply_nothing()


class JoinHandler(ApiHandler):
    def initialize(self, members: Members, chats: Chats, rate: Rate) -> None:
        self._members, self._chats, self._rate = members, chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound, Conflict), limits={"rate_limit_join": "user"}, cost=JOINS)
    async def post(self, body: shapes.Join) -> None:
        """Join a chat by an invite. Who is in already uses nothing up.

        Who was restricted comes back restricted. Who was removed needs an invite that was made after that; who was
        banned is refused.
        """
        user_id = self.session.user_id
        await self.limit("join", self._rate, str(user_id))
        await self.reserve()
        reply_chat(self, await self._chats.get(user_id, await self._members.join(user_id, body.token)))


class JoinPreviewHandler(ApiHandler):
    def initialize(self, invites: Invites, rate: Rate) -> None:
        self._invites, self._rate = invites, rate

    @operation(
        {200: shapes.Preview}, refuses=(NotFound,), limits={"rate_limit_join": "user, joins counted"}, cost=READS
    )
    async def post(self, body: shapes.Join) -> None:
        """Look at what an invite leads to, before joining. It is refused where joining would be."""
        await self.limit("join", self._rate, str(self.session.user_id))
        self.reply(await self._invites.preview(self.session.user_id, body.token))
