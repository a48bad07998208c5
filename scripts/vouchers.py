"""Create codes that buy a subscription, list them, revoke them: ``python -m scripts.vouchers COMMAND``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

if not __package__:  # python scripts/vouchers.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import settings
from config.settings import Core
from config.tiers import SOLD
from models import subscriptions, vouchers
from models.database import Database, Row
from scripts import command

MAX_CODES = 10_000  # at a time; a statement is cancelled after 1.5 s

EPILOG = """\
Codes are printed once, when they are created, one a line: only their hashes are stored. Case and hyphens don't matter,
O is read as 0, and I and L as 1. WHICH is an id as list prints it, or - to read codes or ids from standard input, one a
line, so that they appear in no list of processes.
Settings: DATABASE_URL; without it the embedded PostgreSQL of the server that runs in MIMU_DATA_DIR. Exit codes: 0 done,
1 failed, or some were not found, 2 wrong usage, 78 wrong settings.
"""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Ends the program with 2 if it is wrong."""
    parser = command.parser("vouchers", __doc__, EPILOG)
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    purposes = {
        "create": "create codes, and print them once",
        "list": "list vouchers, without their codes",
        "revoke": "make unused codes invalid",
    }
    create, listing, revoke = (command.verb(verbs, name, purpose) for name, purpose in purposes.items())
    for verb in (create, listing, revoke):
        command.common(verb)
    create.add_argument("--tier", required=True, choices=SOLD, help="the tier that they buy")
    create.add_argument("--days", required=True, type=command.number(1, 3660), help="for how many days")
    create.add_argument("--count", type=command.number(1, MAX_CODES), default=1, help="how many codes (default: 1)")
    create.add_argument(
        "--valid-days", type=command.number(1, 3660), help="days after which they expire (default: never)"
    )
    create.add_argument("--batch", type=command.label, help="a name, to find and revoke them together")
    for verb in (create, revoke):
        verb.add_argument("--dry-run", action="store_true", help="change nothing; print the result")
    listing.add_argument("--batch", type=command.label, help="only those of that batch")
    listing.add_argument("--state", choices=("good", "used", "revoked", "expired"), help="only those")
    listing.add_argument("--code", action="store_true", help="only the one whose code is on standard input")
    revoke.add_argument("which", metavar="WHICH", nargs="*", help="an id, or -")
    revoke.add_argument("--batch", type=command.label, help="all those of that batch")
    revoke.add_argument("--cancel", action="store_true", help="also end the subscriptions that used ones bought")
    options = parser.parse_args(words)
    if options.command == "revoke" and bool(options.which) == bool(options.batch):
        parser.error("name vouchers, or a --batch")
    return options


async def run(options: argparse.Namespace, core: Core) -> int:
    """Run the command, and print its result."""
    async with Database(await command.cluster(core), max_connections=2).open() as db:
        if options.command == "create":
            return await _create(options, db)
        if options.command == "list":
            return await _list(options, db)
        return await _revoke(options, db)


async def _create(options: argparse.Namespace, db: Database) -> int:
    if options.dry_run:
        print(json.dumps({"dry_run": True, "codes": options.count}) if options.json else f"codes: {options.count}")
        return 0
    expires = datetime.now(UTC) + timedelta(days=options.valid_days) if options.valid_days else None
    codes = await vouchers.create(
        db, options.tier, options.days, options.count, expires_at=expires, batch=options.batch
    )
    print(json.dumps(codes) if options.json else "\n".join(codes))
    return 0


async def _list(options: argparse.Namespace, db: Database) -> int:
    code_hash = None
    if options.code:
        code = vouchers.read(sys.stdin.readline())
        if code is None:
            return command.fail("this is not a code; check it for typing errors")
        code_hash = subscriptions.proof_hash("voucher", code)
    rows = await vouchers.listed(db, proof_hash=code_hash, batch=options.batch, state=options.state)
    if options.json:
        print(json.dumps([_describe(row) for row in rows]))
    else:
        for row in rows:
            ended = row["used_at"] or row["revoked_at"] or row["expires_at"]
            parts = (
                row["id"],
                row["tier"],
                f"{row['days']} days",
                row["state"],
                command.format_time(ended) or "-",
                row["batch"] or "-",
            )
            print("  ".join(str(part) for part in parts))
    return 0


async def _revoke(options: argparse.Namespace, db: Database) -> int:
    ids, hashes, wrong = [], [], 0
    words = [word for word in options.which if word != "-"]
    words += [line.strip() for line in sys.stdin if line.strip()] if "-" in options.which else []
    for word in words:
        code = vouchers.read(word)
        if code is not None:
            hashes.append(subscriptions.proof_hash("voucher", code))
            continue
        try:
            ids.append(UUID(word))
        except ValueError:
            wrong += 1
    found = await vouchers.revoke(db, ids=ids, hashes=hashes, batch=options.batch, dry_run=options.dry_run)
    states = [row["state"] for row in found]
    cancelled = 0
    if options.cancel and not options.dry_run:
        for row in found:
            if row["state"] == "used":
                cancelled += bool(await subscriptions.cancel(db, row["proof_hash"]))
    missing = wrong + len(set(ids)) + len(set(hashes)) - len(found) if options.which else int(not found)
    result = {
        "revoked": states.count("revoked"),
        "used": states.count("used"),
        "cancelled": cancelled,
        "missing": missing,
    }
    if options.dry_run:
        result = {"dry_run": True, **result}
    print(json.dumps(result) if options.json else "\n".join(f"{name}: {number}" for name, number in result.items()))
    return command.FAILED if missing else 0


def _describe(row: Row) -> dict[str, object]:
    times = {name: command.format_time(row[name]) for name in ("created_at", "expires_at", "used_at", "revoked_at")}
    return {"id": str(row["id"]), **{name: row[name] for name in ("tier", "days", "batch", "state")}, **times}


def main() -> int:
    options = parse()
    return command.run(lambda: run(options, settings.core(command.read_settings(options.env_file))), failed="failed")


if __name__ == "__main__":
    sys.exit(main())
