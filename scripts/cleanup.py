"""Remove what has served its purpose: ``python -m scripts.cleanup``. Safe beside running servers and other cleanups."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import asyncpg

from config.retention import Retention
from config.settings import Core, Section, SettingsError, environment, load
from config.storage import StorageSettings
from models import cleanup, files, orphans
from models.database import Database, Unavailable
from models.storage import Storage, StorageAway, opened

WRONG_SETTINGS = 78  # sysexits.h: EX_CONFIG
STORED = "stored_files"  # no table, but what is removed of the storage

EPILOG = """\
Used and superseded prekeys go after PREKEY_RETENTION_DAYS (30), ended sessions after SESSION_RETENTION_DAYS (7), calls
after CALL_RETENTION_DAYS (365; 0 keeps them for ever), events of chats, and what is left of deleted messages and chats,
after SYNC_RETENTION_DAYS (30), subscriptions SUBSCRIPTION_RETENTION_DAYS (90) after their end, uploads that were not
finished after a day, answered reset challenges and the list of ended sessions as soon as nothing depends on them; and
from the storage the bytes whose file is gone, on a local disk those of this machine's MIMU_DATA_DIR. Servers do the
same every hour, and files every minute; this is for whoever has years to catch up, or has switched that feature off. It
can be interrupted at any time. Exit codes: 0 done, 1 failed, 78 wrong settings.
"""


async def run(dsn: str, retention: Retention, storage: Storage, *, dry_run: bool, as_json: bool) -> int:
    """Clean up, or with ``dry_run`` only count what is due, and say how many rows, and files' bytes, that is."""
    try:
        async with Database(dsn, max_connections=2).open() as db:
            if dry_run:
                rows = await cleanup.due(db, retention)
                stored = await files.waiting(db)
            else:
                rows = await cleanup.clean(db, retention, tell=_progress)
                async with storage.running():
                    stored = await orphans.remove(db, storage)
            if stored:
                rows[STORED] = stored
    finally:
        if sys.stderr.isatty():
            print(end="\r\033[K", file=sys.stderr, flush=True)  # the line of progress
    what = "due" if dry_run else "removed"
    if as_json:
        print(json.dumps({what: rows}))
    else:
        told = [f"{number:>10}  {table}" for table, number in rows.items() if number]
        print("\n".join([f"{what}:", *told]) if told else f"nothing {what}")
    return 0


def _progress(removed: dict[str, int]) -> None:
    if sys.stderr.isatty():
        print(f"\r{sum(removed.values())} rows removed", end="", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts.cleanup",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--env-file", type=Path, help="read settings from this file (default: .env)")
    parser.add_argument("--dry-run", action="store_true", help="change nothing; count what would be removed")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    arguments = parser.parse_args()
    try:
        wanted: dict[str, type[Section]] = {"": Core, "cleanup": Retention, "files": StorageSettings}
        core, retention, stored = load(wanted, environment(arguments.env_file)).values()
    except SettingsError as error:
        print("\n".join(error.faults), file=sys.stderr)
        return WRONG_SETTINGS
    assert isinstance(core, Core) and isinstance(retention, Retention) and isinstance(stored, StorageSettings)
    if core.database_url is None:
        print("DATABASE_URL: missing; the embedded database is cleaned up by the server itself", file=sys.stderr)
        return WRONG_SETTINGS
    dsn = core.database_url.get_secret_value()
    try:
        storage = opened.storage(stored, core.mimu_data_dir)
        return asyncio.run(run(dsn, retention, storage, dry_run=arguments.dry_run, as_json=arguments.json))
    except (Unavailable, StorageAway, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        print(f"cleanup failed: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; what is removed stays removed", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
