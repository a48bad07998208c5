"""Show an account, suspend it, sign it out or delete it: ``python -m scripts.users COMMAND PUBLIC_ID``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

if not __package__:  # python scripts/users.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import channels, settings
from config.settings import Core, SettingsError
from models import accounts, prekeys, sessions
from models.accounts import Change
from models.database import Database, Row
from scripts import command

COMMANDS = {
    "show": "show its sessions, remaining prekeys, and if it is suspended; no keys, hashes or tokens",
    "suspend": "end all its sessions, and reject further sign-ins",
    "unsuspend": "allow sign-ins again",
    "end-sessions": "end all its sessions",
    "delete": "erase it for ever, as its owner can",
}
CHANGES: dict[str, Callable[[Database, Any, str], Awaitable[Change | None]]] = {
    "suspend": accounts.suspend,
    "unsuspend": accounts.unsuspend,
    "end-sessions": accounts.end_sessions,
    "delete": accounts.delete,
}
EPILOG = """\
Each change is recorded in the table audit_log. Sockets are closed at once, or within ten seconds if Redis is away.
Settings: DATABASE_URL, REDIS_URL; without them the embedded services of the server that runs in MIMU_DATA_DIR. Exit
codes: 0 done (also when nothing had to change), 1 no such user or failed, 2 wrong usage, 78 wrong settings.
"""


def _actor() -> str:
    return command.user(command.STARTED_BY)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Ends the program with 2 if it is wrong."""
    parser = command.parser("users", __doc__, EPILOG)
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        verb = command.verb(verbs, name, purpose)
        verb.add_argument("public_id", metavar="PUBLIC_ID", help="the account; upper and lower case are the same")
        command.common(verb)
        if name in CHANGES:
            verb.add_argument("--dry-run", action="store_true", help="change nothing; print the result")
            verb.add_argument(
                "--actor", type=command.label, default=_actor(), help="who does it (default: %(default)s)"
            )
        if name == "delete":
            verb.add_argument("--yes", action="store_true", help="don't ask")
    return parser.parse_args(words)


async def run(options: argparse.Namespace, core: Core) -> int:
    """Run the command, and print its result."""
    async with Database(await command.cluster(core), max_connections=2).open() as db:
        # Check the form first: PostgreSQL rejects some texts, such as those with a NUL.
        possible = re.fullmatch("[A-Za-z0-9_]{3,32}", options.public_id)
        found = await accounts.find(db, options.public_id) if possible else None
        if found is None:
            return command.fail("there is no such user")
        if options.command == "show":
            _print_result(options, await _describe(db, found))
            return 0
        if options.dry_run:
            _print_result(options, {"dry_run": True, **_predict(options.command, found)})
            return 0
        if options.command == "delete" and not options.yes:
            name = found["public_id"]
            if not await command.confirm(f"This erases {name} for ever.", name):
                return command.fail("not confirmed; nothing was changed")
        change = await CHANGES[options.command](db, found["id"], options.actor)
    if change is None:
        return command.fail("there is no such user any more")
    if change.ended:
        await _announce(core, change.ended)
    _print_result(options, _result(options.command, found, changed=change.changed, ended=len(change.ended)))
    return 0


async def _describe(db: Database, found: Row) -> dict[str, object]:
    remaining = await prekeys.remaining(db, found["id"])
    signed = await prekeys.signed_prekey(db, found["id"])
    return {
        "user_id": str(found["id"]),
        "public_id": found["public_id"],
        "created_at": command.format_time(found["created_at"]),
        "is_online": found["is_online"],
        "last_seen": command.format_time(found["last_seen"]),
        "suspended_at": command.format_time(found["suspended_at"]),
        "one_time_prekeys": remaining.one_time,
        "kyber_prekeys": remaining.kyber,
        "signed_prekey_created_at": command.format_time(signed["created_at"] if signed else None),
        "sessions": [
            {
                "id": str(session["id"]),
                "platform": session["platform"],
                "client_version": session["client_version"],
                "created_at": command.format_time(session["created_at"]),
                "last_used_at": command.format_time(session["last_used_at"]),
            }
            for session in await sessions.live(db, found["id"])
        ],
    }


def _predict(command: str, found: Row) -> dict[str, object]:
    """Return the result that the change would have now."""
    ended = 0 if command == "unsuspend" else found["endable"]
    changed = {
        "suspend": found["suspended_at"] is None or ended > 0,
        "unsuspend": found["suspended_at"] is not None,
        "end-sessions": ended > 0,
        "delete": True,
    }
    return _result(command, found, changed=changed[command], ended=ended)


def _result(command: str, found: Row, *, changed: bool, ended: int) -> dict[str, object]:
    return {
        "action": command,
        "user_id": str(found["id"]),
        "public_id": found["public_id"],
        "changed": changed,
        "sessions_ended": ended,
    }


async def _announce(core: Core, ended: Sequence[sessions.Ended]) -> None:
    """Notify the servers, after the commit. They also read the database every ten seconds, so it is no failure if Redis
    is away."""
    once = Retry(NoBackoff(), 0)
    try:
        redis_url = command.redis(core)
        async with Redis.from_url(redis_url, socket_connect_timeout=1, socket_timeout=2, retry=once) as redis:
            await redis.publish(channels.SESSIONS_ENDED, channels.sessions_ended(ended))
    except SettingsError as error:
        print(f"{error}; the servers will notice within ten seconds", file=sys.stderr)
    except (RedisError, OSError, TimeoutError) as error:
        print(f"Redis is away ({type(error).__name__}); the servers will notice within ten seconds", file=sys.stderr)


def _print_result(options: argparse.Namespace, result: dict[str, object]) -> None:
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if isinstance(value, list):
            print(f"{name}: {len(value)}")
            for item in value:
                print("  " + ", ".join(f"{key} {_plain(part)}" for key, part in item.items()))
        else:
            print(f"{name}: {_plain(value)}")


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else value


def main() -> int:
    options = parse()
    return command.run(lambda: run(options, settings.core(command.read_settings(options.env_file))), failed="failed")


if __name__ == "__main__":
    sys.exit(main())
