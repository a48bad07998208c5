"""Contacts: verified fingerprints, and blocks (contract section 3)."""

from __future__ import annotations

from config.settings import Section
from handlers.wire.shapes import USER
from plugins import App, Plugin
from plugins.contacts import http
from plugins.contacts.contacts import Contacts


class Settings(Section):
    """Nothing to set."""


def setup(app: App, settings: Settings) -> Plugin:
    arguments = {"contacts": Contacts(app.db, app.alerts, app.hub)}
    return Plugin(
        name="contacts",
        guide="messaging.md#blocks",
        routes=(
            ("/users/me/verifications", http.Verifications, arguments),
            ("/users/me/blocks", http.Blocks, arguments),
            (f"/users/{USER}/verify", http.Verify, arguments),
            (f"/users/{USER}/block", http.Block, arguments),
        ),
    )
