"""Bring the database up to date: ``python -m scripts.migrate``. Safe to run again, and from several places at once.

Servers may run meanwhile. A change that can't be made at once because a table is in use lets the others go first, and
is tried again for ten minutes; what is waited for is said on standard error.
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
    """All that it must know: it runs before there are the secrets that a server wants."""

    database_url: DatabaseUrl | None = Field(None, description="The database to bring up to date.")


async def run(options: argparse.Namespace) -> int:
    """0 when the database is (now) up to date. ``--check`` changes nothing, and 1 means that something is due."""
    dsn = _address(options)
    if options.check:
        due = sorted(set(migrations.versions()) - set(await migrations.applied(dsn)))
        _say(options.json, {"due": due}, f"due: {', '.join(due)}" if due else "up to date")
        return 1 if due else 0
    done = await migrations.migrate(dsn, report=lambda text: print(text, file=sys.stderr, flush=True))
    _say(options.json, {"applied": done}, f"applied: {', '.join(done)}" if done else "up to date")
    return 0


def _address(options: argparse.Namespace) -> str:
    """The address of the database. Raises SettingsError."""
    [address] = load({"": Address}, command.read_settings(options.env_file)).values()
    assert isinstance(address, Address)
    if address.database_url is None:
        raise SettingsError(["DATABASE_URL: missing; the embedded database is migrated by the server itself"])
    return address.database_url.get_secret_value()


def _say(as_json: bool, value: object, text: str) -> None:
    print(json.dumps(value) if as_json else text)


def main() -> int:
    parser = command.parser("migrate", __doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a migration is due")
    command.common(parser)
    options = parser.parse_args()
    return command.run(lambda: run(options), failed="migration failed", failures=(migrations.MigrationError,))


if __name__ == "__main__":
    sys.exit(main())
