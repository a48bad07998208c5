"""Cleanup: what ``python -m scripts.cleanup`` does, done by the servers themselves every hour."""

from __future__ import annotations

import structlog

from config.retention import Retention
from models import cleanup
from models.database import Database
from plugins import App, Every, Plugin

log = structlog.get_logger(__name__)

Settings = Retention

INTERVAL = 3600  # seconds; nothing here is so large or so secret that an hour matters
# A server that stops waits for the run in flight, and has 30 s in all before it is killed. With the rests between, 10 s
# are some 100,000 rows: two millions a day for each instance. What is more than that is for the script.
SECONDS = 10.0


class Cleanup:
    def __init__(self, db: Database, retention: Retention) -> None:
        self._db, self._retention = db, retention

    async def run(self) -> None:
        """Remove what is due, and log how much that was."""
        removed = await cleanup.clean(self._db, self._retention, seconds=SECONDS)
        if any(removed.values()):
            log.info("cleaned_up", **{table: number for table, number in removed.items() if number})


def setup(app: App, settings: Settings) -> Plugin:
    return Plugin(name="cleanup", periodic=(Every(INTERVAL, Cleanup(app.db, settings).run, "cleanup"),))
