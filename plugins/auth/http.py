"""The endpoints of ``/auth``."""

from __future__ import annotations

from uuid import UUID

from config.settings import Rate
from handlers.base import ApiHandler
from handlers.errors import NotFound
from plugins.auth.accounts import Accounts
from plugins.auth.sessions import Sessions
from plugins.auth.shapes import ChangePassword, Login, Logout, Refresh, Register, ResetPassword


class RegisterHandler(ApiHandler):
    public = True

    def initialize(self, accounts: Accounts, rate: Rate) -> None:
        self._accounts, self._rate = accounts, rate

    async def post(self) -> None:
        """201 SignedIn; 400, 409 ``public_id_taken`` or ``identity_key_taken``, 429."""
        request = self.body(Register)
        await self.limit("register", self._rate)
        self._accounts.judge(request)  # after the limit: 100 that are no good cost the loop 12 ms
        self.count_client()
        self.reply(await self._accounts.register(request, self.client), 201)


class LoginHandler(ApiHandler):
    public = True

    def initialize(self, accounts: Accounts, rate: Rate) -> None:
        self._accounts, self._rate = accounts, rate

    async def post(self) -> None:
        """200 SignedIn; 400, 401 ``invalid_credentials``, 403 ``account_suspended``, 429."""
        request = self.body(Login)
        await self.limit("login", self._rate)
        self.count_client()
        self.reply(await self._accounts.login(request, self.client))


class RefreshHandler(ApiHandler):
    public = True

    def initialize(self, sessions: Sessions, rate: Rate) -> None:
        self._sessions, self._rate = sessions, rate

    async def post(self) -> None:
        """200 Refreshed; 400, 401 ``unauthorized`` or ``token_reused``, 403 ``account_suspended``, 429 for many unknown
        tokens."""
        token = self.body(Refresh).refresh_token
        if not await self._sessions.known(token):
            await self.limit("refresh-unknown", self._rate)
        self.count_client()
        self.reply(await self._sessions.refresh(token, self.client))


class ResetPasswordHandler(ApiHandler):
    public = True

    def initialize(self, accounts: Accounts, rate: Rate, challenge_rate: Rate) -> None:
        self._accounts, self._rate, self._challenge_rate = accounts, rate, challenge_rate

    async def post(self) -> None:
        """200 SignedIn; 428 ``proof_required`` with a challenge; 403 ``invalid_proof`` or ``account_suspended``; 400,
        429."""
        request = self.body(ResetPassword)
        if request.challenge is None or request.signature is None:
            await self.limit("reset-challenge", self._challenge_rate)
            raise self._accounts.challenge(request.identity_key)
        await self.limit("reset-password", self._rate)
        self.reply(await self._accounts.reset_password(request, self.client))


class LogoutHandler(ApiHandler):
    def initialize(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def post(self) -> None:
        """204, and this session (with ``all`` every one) has ended. A body is optional."""
        everywhere = self.has_body and self.body(Logout).all
        if everywhere:
            await self._sessions.end_all(self.session.user_id)
        else:
            await self._sessions.end(self.session.user_id, self.session.session_id)
        self.reply_nothing()


class SessionsHandler(ApiHandler):
    def initialize(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def get(self) -> None:
        """200 list of the live sessions; ``current`` marks the asking one."""
        self.reply(await self._sessions.listed(self.session.user_id, self.session.session_id))


class SessionHandler(ApiHandler):
    def initialize(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def delete(self, session_id: str) -> None:
        """204; 404 also for a session of others."""
        try:
            named = UUID(session_id)
        except ValueError:
            raise NotFound("There is no such session.") from None
        await self._sessions.end(self.session.user_id, named)
        self.reply_nothing()


class ChangePasswordHandler(ApiHandler):
    def initialize(self, accounts: Accounts, rate: Rate) -> None:
        self._accounts, self._rate = accounts, rate

    async def post(self) -> None:
        """204, and every other session has ended; 401 ``invalid_credentials``, 400, 429."""
        request = self.body(ChangePassword)
        await self.limit("login", self._rate)
        await self._accounts.change_password(self.session, request)
        self.reply_nothing()
