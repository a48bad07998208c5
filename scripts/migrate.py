"""Migrate the database: ``python -m scripts.migrate``. Safe to run again, and from several machines at once.

Servers may keep running. A change to a table that is in use waits without blocking others, and is retried for ten
minutes; standard error shows which change waits.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pydantic import Field

if not __package__:  # python scripts/migrate.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.settings import Section, SettingsError, load
from config.values import DatabaseUrl
from models.postgres import migrations
from scripts import command


class Address(Section):
    """The only setting that it reads: it may run before a server's secrets exist."""

    database_url: DatabaseUrl | None = Field(None, description="The database to migrate.")


async def run(options: argparse.Namespace) -> int:
    """Migrate the database; returns 0. With ``--check`` change nothing, and return 1 if a migration is due."""
    dsn = _address(options)
    if options.check:
        due = sorted(set(migrations.versions()) - set(await migrations.applied(dsn)))
        _print_result(options.json, {"due": due}, f"due: {', '.join(due)}" if due else "up to date")
        return 1 if due else 0
    done = await migrations.migrate(dsn, report=lambda text: print(text, file=sys.stderr, flush=True))
    _print_result(options.json, {"applied": done}, f"applied: {', '.join(done)}" if done else "up to date")
    return 0


def _address(options: argparse.Namespace) -> str:
    """Return the URL of the database. Raises SettingsError."""
    [address] = load({"": Address}, command.read_settings(options.env_file)).values()
    assert isinstance(address, Address)
    if address.database_url is None:
        raise SettingsError(["DATABASE_URL: missing; the server migrates the embedded database itself"])
    return address.database_url.get_secret_value()


def _print_result(as_json: bool, value: object, text: str) -> None:
    print(json.dumps(value) if as_json else text)


def main() -> int:
    parser = command.parser("migrate", __doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a migration is due")
    command.common(parser)
    options = parser.parse_args()
    return command.run(lambda: run(options), failed="migration failed", failures=(migrations.MigrationError,))


if __name__ == "__main__":
    sys.exit(main())
