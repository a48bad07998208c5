"""Back up the database, the files and the secrets: ``python -m scripts.backup --output DIR``. Servers may run."""

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
from models.backups import (
    DATABASE,
    FILE_SUMS,
    BackupError,
    Manifest,
    Report,
    describe_part,
    keys,
    restoring,
    stored,
    sync_below,
)
from models.backups import verify as verify_parts
from models.backups.dump import snapshot
from models.backups.programs import into
from models.backups.shelf import Shelf, size
from models.postgres.cluster import connect
from models.storage import Storage
from scripts import command
from scripts.progress import progress

LISTING = ".files"  # the files in the database; removed when they are copied
INCOMPLETE = 3

EPILOG = """\
Makes the folder DIR/mimu-YYYYMMDDTHHMMSSZ, and beside it an archive of the server's secrets; keep that elsewhere with
--keys. The folder gets its name when all its contents are complete and on the disk; an interrupted backup is removed at
once or by the next run. It contains no one-time prekey that could be handed out again. Files that the newest backup in
DIR also has are linked, not copied. Needs pg_dump, of the server's version or newer. Restore with
python -m scripts.restore.
Root becomes the owner of MIMU_DATA_DIR before anything is made. Exit codes: 0 made; 1 failed, and nothing is left;
2 wrong usage; 3 made, but the storage lacks files that the database has, or this user may not read some of them, or
backups of another user in DIR were skipped, or the note for the alert could not be written to MIMU_DATA_DIR;
78 wrong settings.
"""


@dataclass(frozen=True)
class Options:
    """What to back up, and how."""

    shelf: Shelf
    keep: int | None
    files: bool
    keys: Path | None  # the folder for the secrets
    verify: bool


async def run(
    options: Options, core: Core, values: Mapping[str, str], storage: Storage, report: Report
) -> dict[str, Any]:
    """Make a backup. Returns the result to print."""
    began = time.monotonic()
    secrets = keys.collect(core, values) if options.keys else {}
    with options.shelf.lock(), options.shelf.new_backup() as (work, final):
        async with command.database(core) as dsn:
            listing = work / LISTING if options.files else None
            description, count = await _dump(dsn, work, listing, report)
            copied = lost = None
            if listing:
                before = options.shelf.backups()[-1:]
                async with storage.running():
                    last = before[0] if before else None
                    copied = await stored.back_up(storage, listing, count, work, last, report, sure=options.verify)
                listing.unlink()
                lost = copied.damaged + copied.unreadable + await _lost(dsn, copied.without)
            parts = [describe_part(work, path) for path in sorted((work / DATABASE).iterdir())]
            if copied:
                parts.append(describe_part(work, work / FILE_SUMS))
            manifest = Manifest(**description, files=copied.files if copied else None, parts=tuple(parts))
            manifest.write(work)
            report("waiting for the disk")
            await asyncio.to_thread(sync_below, work)
            if options.verify:
                await asyncio.to_thread(verify_parts, work, manifest, report)
                name = f"mimu_verify_{os.getpid()}"
                await restoring.verify_by_restoring(dsn, into(dsn, name), name, work, manifest, report)
        archive = None
        if options.keys:
            options.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
            archive = options.shelf.keys(final, options.keys)
            keys.write(archive, secrets)
        options.shelf.finish(work, final)
        # Before old backups are removed: the server reads the note for the alert on the age of the last backup.
        noted = _write_note(core.mimu_data_dir, manifest.made_at, whole=not lost, backup=final, keys=archive)
        removed = options.shelf.remove_old(options.keep, options.keys) if options.keep else []
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


def _write_note(folder: Path, made_at: str, *, whole: bool, backup: Path, keys: Path | None) -> bool:
    """Write the note of the backup. Returns False if that failed; the backup is complete either way."""
    try:
        last_backup.write(folder, made_at, whole=whole, backup=backup, keys=keys)
    except OSError:
        return False
    return True


async def _dump(dsn: str, work: Path, listing: Path | None, report: Report) -> tuple[dict[str, Any], int]:
    """Dump the database and list its files, from one snapshot. Returns its description for the manifest, and the number
    of files."""
    async with snapshot(dsn) as moment:
        schema, epoch = await moment.identity()
        made_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        report("counting")
        rows = await moment.rows()
        count = await moment.files(listing) if listing else 0
        await moment.dump(dsn, work / DATABASE, report)
        description = {
            "made_at": made_at,
            "schema": schema,
            "epoch": epoch,
            "postgresql": moment.postgresql,
            "rows": rows,
        }
    return description, count


async def _lost(dsn: str, absent: list[str]) -> list[str]:
    """Return which of the files that the storage lacks are still in the database: they are lost. The others were
    deleted in the meantime."""
    if not absent:
        return []
    connection = await connect(dsn, timeout=5)
    try:
        rows = await connection.fetch("SELECT storage_key FROM files WHERE storage_key = ANY ($1)", absent)
    finally:
        await connection.close()
    return [key for (key,) in rows]


def _print_result(result: dict[str, Any]) -> None:
    print(f"{result['backup']}: {result['bytes'] / 1e6:.1f} MB in {result['seconds']} s")
    if result["files"]:
        print(
            f"files: {result['files']['count']}, of which {result['files']['linked']} are links to the previous backup"
        )
    if result["keys"]:
        print(f"keys: {result['keys']}")
    if result["verified"]:
        print("verified: it was restored into a temporary database")
    for path in result["removed"]:
        print(f"removed {path}")


def main() -> int:
    parser = command.parser("backup", __doc__, EPILOG)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder for backups")
    parser.add_argument(
        "--keep", type=command.number(), metavar="N", help="at the end remove all but the newest N backups in DIR"
    )
    parser.add_argument(
        "--files", choices=("copy", "none"), default="copy", help="none: leave them out; back them up elsewhere"
    )
    parser.add_argument("--keys", type=Path, metavar="DIR", help="the folder for the secrets (default: --output)")
    parser.add_argument("--without-keys", action="store_true", help="leave the secrets out")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read everything back, restore the database into a temporary one on the same server, and compare",
    )
    command.common(parser)
    arguments = parser.parse_args()
    if arguments.keys and arguments.without_keys:
        parser.error("--keys and --without-keys contradict each other")
    output = arguments.output.absolute()
    where = None if arguments.without_keys else (arguments.keys or output).absolute()
    options = Options(Shelf(output), arguments.keep, arguments.files == "copy", where, arguments.verify)
    return command.run(
        lambda: _run(options, arguments),
        failed="backup failed",
        interrupted="interrupted; the unfinished backup was removed",
        failures=(BackupError,),
    )


async def _run(options: Options, arguments: argparse.Namespace) -> int:
    os.umask(0o077)
    core, values, storage = command.settings_and_storage(arguments.env_file)
    logs.configure("warning")
    with progress() as report:
        result = await run(options, core, values, storage, report)
    if arguments.json:
        print(json.dumps(result))
    else:
        _print_result(result)
    lost = sorted({*(result["lost"] or ())} - {*result["unreadable"]})
    for what, names in (
        ("the storage lacks files that the database has", lost),
        ("files that this user may not read are not in the backup", result["unreadable"]),
        ("skipped, because another user owns them; give them to this user, or remove them", result["stepped_over"]),
    ):
        if names:
            print(f"{what}: {' '.join(names)}", file=sys.stderr)
    if not result["noted"]:
        print(
            f"the backup is made, but the note for the alert can't be written to {core.mimu_data_dir}", file=sys.stderr
        )
    return INCOMPLETE if result["lost"] or result["stepped_over"] or not result["noted"] else 0


if __name__ == "__main__":
    sys.exit(main())
