"""Retention: how long the database keeps rows that are no longer in use."""

from __future__ import annotations

from pydantic import Field

from config.settings import Section


class Retention(Section):
    """Settings of the servers, which clean up every hour, and of ``scripts.cleanup``."""

    # Contract section 3: a user who fetched a bundle just before its signed prekey was replaced has this long to write.
    # Used keys are kept for as long, since they belong to the same bundles.
    prekey_retention_days: int = Field(
        30, ge=30, le=3650, description="Days for which used and replaced prekeys are kept."
    )
    # For a week after a logout the operator can still answer why it happened, and an app that was offline over the
    # weekend receives the reason (token_reused, account_suspended), not only that its token is unknown.
    session_retention_days: int = Field(
        7,
        ge=1,
        le=3650,
        description="Days for which ended sessions are kept, so that an app learns why it was logged out.",
    )
    # The call history of the apps. It is sensitive metadata, so a server keeps it for a year, not for ever.
    call_retention_days: int = Field(
        365,
        ge=0,
        le=36500,
        description="Days for which calls are kept, the call history of the apps; 0 keeps them for ever.",
    )
    # Contract section 7. A phone that was off for longer takes a new cursor and lists its chats.
    sync_retention_days: int = Field(
        30,
        ge=1,
        le=365,
        description="Days for which /sync reports what happened in chats. A device that was away for longer "
        "starts with a new cursor.",
    )
    # For a quarter of a year users may still ask about a subscription that ended. After that its owner is deleted; that
    # a payment was used is kept for ever, as a hash without a name.
    subscription_retention_days: int = Field(
        90,
        ge=1,
        le=3650,
        description="Days for which ended subscriptions are kept. That a payment was used is kept for ever.",
    )
