"""Accounts and sessions: ``/auth`` (contract section 2)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from pydantic import Field

from config.signal import SignalSettings
from config.values import Rate, RateLimit
from plugins import App, Every, Plugin
from plugins.auth import http
from plugins.auth.accounts import Accounts
from plugins.auth.sessions import Sessions


class Settings(SignalSettings):
    refresh_grace_seconds: int = Field(
        30,
        ge=0,
        le=300,
        description="Seconds in which a client that lost the answer may repeat a refresh token that was just "
        "replaced. 0 treats each repeated token as stolen.",
    )
    rate_limit_register: RateLimit = Field(Rate(3, 3600), description="Successful registrations per IP address.")
    rate_limit_register_failed: RateLimit = Field(Rate(20, 3600), description="Failed registrations per IP address.")
    rate_limit_available: RateLimit = Field(
        Rate(30, 3600), description="Checks per IP address whether a public id is free."
    )
    rate_limit_login: RateLimit = Field(Rate(5, 900), description="Logins per IP address.")
    rate_limit_refresh: RateLimit = Field(
        Rate(200, 86_400),
        description="Token refreshes per session. Each one leaves a row for as long as the session lives.",
    )
    rate_limit_refresh_unknown: RateLimit = Field(
        Rate(30, 900), description="Token refreshes per IP address with tokens that Redis doesn't know."
    )
    rate_limit_reset_password: RateLimit = Field(
        Rate(3, 3600), description="Password resets with proof per IP address."
    )
    rate_limit_reset_challenge: RateLimit = Field(
        Rate(10, 3600), description="Challenges for a password reset per IP address."
    )


def setup(app: App, settings: Settings) -> Plugin:
    sessions = Sessions(app.db, app.redis, app.tokens, app.revocations, settings.refresh_grace_seconds)
    accounts = Accounts(
        app.db, app.passwords, sessions, app.revocations, app.tokens.keyring, libsignal=settings.libsignal
    )
    password_checked = {"accounts": accounts, "rate": settings.rate_limit_login}

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await sessions.catch_up()
        yield

    return Plugin(
        name="auth",
        guide="clients.md",
        routes=(
            (
                "/auth/register",
                http.RegisterHandler,
                {
                    "accounts": accounts,
                    "rate": settings.rate_limit_register,
                    "failed_rate": settings.rate_limit_register_failed,
                },
            ),
            ("/auth/available", http.AvailableHandler, {"accounts": accounts, "rate": settings.rate_limit_available}),
            ("/auth/login", http.LoginHandler, password_checked),
            (
                "/auth/refresh",
                http.RefreshHandler,
                {
                    "sessions": sessions,
                    "rate": settings.rate_limit_refresh,
                    "unknown_rate": settings.rate_limit_refresh_unknown,
                },
            ),
            (
                "/auth/reset-password",
                http.ResetPasswordHandler,
                {
                    "accounts": accounts,
                    "rate": settings.rate_limit_reset_password,
                    "challenge_rate": settings.rate_limit_reset_challenge,
                },
            ),
            ("/auth/logout", http.LogoutHandler, {"sessions": sessions}),
            ("/auth/sessions", http.SessionsHandler, {"sessions": sessions}),
            ("/auth/sessions/([0-9a-fA-F-]{36})", http.SessionHandler, {"sessions": sessions}),
            ("/auth/change-password", http.ChangePasswordHandler, password_checked),
        ),
        # Every 10 s: with Redis away a revoked session must be rejected within 15 s (contract section 2).
        periodic=(Every(10, sessions.catch_up, "ended_sessions"),),
        lifespan=lifespan,
    )
