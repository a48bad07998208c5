"""Bring the database up to date: ``python -m scripts.migrate``. Safe to run again, and from several places at once.

Servers may run meanwhile. A change that can't be made at once because a table is in use lets the others go first, and
is tried again for ten minutes; what is waited for is said on standard error.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import asyncpg
from pydantic import Field

if not __package__:  # python scripts/migrate.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.settings import DatabaseUrl, Section, SettingsError, load
from models.postgres import migrations
from models.postgres.hosts import describe
from scripts import command

WRONG_SETTINGS = 78  # sysexits.h: EX_CONFIG


class Address(Section):
    """All that it must know: it runs before there are the secrets that a server wants."""

    database_url: DatabaseUrl | None = Field(None, description="The database to bring up to date.")


async def run(dsn: str, *, check: bool, as_json: bool) -> int:
    """0 when the database is (now) up to date; with ``check`` nothing is changed, and 1 says that something is due."""
    if check:
        due = sorted(set(migrations.versions()) - set(await migrations.applied(dsn)))
        _say(as_json, {"due": due}, f"due: {', '.join(due)}" if due else "up to date")
        return 1 if due else 0
    done = await migrations.migrate(dsn, report=lambda text: print(text, file=sys.stderr, flush=True))
    _say(as_json, {"applied": done}, f"applied: {', '.join(done)}" if done else "up to date")
    return 0


def _say(as_json: bool, value: object, text: str) -> None:
    print(json.dumps(value) if as_json else text)


def main() -> int:
    parser = command.parser("migrate", __doc__)
    parser.add_argument("--env-file", type=Path, help="read settings from this file (default: .env beside server.py)")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a migration is due")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    arguments = parser.parse_args()
    try:
        [address] = load({"": Address}, command.given(arguments.env_file)).values()
    except SettingsError as error:
        print("\n".join(error.faults), file=sys.stderr)
        return WRONG_SETTINGS
    assert isinstance(address, Address)
    if address.database_url is None:
        print("DATABASE_URL: missing; the embedded database is migrated by the server itself", file=sys.stderr)
        return WRONG_SETTINGS
    try:
        dsn = address.database_url.get_secret_value()
        return asyncio.run(run(dsn, check=arguments.check, as_json=arguments.json))
    except (migrations.MigrationError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        print(f"migration failed: {str(error) or describe(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
