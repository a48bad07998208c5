"""Remove expired rows and files: ``python -m scripts.cleanup``. Safe beside running servers and other cleanups."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # python scripts/cleanup.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.retention import Retention
from config.settings import Core, Section, load
from config.storage import StorageSettings
from models import cleanup, files, orphans
from models.database import Database
from models.storage import opened
from scripts import command
from scripts.progress import progress

STORED = "stored_files"  # not a table: the files that are removed from the storage

EPILOG = """\
Removes used and replaced prekeys after PREKEY_RETENTION_DAYS (30), ended sessions after SESSION_RETENTION_DAYS (7),
calls after CALL_RETENTION_DAYS (365; 0 keeps them for ever), events of chats and the remains of deleted messages and
chats after SYNC_RETENTION_DAYS (30), subscriptions SUBSCRIPTION_RETENTION_DAYS (90) after their end, unfinished uploads
after a day, answered reset challenges and the list of ended sessions as soon as nothing depends on them, and from the
storage the bytes of deleted files (on a local disk those in this machine's MIMU_DATA_DIR). Servers do the same every
hour, and for files every minute. Use this after years without cleanup, or if that feature is switched off. You can
interrupt it at any time. Exit codes: 0 done, 1 failed, 78 wrong settings.
"""


async def run(options: argparse.Namespace) -> int:
    """Clean up, or with ``--dry-run`` only count what is due. Prints the number of rows of each table, and of files."""
    wanted: dict[str, type[Section]] = {"": Core, "cleanup": Retention, "files": StorageSettings}
    core, retention, stored = load(wanted, command.read_settings(options.env_file)).values()
    assert isinstance(core, Core) and isinstance(retention, Retention) and isinstance(stored, StorageSettings)
    where = await command.cluster(core)
    storage = opened.storage(stored, core.mimu_data_dir)
    with progress() as report:
        async with Database(where, max_connections=2).open() as db:
            if options.dry_run:
                rows = await cleanup.due(db, retention)
                bodies = await files.waiting(db)
            else:
                rows = await cleanup.clean(
                    db, retention, report=lambda gone: report(f"{sum(gone.values())} rows removed")
                )
                async with storage.running():
                    bodies = await orphans.remove(db, storage)
    if bodies:
        rows[STORED] = bodies
    what = "due" if options.dry_run else "removed"
    if options.json:
        print(json.dumps({what: rows}))
    else:
        result = [f"{number:>10}  {table}" for table, number in rows.items() if number]
        print("\n".join([f"{what}:", *result]) if result else f"nothing {what}")
    return 0


def main() -> int:
    parser = command.parser("cleanup", __doc__, EPILOG)
    command.common(parser)
    parser.add_argument("--dry-run", action="store_true", help="change nothing; count the rows that would be removed")
    options = parser.parse_args()
    return command.run(
        lambda: run(options), failed="cleanup failed", interrupted="interrupted; rows that were removed stay removed"
    )


if __name__ == "__main__":
    sys.exit(main())
