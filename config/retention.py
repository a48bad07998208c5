"""Retention: for how long the database keeps what has served its purpose."""

from __future__ import annotations

from pydantic import Field

from config.settings import Section


class Retention(Section):
    """Read by the servers, which clean up every hour, and by ``scripts.cleanup``."""

    # Contract section 3: whoever fetched a bundle just before its signed prekey was replaced has this long to write.
    # Used keys are kept as long, since they belong to the same bundles.
    prekey_retention_days: int = Field(
        30, ge=30, le=3650, description="Days for which used and replaced prekeys are kept."
    )
    # A week after a logout somebody may still ask what signed them out, and an app that was away over the weekend is
    # told why (token_reused, account_suspended) and not only that its token is unknown.
    session_retention_days: int = Field(
        7,
        ge=1,
        le=3650,
        description="Days for which ended sessions are kept, so that an app learns why it was logged out.",
    )
    # What apps show as the call history. Who called whom is what a server should know least of: a year, not for ever.
    call_retention_days: int = Field(
        365,
        ge=0,
        le=36500,
        description="Days for which calls are kept, the call history of the apps; 0 keeps them for ever.",
    )
    # Contract section 7. A phone in a drawer for longer takes a new cursor and lists its chats.
    sync_retention_days: int = Field(
        30,
        ge=1,
        le=365,
        description="Days for which /sync reports what happened in chats. A device that was away for longer "
        "starts with a new cursor.",
    )
    # A quarter of a year after the end somebody may still ask what became of it. For longer it is nobody's business who
    # had one; that a payment was used is kept for good, as a hash beside no name.
    subscription_retention_days: int = Field(
        90,
        ge=1,
        le=3650,
        description="Days for which ended subscriptions are kept. That a payment was used is kept for ever.",
    )
