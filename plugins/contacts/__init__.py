"""Contacts: whose fingerprint one has compared, and whom one has blocked (contract section 3)."""

from __future__ import annotations

from config.settings import Section
from plugins import App, Plugin
from plugins.contacts import http
from plugins.contacts.contacts import Contacts


class Settings(Section):
    """Nothing to set."""


def setup(app: App, settings: Settings) -> Plugin:
    given = {"contacts": Contacts(app.db, app.alerts)}
    return Plugin(
        name="contacts",
        routes=(
            ("/users/me/verifications", http.Verifications, given),
            ("/users/me/blocks", http.Blocks, given),
            ("/users/([A-Za-z0-9_]{3,32})/verify", http.Verify, given),
            ("/users/([A-Za-z0-9_]{3,32})/block", http.Block, given),
        ),
    )
