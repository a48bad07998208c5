"""The endpoints of ``/auth``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

from config.values import Rate
from handlers.http.base import ApiHandler
from handlers.http.pages import PAGED, reply_page
from handlers.limits.rates import limit_key
from handlers.wire.costs import DEFENDS, READS, WRITES
from handlers.wire.errors import (
    AccountSuspended,
    Conflict,
    InvalidCredentials,
    InvalidRequest,
    NotFound,
    ProofRequired,
    RateLimited,
)
from handlers.wire.operations import Answer, operation
from plugins.auth.accounts import Accounts
from plugins.auth.refusals import IdentityKeyTaken, InvalidProof, PublicIdTaken, TokenReused
from plugins.auth.sessions import Sessions, family
from plugins.auth.shapes import (
    Availability,
    AvailabilityQuery,
    ChangePassword,
    LiveSession,
    Login,
    Logout,
    Refresh,
    Refreshed,
    Register,
    ResetPassword,
    SessionsQuery,
    SignedIn,
)


class RegisterHandler(ApiHandler):
    public = True

    def initialize(self, accounts: Accounts, rate: Rate, failed_rate: Rate) -> None:
        self._accounts, self._rate, self._failed_rate = accounts, rate, failed_rate

    @operation(
        {201: SignedIn},
        refuses=(PublicIdTaken, IdentityKeyTaken, Conflict),
        limits={
            "rate_limit_register": "address, of those that succeed",
            "rate_limit_register_failed": "address, of those that fail",
        },
        cost=WRITES,
    )
    async def post(self, body: Register) -> None:
        """Register an account, and open its first session.

        Each signature is Ed25519 by `signing_public_key`, or XEdDSA by `identity_key` (what libsignal makes). It is
        over the 32 bytes of the prekey or its 33, and over the bytes of a Kyber key as you send them. The server stores
        everything or nothing.

        A server with `SIGNAL_PROFILE=libsignal` takes only the form that libsignal's clients can use: XEdDSA over the
        33 bytes, a `last_resort_kyber_prekey`, and Kyber keys of 1569 bytes signed with XEdDSA. Anything else is 400,
        and the error says so.

        For 180 days after an account was deleted, its public id is `public_id_taken` for everybody. Its identity key is
        `identity_key_taken` unless the signed prekey is new and signed with XEdDSA by that key: the public key alone
        proves nothing. Old subscriptions return to the account that proves the identity key so, or that has the signing
        key that signed the purchase.
        """
        async with self._counted():
            self._accounts.validate(body)  # after the limits: 100 invalid keys cost the loop 12 ms
            self.count_client()
            signed_in = await self._accounts.register(body, self.client)
        self.reply(signed_in, 201)

    @contextlib.asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        """Count a registration against both limits, then refund the limit that does not apply."""
        limits, key = self.application.limits, limit_key(self.address)
        await limits.spend("register", key, self._rate, shown=True)
        try:
            await limits.spend("register-failed", key, self._failed_rate, shown=True)
        except RateLimited:
            await limits.refund("register", key, self._rate)
            raise
        try:
            yield
        except (Conflict, InvalidRequest):
            await limits.refund("register", key, self._rate)
            raise
        except BaseException:  # the server's own failures, and an instance that stops
            await limits.refund("register", key, self._rate)
            await limits.refund("register-failed", key, self._failed_rate)
            raise
        await limits.refund("register-failed", key, self._failed_rate)


class AvailableHandler(ApiHandler):
    public = True

    def initialize(self, accounts: Accounts, rate: Rate) -> None:
        self._accounts, self._rate = accounts, rate

    @operation({200: Availability}, limits={"rate_limit_available": "address"}, cost=READS)
    async def get(self, query: AvailabilityQuery) -> None:
        """Check whether a public id can be registered.

        It can't be while an account has it, for 180 days after that account was deleted, and if it is reserved.
        """
        await self.limit("available", self._rate)
        self.reply({"available": await self._accounts.available(query.public_id)})


class LoginHandler(ApiHandler):
    public = True

    def initialize(self, accounts: Accounts, rate: Rate) -> None:
        self._accounts, self._rate = accounts, rate

    @operation(
        {200: SignedIn},
        refuses=(InvalidCredentials, AccountSuspended),
        limits={"rate_limit_login": "address"},
        cost=WRITES,
    )
    async def post(self, body: Login) -> None:
        """Log in, and open a new session.

        A wrong password and an unknown user get the same response in the same time. After 10 wrong passwords in 15
        minutes, each further attempt for that account waits for 2 seconds; none is refused.
        """
        await self.limit("login", self._rate)
        self.count_client()
        self.reply(await self._accounts.login(body, self.client))


class RefreshHandler(ApiHandler):
    public = True

    def initialize(self, sessions: Sessions, rate: Rate, unknown_rate: Rate) -> None:
        self._sessions, self._rate, self._unknown_rate = sessions, rate, unknown_rate

    @operation(
        {200: Refreshed},
        refuses=(TokenReused, AccountSuspended),
        limits={
            "rate_limit_refresh": "session",
            "rate_limit_refresh_unknown": "address, of tokens that Redis doesn't know",
        },
        cost=WRITES,
    )
    async def post(self, body: Refresh) -> None:
        """Exchange a refresh token for its successor.

        A refresh token works once, for 30 days; a session lasts for 180. You may send the token that you spent last
        again for 30 seconds (`REFRESH_GRACE_SECONDS`) while its successor is unused, and get the same successor: a lost
        response logs no user out. Any other spent token ends the session and closes its sockets with 4401.

        Send no `Authorization` header: an expired access token is 401 here, too.
        """
        token = body.refresh_token
        if await self._sessions.is_cached(token):
            # Each leaves a row for as long as the session may last. Only the token's owner can use up this limit.
            await self.limit("refresh", self._rate, str(family(token)))
        else:
            await self.limit("refresh-unknown", self._unknown_rate)
        self.count_client()
        self.reply(await self._sessions.refresh(token, self.client))


class ResetPasswordHandler(ApiHandler):
    public = True

    def initialize(self, accounts: Accounts, rate: Rate, challenge_rate: Rate) -> None:
        self._accounts, self._rate, self._challenge_rate = accounts, rate, challenge_rate

    @operation(
        {200: SignedIn},
        refuses=(ProofRequired, InvalidProof, InvalidCredentials, AccountSuspended),
        limits={
            "rate_limit_reset_challenge": "address, without a proof",
            "rate_limit_reset_password": "address, with one",
        },
        cost=WRITES,
    )
    async def post(self, body: ResetPassword) -> None:
        """Set a new password by proving that you have the keys.

        Without `challenge` and `signature` nothing changes, and 428 returns a challenge, for any key, known or not.
        Send the same body again with both. The signature is by the signing key (Ed25519) or the identity key (XEdDSA),
        over the text `mimu-reset-v1|{identity_key}|{challenge}|{sha256}`, where `identity_key` is the standard padded
        base64 of its 32 bytes and `sha256` the hex digest of `new_password`. A challenge works once, for `expires_in`
        seconds. The response is one new session; every other session ends.
        """
        if body.challenge is None or body.signature is None:
            await self.limit("reset-challenge", self._challenge_rate)
            raise self._accounts.challenge(body.identity_key)
        await self.limit("reset-password", self._rate)
        self.reply(await self._accounts.reset_password(body, self.client))


class LogoutHandler(ApiHandler):
    def initialize(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @operation({204: None}, refuses=(NotFound,), cost=DEFENDS)
    async def post(self, body: Logout | None = None) -> None:
        """End this session, or all sessions of the user."""
        if body is not None and body.all:
            await self._sessions.end_all(self.session.user_id)
        else:
            await self._sessions.end(self.session.user_id, self.session.session_id)
        self.reply_nothing()


class SessionsHandler(ApiHandler):
    def initialize(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @operation({200: Answer(list[LiveSession], headers=PAGED)}, cost=DEFENDS)
    async def get(self, query: SessionsQuery) -> None:
        """List your sessions, the one used last first."""
        await self.reserve()
        own = self.session
        sessions = await self._sessions.list_live(own.user_id, own.session_id, query.limit + 1, query.cursor)
        reply_page(self, query, sessions, "last_used_at", "id")


class SessionHandler(ApiHandler):
    def initialize(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @operation({204: None}, refuses=(NotFound,), cost=DEFENDS)
    async def delete(self, session_id: UUID) -> None:
        """End one of your sessions; another user's is 404.

        Every instance refuses its tokens within a second (15 while Redis is away), and its sockets close with 4401.
        """
        await self._sessions.end(self.session.user_id, session_id)
        self.reply_nothing()


class ChangePasswordHandler(ApiHandler):
    def initialize(self, accounts: Accounts, rate: Rate) -> None:
        self._accounts, self._rate = accounts, rate

    @operation(
        {204: None}, refuses=(InvalidCredentials, Conflict), limits={"rate_limit_login": "address"}, cost=DEFENDS
    )
    async def post(self, body: ChangePassword) -> None:
        """Change your password; every other session ends."""
        await self.limit("login", self._rate)
        await self._accounts.change_password(self.session, body)
        self.reply_nothing()
