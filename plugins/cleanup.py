"""Cleanup: the servers themselves do the work of ``python -m scripts.cleanup`` every hour."""

from __future__ import annotations

from collections import Counter

import structlog

from config.retention import Retention
from models import cleanup
from models.database import Database
from models.sweeps import Sweeper, Watch
from plugins import App, Every, Plugin

log = structlog.get_logger(__name__)

Settings = Retention

INTERVAL = 3600  # seconds; nothing here is so large or so secret that an hour matters
# A server that stops waits for the run in progress, and has 30 s in total before it is killed. With the pauses between
# batches, 10 s are some 100,000 rows: two million a day for each instance. For more there is the script.
RUN_SECONDS = 10.0


class Cleanup:
    def __init__(self, db: Database, watch: Watch, retention: Retention) -> None:
        self._removed: Counter[str] = Counter()
        self._sweeper = Sweeper(db, watch, *cleanup.sweeps(db, retention, self._removed.update))

    async def run(self) -> None:
        """Remove rows that are due, and log how many."""
        self._removed.clear()
        try:
            await self._sweeper.run(RUN_SECONDS)
        finally:
            if self._removed.total():
                log.info("cleaned_up", **{table: number for table, number in self._removed.items() if number})


def setup(app: App, settings: Settings) -> Plugin:
    return Plugin(name="cleanup", periodic=(Every(INTERVAL, Cleanup(app.db, app.sweeps, settings).run, "cleanup"),))
