"""Make codes that buy a subscription, look at them, revoke them: ``python -m scripts.vouchers COMMAND``."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg

sys.path.append(str(Path(__file__).resolve().parent.parent))  # python scripts/vouchers.py works as well

from config import embedded
from config.settings import Core, SettingsError, environment, load
from config.tiers import SOLD
from models import subscriptions, vouchers
from models.database import Database, Row, Unavailable

NOT_DONE, WRONG_SETTINGS = 1, 78  # sysexits.h: EX_CONFIG; argparse itself ends with 2
MOST = 10_000  # codes at a time; a statement that takes 1.5 s is given up

EPILOG = """\
Codes are shown once, when they are made, one a line: only their hashes are kept. They are read whatever the case and
the hyphens, and with O for 0 and I or L for 1. WHICH is an id as list shows it, or - to read codes or ids from standard
input, one a line, so that they show in no list of processes.
Settings: DATABASE_URL; without one the embedded PostgreSQL of the server that runs in MIMU_DATA_DIR. Exit codes: 0
done, 1 not all there or failed, 2 wrong usage, 78 wrong settings.
"""


def _number(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a number from 1 to {most}")
        return int(text)

    return read


def _batch(text: str) -> str:
    if not (text.isprintable() and 1 <= len(text.strip()) <= 100):
        raise argparse.ArgumentTypeError("expected a name of up to 100 characters")
    return text.strip()


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for; ends the program with 2 when that makes no sense."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="scripts.vouchers", description=__doc__, epilog=EPILOG, formatter_class=raw, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    purposes = {
        "create": "make codes, and show them this once",
        "list": "show which there are, without their codes",
        "revoke": "keep codes from being used",
    }
    made = {
        name: commands.add_parser(
            name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", allow_abbrev=False
        )
        for name, purpose in purposes.items()
    }
    for command in made.values():
        command.add_argument("--env-file", type=Path, help="read settings from this file (default: .env)")
        command.add_argument("--json", action="store_true", help="answer in JSON")
    create, listing, revoke = made.values()
    create.add_argument("--tier", required=True, choices=SOLD, help="what they buy")
    create.add_argument("--days", required=True, type=_number(3660), help="for how many days")
    create.add_argument("--count", type=_number(MOST), default=1, help="how many codes (default: 1)")
    create.add_argument("--valid-days", type=_number(3660), help="for how long they can be used (default: for ever)")
    create.add_argument("--batch", type=_batch, help="a name, to find and revoke them together")
    for command in (create, revoke):
        command.add_argument("--dry-run", action="store_true", help="change nothing; say what would be changed")
    listing.add_argument("--batch", type=_batch, help="only those of that batch")
    listing.add_argument("--state", choices=("good", "used", "revoked", "expired"), help="only those")
    listing.add_argument("--code", action="store_true", help="only the one whose code comes from standard input")
    revoke.add_argument("which", metavar="WHICH", nargs="*", help="an id, or -")
    revoke.add_argument("--batch", type=_batch, help="all those of that batch")
    revoke.add_argument("--cancel", action="store_true", help="of used ones, end what they bought")
    asked = parser.parse_args(words)
    if asked.command == "revoke" and bool(asked.which) == bool(asked.batch):
        parser.error("name vouchers, or a --batch")
    return asked


async def run(asked: argparse.Namespace, dsn: str) -> int:
    """Do what was asked for, and say what that was."""
    async with Database(dsn, max_connections=2).open() as db:
        if asked.command == "create":
            return await _create(asked, db)
        if asked.command == "list":
            return await _list(asked, db)
        return await _revoke(asked, db)


async def _create(asked: argparse.Namespace, db: Database) -> int:
    if asked.dry_run:
        print(json.dumps({"dry_run": True, "codes": asked.count}) if asked.json else f"codes: {asked.count}")
        return 0
    expires = datetime.now(UTC) + timedelta(days=asked.valid_days) if asked.valid_days else None
    codes = await vouchers.create(db, asked.tier, asked.days, asked.count, expires_at=expires, batch=asked.batch)
    print(json.dumps(codes) if asked.json else "\n".join(codes))
    return 0


async def _list(asked: argparse.Namespace, db: Database) -> int:
    code_hash = None
    if asked.code:
        code = vouchers.read(sys.stdin.readline())
        if code is None:
            return _fail("that is no code; something in it is mistyped")
        code_hash = subscriptions.proof_hash("voucher", code)
    rows = await vouchers.listed(db, proof_hash=code_hash, batch=asked.batch, state=asked.state)
    if asked.json:
        print(json.dumps([_shown(row) for row in rows]))
    else:
        for row in rows:
            ended = row["used_at"] or row["revoked_at"] or row["expires_at"]
            parts = (
                row["id"],
                row["tier"],
                f"{row['days']} days",
                row["state"],
                _time(ended) or "-",
                row["batch"] or "-",
            )
            print("  ".join(str(part) for part in parts))
    return 0


async def _revoke(asked: argparse.Namespace, db: Database) -> int:
    ids, hashes, wrong = [], [], 0
    given = [word for word in asked.which if word != "-"]
    given += [line.strip() for line in sys.stdin if line.strip()] if "-" in asked.which else []
    for word in given:
        code = vouchers.read(word)
        if code is not None:
            hashes.append(subscriptions.proof_hash("voucher", code))
            continue
        try:
            ids.append(UUID(word))
        except ValueError:
            wrong += 1
    found = await vouchers.revoke(db, ids=ids, hashes=hashes, batch=asked.batch, dry_run=asked.dry_run)
    states = [row["state"] for row in found]
    cancelled = 0
    if asked.cancel and not asked.dry_run:
        for row in found:
            if row["state"] == "used":
                cancelled += bool(await subscriptions.cancel(db, row["proof_hash"]))
    missing = wrong + len(set(ids)) + len(set(hashes)) - len(found) if asked.which else int(not found)
    told = {
        "revoked": states.count("revoked"),
        "used": states.count("used"),
        "cancelled": cancelled,
        "missing": missing,
    }
    if asked.dry_run:
        told = {"dry_run": True, **told}
    print(json.dumps(told) if asked.json else "\n".join(f"{name}: {number}" for name, number in told.items()))
    return NOT_DONE if missing else 0


def _shown(row: Row) -> dict[str, object]:
    times = {name: _time(row[name]) for name in ("created_at", "expires_at", "used_at", "revoked_at")}
    return {"id": str(row["id"]), **{name: row[name] for name in ("tier", "days", "batch", "state")}, **times}


def _time(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None


def _fail(reason: str) -> int:
    print(reason, file=sys.stderr)
    return NOT_DONE


def main() -> int:
    asked = parse()
    try:
        core = load({"": Core}, environment(asked.env_file))[""]
    except SettingsError as error:
        print("\n".join(error.faults), file=sys.stderr)
        return WRONG_SETTINGS
    assert isinstance(core, Core)
    dsn = core.database_url.get_secret_value() if core.database_url else embedded.postgres_of(core.mimu_data_dir)
    if dsn is None:
        print("DATABASE_URL: missing, and no server runs its own PostgreSQL in MIMU_DATA_DIR", file=sys.stderr)
        return WRONG_SETTINGS
    try:
        return asyncio.run(run(asked, dsn))
    except (Unavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        return _fail(f"failed: {error}")
    except KeyboardInterrupt:
        return _fail("interrupted")


if __name__ == "__main__":
    sys.exit(main())
