"""Access: a cache of who is in each chat and what they may do there, checked by its version before it is relied on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Container, Mapping
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

from models.chats.events import SEVERED
from models.chats.visibility import HiddenFrom
from models.database import Database

# Participants in the cache, of all chats together. An id and its places in dictionaries take some 200 bytes, so this is
# at most 60 MB. The least recently used chats are dropped first.
MAX_PARTICIPANTS = 300_000


class View(NamedTuple):
    """A chat as it was when its ``access`` had this number.

    ``severed``: one of the two has blocked the other after accepting the chat. ``live`` is false once the chat is
    deleted; its participants are then kept only to be notified. ``joined`` has the joining seq of participants who were
    not there from the beginning. ``audience`` is the participants who see the chat: all except those from whom a block
    conceals it.
    """

    access: int
    type: str
    roles: Mapping[UUID, str]
    severed: bool
    live: bool
    joined: Mapping[UUID, int] = MappingProxyType({})
    concealed: Collection[UUID] = ()
    audience: Collection[UUID] = ()

    def has(self, user_id: UUID) -> bool:
        return self.live and user_id in self.roles and user_id not in self.concealed

    def may_post(self, user_id: UUID) -> bool:
        role = self.roles.get(user_id)
        if role is None or role == "restricted" or self.severed or not self.live or user_id in self.concealed:
            return False
        return role in ("owner", "admin") or self.type != "channel"


class Access:
    """A cache of views of chats. A view may be out of date: a statement that relies on one compares its ``access``, and
    the caller loads the view again if the chat has a newer one."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._views: OrderedDict[UUID, View] = OrderedDict()
        self._count = 0

    def cached(self, chat_id: UUID) -> View | None:
        """The view in the cache, perhaps out of date; None if there is none."""
        view = self._views.get(chat_id)
        if view is not None:
            self._views.move_to_end(chat_id)
        return view

    def forget(self, chat_id: UUID) -> None:
        view = self._views.pop(chat_id, None)
        if view is not None:
            self._count -= len(view.roles)

    def clear(self) -> None:
        """Forget all chats: in a restored database the same numbers may mean something else."""
        self._views.clear()
        self._count = 0

    async def view(self, chat_id: UUID, access: int = 0) -> View | None:
        """A view that is at least as new as ``access``; None if there is no such chat."""
        view = self.cached(chat_id)
        if view is None or view.access < access:
            view = await self.load(chat_id)
        return view

    async def current(self, chat_id: UUID) -> View | None:
        """A chat as it is now. Reads one row if the view in the cache is up to date."""
        view = self.cached(chat_id)
        if view is not None:
            access = await self._db.value("SELECT access FROM chat_threads WHERE id = $1", chat_id)
            if access == view.access:
                return view
        return await self.load(chat_id)

    async def members(self, chat_id: UUID, access: int, seq: int) -> Collection[UUID]:
        """The participants who see a chat and were in it at ``seq``, by a view at least as new as ``access``."""
        view = await self.view(chat_id, access)
        if view is None:
            return ()
        if view.access == access or all(joined <= seq for joined in view.joined.values()):
            return view.audience
        return [user_id for user_id in view.audience if view.joined.get(user_id, 1) <= seq]

    async def hidden_from(self, chat_id: UUID, access: int, scope: str) -> Container[UUID]:
        """The participants who may not see an event of this scope, by a view at least as new as ``access``."""
        view = await self.view(chat_id, access)
        return () if view is None else HiddenFrom(view.type, view.roles, view.joined, scope)

    async def load(self, chat_id: UUID) -> View | None:
        """Read a chat, and replace the view in the cache."""
        row = await self._db.row(
            f"""SELECT t.access, t.type::text,
                      ARRAY(SELECT user_id FROM chat_participants WHERE chat_id = t.id ORDER BY user_id) AS users,
                      ARRAY(SELECT role::text FROM chat_participants WHERE chat_id = t.id ORDER BY user_id) AS roles,
                      ARRAY(SELECT joined_seq FROM chat_participants WHERE chat_id = t.id ORDER BY user_id) AS joined,
                      CASE WHEN t.type = 'channel' THEN '{{}}' ELSE  -- it is never concealed from its 100,000 readers
                          ARRAY(SELECT user_id FROM chat_participants WHERE chat_id = t.id AND concealed)
                      END AS concealed,
                      {SEVERED} AS severed,
                      t.deleted_at IS NULL AS live
               FROM chat_threads t WHERE t.id = $1""",
            chat_id,
        )
        newer = self._views.get(chat_id)
        if newer is not None and row is not None and newer.access > row["access"]:
            return newer  # another task loaded a newer view meanwhile
        self.forget(chat_id)
        if row is None:
            return None
        roles = dict(zip(row["users"], row["roles"], strict=True))
        joined = {user_id: seq for user_id, seq in zip(row["users"], row["joined"], strict=True) if seq > 1}
        concealed = frozenset(row["concealed"])
        audience = [user_id for user_id in roles if user_id not in concealed] if concealed else roles
        view = View(row["access"], row["type"], roles, row["severed"], row["live"], joined, concealed, audience)
        self._views[chat_id] = view
        self._count += len(view.roles)
        while self._count > MAX_PARTICIPANTS and len(self._views) > 1:
            self.forget(next(iter(self._views)))
        return view
