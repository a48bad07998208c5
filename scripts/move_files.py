"""Move users' files to another storage: ``python -m scripts.move_files --to FILE``. Servers may keep running."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # python scripts/move_files.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import logs
from config.settings import Core, Section, SettingsError, environment, load
from config.storage import StorageSettings
from models import moving
from models.backups import BackupError, restoring
from models.postgres.cluster import connect
from models.storage import Storage, opened
from scripts import command
from scripts.progress import progress

INCOMPLETE = 3

EPILOG = """\
FILE is an env file with the settings of the new storage: S3_ENDPOINT, S3_BUCKET, S3_ACCESS_KEY, S3_SECRET_KEY, …; with
only S3_ENDPOINT= it is the folder of MIMU_DATA_DIR. The old storage is that of the present settings.

Each file is copied, read back from the new storage, and compared with its SHA-256 in the database. Run it again at any
time: it continues where it stopped, copies new files, and removes files that were deleted in the meantime. For the last
run stop all servers, and use --finish. Then copy the lines of FILE to the settings of all servers and scripts, and
start the servers. The old storage stays unchanged. Exit codes: 0 all files are moved; 1 failed, or interrupted; 2 wrong
usage; 3 all are moved except those that the old storage lacks or has damaged, which are listed; 78 wrong settings.
"""


def _storages(options: argparse.Namespace) -> tuple[Core, Storage, Storage, str]:
    """Return the settings, both storages, and the name of the new one. Raises SettingsError."""
    changes = environment(options.to, {})  # first, since perhaps only root can read the file
    values = command.read_settings(options.env_file)
    changed = {name: value for name, value in values.items() if not name.startswith("S3_")}
    changed |= {name: value for name, value in changes.items() if name.startswith("S3_")}
    wanted: dict[str, type[Section]] = {"": Core, "files": StorageSettings}
    core, old = load(wanted, values).values()
    new = load({"files": StorageSettings}, changed)["files"]
    assert isinstance(core, Core) and isinstance(old, StorageSettings) and isinstance(new, StorageSettings)
    if options.dry_run:
        new = new.model_copy(update={"s3_create_bucket": False})
    name = opened.name(new, core.mimu_data_dir)
    if name == opened.name(old, core.mimu_data_dir):
        raise SettingsError([f"{options.to}: it names {name}, where the files are already"])
    return core, opened.storage(old, core.mimu_data_dir), opened.storage(new, core.mimu_data_dir), name


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Move the files, or with ``--dry-run`` count them. Returns the result to print."""
    core, source, target, name = _storages(options)
    async with command.database(core) as dsn:
        if options.finish:
            async with restoring.target(dsn) as place:
                await place.wait_until_alone()
        connection = await connect(dsn, timeout=5, server_settings={"application_name": "mimu-move-files"})
        try:
            if options.dry_run:
                moved, unfinished = await moving.lacking(connection, target), await moving.unfinished(connection)
            else:
                moved, unfinished = await _move(options, core, connection, source, target, name)
        finally:
            await connection.close()
    return {"to": name, **asdict(moved), "unfinished": unfinished, "finished": options.finish}


async def _move(
    options: argparse.Namespace, core: Core, connection: Any, source: Storage, target: Storage, name: str
) -> tuple[moving.Moved, int]:
    command.refuse_new_folder_as_root(core)
    # There is a journal for each storage that files are moved to.
    journal_name = hashlib.sha256(name.encode()).hexdigest()[:16]
    with moving.journal(core.mimu_data_dir / "moving", journal_name) as notes, progress() as report:
        async with source.running(), target.running():
            await target.check()
            moved = await moving.move(connection, source, target, notes, report, verify=options.verify)
        if not options.finish:
            return moved, await moving.unfinished(connection)
        forgotten = await moving.forget_unfinished(connection)
        notes.done()
        return moved, forgotten


def _print_result(result: dict[str, Any], options: argparse.Namespace) -> None:
    size = f"{result['bytes'] / 1e6:.1f} MB"
    if options.dry_run:
        print(f"to be copied to {result['to']}: {result['copied']} files, {size}; {result['present']} are there")
        print(f"uploads in progress, which start again after the move: {result['unfinished']}")
        return
    print(f"copied to {result['to']}: {result['copied']} files, {size}; {result['present']} were there")
    if result["removed"]:
        print(f"removed there, since they were deleted here: {result['removed']}")
    if options.finish:
        print(f"uploads in progress that were dropped: {result['unfinished']}")
        print(f"Now copy the lines of {options.to} to the settings of all servers and scripts, and start the servers.")
    else:
        print(
            "New uploads still go to the old storage: run this again, and once more with --finish when all servers are"
        )
        print("stopped.")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, by default that of this process."""
    parser = command.parser("move_files", __doc__, EPILOG)
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the settings of the new storage")
    parser.add_argument("--dry-run", action="store_true", help="change nothing; count the files that would be copied")
    parser.add_argument("--verify", action="store_true", help="also compare the files that earlier runs copied")
    parser.add_argument(
        "--finish", action="store_true", help="the last run, with all servers stopped: drop uploads in progress"
    )
    command.common(parser)
    options = parser.parse_args(words)
    if options.dry_run and (options.finish or options.verify):
        parser.error("--dry-run copies nothing, so there is nothing to finish or to verify")
    return options


def main() -> int:
    options = parse()
    return command.run(
        lambda: _run(options),
        failed="the files are not moved",
        interrupted="interrupted; run it again to continue",
        failures=(BackupError, moving.MoveError),
    )


async def _run(options: argparse.Namespace) -> int:
    os.umask(0o077)
    logs.configure("error")
    result = await run(options)
    if options.json:
        print(json.dumps(result))
    else:
        _print_result(result, options)
    await asyncio.to_thread(sys.stdout.flush)
    for what, keys in (("the old storage lacks", result["missing"]), ("damaged in the old storage", result["damaged"])):
        if keys:
            print(f"{what}: {' '.join(keys)}", file=sys.stderr)
    return INCOMPLETE if result["missing"] or result["damaged"] else 0


if __name__ == "__main__":
    sys.exit(main())
