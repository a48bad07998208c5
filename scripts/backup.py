"""Back up the database, the files and the secrets: ``python -m scripts.backup --output DIR``. Servers may run on."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if not __package__:  # python scripts/backup.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import last_backup, logs
from config.settings import Core
from models.backups import DATABASE, FILE_SUMS, BackupError, Manifest, Tell, keys, part, restoring, stored, sync_below
from models.backups import verify as verify_parts
from models.backups.dump import snapshot
from models.backups.programs import into
from models.backups.shelf import Shelf, size
from models.postgres.cluster import connect
from models.storage import Storage
from scripts import command
from scripts.progress import progress

LISTING = ".files"  # what the database knows, while it is copied
INCOMPLETE = 3

EPILOG = """\
Makes DIR/mimu-YYYYMMDDTHHMMSSZ, a folder, and beside it an archive of the server's secrets, which is better kept
elsewhere: --keys. The folder gets its name when everything in it is whole and on the disk; what is broken off is
removed, now or by the next run. It bears no one-time prekey that could be handed out again. Files that the newest
backup in DIR has are linked to, not copied. Needs pg_dump, of the server's version or newer. python -m scripts.restore
puts it back.
Run by root it becomes the user that MIMU_DATA_DIR belongs to, before it makes anything. Exit codes: 0 made; 1 failed,
and nothing is left; 2 wrong usage; 3 made, but the storage lacks files that the database has, or has some that this
user may not read, backups of another user's in DIR were stepped over, or MIMU_DATA_DIR takes no note of it;
78 wrong settings.
"""


@dataclass(frozen=True)
class Asked:
    """What is to be backed up, and how."""

    shelf: Shelf
    keep: int | None
    files: bool
    keys: Path | None  # the folder for them
    verify: bool


async def run(options: Asked, core: Core, values: Mapping[str, str], storage: Storage, tell: Tell) -> dict[str, Any]:
    """Make a backup. Returns what is printed about it."""
    began = time.monotonic()
    secrets = keys.gathered(core, values) if options.keys else {}
    with options.shelf.held(), options.shelf.place() as (work, final):
        async with command.database(core) as dsn:
            listing = work / LISTING if options.files else None
            said, count = await _dump(dsn, work, listing, tell)
            copied = lost = None
            if listing:
                before = options.shelf.backups()[-1:]
                async with storage.running():
                    last = before[0] if before else None
                    copied = await stored.take(storage, listing, count, work, last, tell, sure=options.verify)
                listing.unlink()
                lost = copied.damaged + copied.unreadable + await _lost(dsn, copied.without)
            parts = [part(work, path) for path in sorted((work / DATABASE).iterdir())]
            if copied:
                parts.append(part(work, work / FILE_SUMS))
            manifest = Manifest(**said, files=copied.files if copied else None, parts=tuple(parts))
            manifest.write(work)
            tell("waiting for the disk")
            await asyncio.to_thread(sync_below, work)
            if options.verify:
                await asyncio.to_thread(verify_parts, work, manifest, tell)
                name = f"mimu_verify_{os.getpid()}"
                await restoring.proven(dsn, into(dsn, name), name, work, manifest, tell)
        archive = None
        if options.keys:
            options.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
            archive = options.shelf.keys(final, options.keys)
            keys.write(archive, secrets)
        options.shelf.finish(work, final)
        # For the server, which shows how old the last one is, before what is only tidying.
        noted = _noted(core.mimu_data_dir, manifest.made_at, whole=not lost, backup=final, keys=archive)
        removed = options.shelf.thin(options.keep, options.keys) if options.keep else []
    return {
        "backup": str(final),
        "keys": archive and str(archive),
        "schema": manifest.schema,
        "epoch": manifest.epoch,
        "bytes": await asyncio.to_thread(size, final),
        "files": copied and {"count": copied.count, "bytes": copied.bytes, "linked": copied.linked},
        "lost": lost,
        "unreadable": copied.unreadable if copied else [],
        "noted": noted,
        "stepped_over": [str(path) for path in options.shelf.foreign],
        "verified": options.verify,
        "removed": [str(path) for path in removed],
        "seconds": round(time.monotonic() - began, 1),
    }


def _noted(folder: Path, made_at: str, *, whole: bool, backup: Path, keys: Path | None) -> bool:
    """Whether the note of it could be written: the backup is whole either way."""
    try:
        last_backup.write(folder, made_at, whole=whole, backup=backup, keys=keys)
    except OSError:
        return False
    return True


async def _dump(dsn: str, work: Path, listing: Path | None, tell: Tell) -> tuple[dict[str, Any], int]:
    """The database at one moment: what the manifest says of it, and how many files it knows; they are listed."""
    async with snapshot(dsn) as moment:
        schema, epoch = await moment.identity()
        made_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        tell("counting")
        rows = await moment.rows()
        count = await moment.files(listing) if listing else 0
        await moment.dump(dsn, work / DATABASE, tell)
        said = {"made_at": made_at, "schema": schema, "epoch": epoch, "postgresql": moment.postgresql, "rows": rows}
    return said, count


async def _lost(dsn: str, absent: list[str]) -> list[str]:
    """Of files that were not in the storage those that the database has still: they are lost. The others were deleted
    meanwhile."""
    if not absent:
        return []
    connection = await connect(dsn, timeout=5)
    try:
        rows = await connection.fetch("SELECT storage_key FROM files WHERE storage_key = ANY ($1)", absent)
    finally:
        await connection.close()
    return [key for (key,) in rows]


def _say(result: dict[str, Any]) -> None:
    print(f"{result['backup']}: {result['bytes'] / 1e6:.1f} MB in {result['seconds']} s")
    if result["files"]:
        print(
            f"files: {result['files']['count']}, of which {result['files']['linked']} are linked to the backup before"
        )
    if result["keys"]:
        print(f"keys: {result['keys']}")
    if result["verified"]:
        print("verified: it was restored into a database of its own")
    for path in result["removed"]:
        print(f"removed {path}")


def main() -> int:
    parser = command.parser("backup", __doc__, EPILOG)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder that it is made into")
    parser.add_argument(
        "--keep", type=command.number(), metavar="N", help="remove all but the newest N from there at the end"
    )
    parser.add_argument(
        "--files", choices=("copy", "none"), default="copy", help="none: leave them out, they are backed up elsewhere"
    )
    parser.add_argument("--keys", type=Path, metavar="DIR", help="the folder for the secrets (default: --output)")
    parser.add_argument("--without-keys", action="store_true", help="leave the secrets out")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read everything back, restore the database into one made for it on the same server, compare, and drop it",
    )
    command.common(parser)
    given = parser.parse_args()
    if given.keys and given.without_keys:
        parser.error("--keys and --without-keys contradict each other")
    output = given.output.absolute()
    where = None if given.without_keys else (given.keys or output).absolute()
    options = Asked(Shelf(output), given.keep, given.files == "copy", where, given.verify)
    return command.run(
        lambda: _done(options, given),
        failed="backup failed",
        interrupted="stopped; nothing is left of it",
        failures=(BackupError,),
    )


async def _done(options: Asked, given: argparse.Namespace) -> int:
    os.umask(0o077)
    core, values, storage = command.settings_and_storage(given.env_file)
    logs.configure("warning")
    with progress() as tell:
        result = await run(options, core, values, storage, tell)
    if given.json:
        print(json.dumps(result))
    else:
        _say(result)
    lost = sorted({*(result["lost"] or ())} - {*result["unreadable"]})
    for what, names in (
        ("the storage has not what the database says", lost),
        ("files that this user may not read are not in the backup", result["unreadable"]),
        ("stepped over what another user owns; give it to this one, or remove it", result["stepped_over"]),
    ):
        if names:
            print(f"{what}: {' '.join(names)}", file=sys.stderr)
    if not result["noted"]:
        print(f"the backup is made, but {core.mimu_data_dir} takes no note of it for the alert", file=sys.stderr)
    return INCOMPLETE if result["lost"] or result["stepped_over"] or not result["noted"] else 0


if __name__ == "__main__":
    sys.exit(main())
