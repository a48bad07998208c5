"""The endpoints of ``/chats``, but for messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from config.values import Rate
from handlers.http.base import ApiHandler
from handlers.http.pages import PAGED, cursor_of, reply_page
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
        rest = cursor_of(people[-1], "joined_at", "user_id")
        handler.link_next(f"/chats/{chat['id']}/participants", limit=OTHERS, before=rest)
    handler.reply(chat, status)


class ChatsHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate, people: Rate) -> None:
        self._chats, self._rate, self._people = chats, rate, people

    @operation({200: Answer(list[shapes.Chat], headers=PAGED)}, cost=READS)
    async def get(self, query: shapes.ListQuery) -> None:
        """List your chats, the last active first.

        Posting makes a chat active, and so does a change of the chat or of its participants. Hidden chats are left out
        until somebody posts; `hidden` lists only them. A page has at most `limit` chats and at most 1 MiB. Each chat
        shows at most 8 `participants`: you, the owner, admins, then others. Readers of a channel see the owner, the
        admins and themselves.
        """
        await self.reserve()
        entries, more = await self._chats.entries(self.session.user_id, query.limit, query.cursor, hidden=query.hidden)
        filters = {"hidden": "true"} if query.hidden else {}
        reply_page(self, query, entries, "updated_at", "id", more=more, **filters)

    @operation(
        {
            201: IN_FULL,
            200: Answer(shapes.ChatInFull, "The direct chat that the two have already."),
        },
        refuses=(Forbidden, NotFound),
        limits={"rate_limit_chats": "user", "rate_limit_participants": "user, of all they add to chats"},
        cost=CHANGES,
    )
    async def post(self, body: shapes.NewChat) -> None:
        """Create a chat.

        `direct` and `secret` chats are of two and need exactly one participant; other chats need none. An unknown
        `public_id` is 400. A chat of two with a user that you have blocked is `forbidden`. In a chat of many, some of
        the users may be invited instead of added. An avatar that is one of your files becomes a file of the chat, which
        its participants may read.

        The server reads titles, avatars and settings. What it should not know belongs into messages.
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

        `participants` is null in a channel. If the profiles of all participants take more than 1 MiB, there are fewer
        than `participant_count`, and `Link` leads to the others. This is so in every response with a chat. A chat in
        which you take no part is 404, as if it did not exist.
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
        """Change a chat: only the fields that you send; null clears.

        The owner and admins may do this; in a chat of two, either user. An `avatar_url` whose host is not allowed, or
        that names no complete file of yours, is 400.
        """
        await self.limit("chat-changes", self._rate, str(self.session.user_id))
        await self.reserve()
        reply_chat(self, await self._chats.change(self.session.user_id, chat_id, body))

    @operation({204: None}, refuses=(Forbidden, NotFound), cost=CHANGES)
    async def delete(self, chat_id: UUID) -> None:
        """Delete a chat, as its owner: for everybody, with all its content. A direct chat is deleted for you alone.

        Either user of a direct chat can do that. Until the next message it is 404 for you and in no list; then it is
        back without its old content. The other user keeps everything and is not notified. Your own sockets get
        `account_changed`, and `GET /sync` lists the chat under `deleted`. `POST /chats` opens it again, empty.
        """
        await self._chats.delete(self.session.user_id, chat_id)
        self.reply_nothing()


class ChatViewHandler(ApiHandler):
    def initialize(self, chats: Chats, rate: Rate) -> None:
        self._chats, self._rate = chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound,), limits={"rate_limit_chat_views": "user"}, cost=UPDATES)
    async def put(self, chat_id: UUID, body: shapes.ChangeView) -> None:
        """Change how you see a chat: only the fields that you send.

        Other participants do not see it. All your sockets get `account_changed`.
        """
        await self.limit("chat-views", self._rate, str(self.session.user_id))
        await self.reserve()
        reply_chat(self, await self._chats.view(self.session.user_id, chat_id, body))


class ParticipantsHandler(ApiHandler):
    def initialize(self, members: Members, rate: Rate) -> None:
        self._members, self._rate = members, rate

    @operation({200: Answer(list[shapes.Participant], headers=PAGED)}, refuses=(Forbidden, NotFound), cost=READS)
    async def get(self, chat_id: UUID, query: shapes.ParticipantsQuery) -> None:
        """List the participants of a chat, the one who joined last first.

        In a channel, only its owner and admins may. A page has at most `limit` participants and at most 1 MiB.
        """
        await self.reserve()
        people, more = await self._members.entries(self.session.user_id, chat_id, query.limit, query.cursor)
        reply_page(self, query, people, "joined_at", "user_id", more=more)

    @operation(
        {201: shapes.AddedParticipant},
        refuses=(Forbidden, NotFound, Conflict),
        limits={"rate_limit_participants": "user"},
        cost=JOINS,
    )
    async def post(self, chat_id: UUID, body: shapes.NewParticipant) -> None:
        """Add a user to a chat of many, as its owner or an admin.

        Users who want to be asked are invited instead (`invited`), and join when they accept. Only the owner can add an
        `admin`. A user who was `restricted` before is so again, unless added as `admin`: see `role` in the response.

        An unknown `public_id` is 400. It is `conflict` if the user is in the chat, invited or banned, if the chat is
        full (invitations count) or has 1,024 invitations, and in a chat of two.
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
        """Change the role of a participant below you, as the owner or an admin.

        Only the owner makes admins. `owner` hands the chat over, and the previous owner becomes an admin. When a
        participant stops being owner or admin, their invites end. It is `conflict` in a chat of two.
        """
        await self.limit("chat-changes", self._rate, str(self.session.user_id))
        self.reply(await self._members.set_role(self.session.user_id, chat_id, user_id, body.role))

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), cost=CHANGES)
    async def delete(self, chat_id: UUID, user_id: UUID, query: shapes.RemoveQuery) -> None:
        """Remove a participant below you, as the owner or an admin; or leave the chat yourself.

        The owner hands the chat over first, or deletes it; otherwise it is `conflict`, as in a chat of two. An invite
        that was made before the removal does not let the user in again. For an invited user, the invitation is
        withdrawn.

        After `ban` the user can't come back at all, not even by being added. You can also ban users who are not in the
        chat; again changes nothing. It is `conflict` for yourself, and beyond 10,000 bans.
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
        """List the banned users of a chat of many, the latest first, as its owner or an admin.

        It is `conflict` in a chat of two. A page has at most `limit` of them and at most 1 MiB.
        """
        await self.reserve()
        banned, more = await self._members.bans(self.session.user_id, chat_id, query.limit, query.cursor)
        reply_page(self, query, banned, "banned_at", "user_id", more=more)


class BanHandler(ApiHandler):
    def initialize(self, members: Members) -> None:
        self._members = members

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), cost=UPDATES)
    async def delete(self, chat_id: UUID, user_id: UUID) -> None:
        """Lift a ban, as the owner or an admin.

        The user can then be added, or join by an invite that was made after the ban. It is `conflict` in a chat of two.
        """
        await self._members.unban(self.session.user_id, chat_id, user_id)
        self.reply_nothing()


class InvitesHandler(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    @operation({200: list[shapes.Invite]}, refuses=(Forbidden, NotFound, Conflict), cost=READS)
    async def get(self, chat_id: UUID) -> None:
        """List the invites of a chat of many, the latest first, as its owner or an admin.

        It is `conflict` in a chat of two.
        """
        await self.reserve()
        self.reply(await self._invites.entries(self.session.user_id, chat_id))

    @operation({201: shapes.InviteWithToken}, refuses=(Forbidden, NotFound, Conflict), cost=WRITES)
    async def post(self, chat_id: UUID, body: shapes.NewInvite) -> None:
        """Create an invite to a chat of many, as its owner or an admin. Only this response shows its token.

        It is `conflict` beyond 100 invites, and in a chat of two.
        """
        self.reply(await self._invites.create(self.session.user_id, chat_id, body), 201)


class InviteHandler(ApiHandler):
    def initialize(self, invites: Invites) -> None:
        self._invites = invites

    @operation({204: None}, refuses=(Forbidden, NotFound, Conflict), cost=UPDATES)
    async def delete(self, chat_id: UUID, invite_id: UUID) -> None:
        """Withdraw an invite, as the owner or an admin; `conflict` in a chat of two."""
        await self._invites.revoke(self.session.user_id, chat_id, invite_id)
        self.reply_nothing()


class AcceptHandler(ApiHandler):
    def initialize(self, requests: Requests, chats: Chats, rate: Rate) -> None:
        self._requests, self._chats, self._rate = requests, chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound,), limits={"rate_limit_chat_views": "user"}, cost=JOINS)
    async def post(self, chat_id: UUID) -> None:
        """Accept an invitation to a chat; again changes nothing.

        Or accept a direct or secret chat that another user made, without writing in it.
        """
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
        """Decline invitations, to some chats or all, and block the users who made them if you like.

        A chat without an invitation changes nothing. Other users are not notified: to them the invitations stay
        unanswered. It is `conflict` if `block` would make more than 10,000 blocks.
        """
        await self.limit("chat-views", self._rate, str(self.session.user_id))
        await self._requests.decline(self.session.user_id, None if body.all else body.chat_ids, block=body.block)
        self.reply_nothing()


class JoinHandler(ApiHandler):
    def initialize(self, members: Members, chats: Chats, rate: Rate) -> None:
        self._members, self._chats, self._rate = members, chats, rate

    @operation({200: IN_FULL}, refuses=(NotFound, Conflict), limits={"rate_limit_join": "user"}, cost=JOINS)
    async def post(self, body: shapes.Join) -> None:
        """Join a chat by an invite. If you are in it already, this uses nothing up.

        A user who was restricted comes back restricted. An invite is 404 if it is used up, expired or withdrawn, and if
        it does not let you in: you are banned, or were removed after it was made. It is `conflict` if the chat is full.
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
        """Preview the chat of an invite, without using it up. It is 404 where joining would be."""
        await self.limit("join", self._rate, str(self.session.user_id))
        self.reply(await self._invites.preview(self.session.user_id, body.token))
