"""Move users' files to another storage: ``python -m scripts.move_files --to FILE``. Servers may run on meanwhile."""

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
FILE has the settings of the new storage, as an env file: S3_ENDPOINT, S3_BUCKET, S3_ACCESS_KEY, S3_SECRET_KEY, …; with
nothing but S3_ENDPOINT= it is the folder of MIMU_DATA_DIR. The old one is that of the other settings.

Each file is copied, read back from the new storage, and compared with its SHA-256 in the database. Run it again at any
time: it goes on where it was, copies what is new, and removes what was deleted meanwhile. The last run is with
--finish, when all servers are stopped. Then put the lines of FILE into the settings of all servers and scripts, and
start the servers. The old storage is left as it is. Exit codes: 0 all files are there; 1 failed, or stopped; 2 wrong
usage; 3 all are there but those that the old storage lacks, or has damaged, which are named; 78 wrong settings.
"""


def _storages(options: argparse.Namespace) -> tuple[Core, Storage, Storage, str]:
    """The settings, both storages, and the name of the new one. Raises SettingsError."""
    changes = environment(options.to, {})  # now, for only root may be able to read it
    values = command.read_settings(options.env_file)
    given = {name: value for name, value in values.items() if not name.startswith("S3_")}
    given |= {name: value for name, value in changes.items() if name.startswith("S3_")}
    wanted: dict[str, type[Section]] = {"": Core, "files": StorageSettings}
    core, old = load(wanted, values).values()
    new = load({"files": StorageSettings}, given)["files"]
    assert isinstance(core, Core) and isinstance(old, StorageSettings) and isinstance(new, StorageSettings)
    if options.dry_run:
        new = new.model_copy(update={"s3_create_bucket": False})
    name = opened.name(new, core.mimu_data_dir)
    if name == opened.name(old, core.mimu_data_dir):
        raise SettingsError([f"{options.to}: it names {name}, where the files are already"])
    return core, opened.storage(old, core.mimu_data_dir), opened.storage(new, core.mimu_data_dir), name


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Move the files, or say what is to be moved; what came of it."""
    core, source, target, name = _storages(options)
    async with command.database(core) as dsn:
        if options.finish:
            async with restoring.target(dsn) as place:
                await place.alone()
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
    # One for each storage that files were moved to.
    noted = hashlib.sha256(name.encode()).hexdigest()[:16]
    with moving.journal(core.mimu_data_dir / "moving", noted) as notes, progress() as tell:
        async with source.running(), target.running():
            await target.check()
            moved = await moving.move(connection, source, target, notes, tell, verify=options.verify)
        if not options.finish:
            return moved, await moving.unfinished(connection)
        forgotten = await moving.forget_unfinished(connection)
        notes.done()
        return moved, forgotten


def _say(result: dict[str, Any], options: argparse.Namespace) -> None:
    size = f"{result['bytes'] / 1e6:.1f} MB"
    if options.dry_run:
        print(f"to be copied to {result['to']}: {result['copied']} files, {size}; {result['present']} are there")
        print(f"uploads under way, which begin again after the move: {result['unfinished']}")
        return
    print(f"copied to {result['to']}: {result['copied']} files, {size}; {result['present']} were there")
    if result["removed"]:
        print(f"removed there, since they were deleted here: {result['removed']}")
    if options.finish:
        print(f"uploads under way that were forgotten: {result['unfinished']}")
        print(f"Now put the lines of {options.to} into the settings of all servers and scripts, and start the servers.")
    else:
        print("Files that are uploaded from now on are not there: run it again, and once more with --finish when all")
        print("servers are stopped.")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of a command line, else those of this process."""
    parser = command.parser("move_files", __doc__, EPILOG)
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the settings of the new storage")
    parser.add_argument("--dry-run", action="store_true", help="change nothing; count what would be copied")
    parser.add_argument("--verify", action="store_true", help="read what earlier runs have copied, too, and compare it")
    parser.add_argument(
        "--finish", action="store_true", help="the last run, with all servers stopped: uploads under way are forgotten"
    )
    command.common(parser)
    options = parser.parse_args(words)
    if options.dry_run and (options.finish or options.verify):
        parser.error("--dry-run copies nothing, so there is nothing to finish or to verify")
    return options


def main() -> int:
    options = parse()
    return command.run(
        lambda: _done(options),
        failed="the files are not moved",
        interrupted="stopped; run it again to go on",
        failures=(BackupError, moving.MoveError),
    )


async def _done(options: argparse.Namespace) -> int:
    os.umask(0o077)
    logs.configure("error")
    result = await run(options)
    if options.json:
        print(json.dumps(result))
    else:
        _say(result, options)
    await asyncio.to_thread(sys.stdout.flush)
    for what, keys in (("the old storage lacks", result["missing"]), ("damaged in the old storage", result["damaged"])):
        if keys:
            print(f"{what}: {' '.join(keys)}", file=sys.stderr)
    return INCOMPLETE if result["missing"] or result["damaged"] else 0


if __name__ == "__main__":
    sys.exit(main())
