"""Restore a backup: ``python -m scripts.restore BACKUP``. Stop all servers of that database first.

A restore must not undo certain changes since the backup: one-time prekeys are not handed out again, all sessions end,
access tokens are signed with a new secret, and clients detect that the server lost changes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

if not __package__:  # python scripts/restore.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import embedded, logs
from config.keyring import KeyringFile
from config.settings import Core
from models.backups import BackupError, Manifest, Report, keys, stored, verify
from models.backups.programs import find, into
from models.backups.restoring import Target, target
from models.postgres import migrations
from models.postgres.cluster import Cluster, connect
from models.postgres.hosts import address
from models.storage import Storage
from scripts import command
from scripts.progress import progress

EPILOG = """\
Everything is verified before anything is changed. The database must be empty, or migrated and without an account;
--force replaces its contents. From the first change to the last no server starts on it; repeat the same command after
an interrupted restore. With several machines, stop all servers, and copy the new keyring file to them: without it they
would accept tokens of sessions that ended since the backup.

--settle is for a database that was restored by other means, such as pg_restore, or a snapshot of the disk: it ends the
sessions, withdraws the prekeys, and changes nothing else. Exit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong
settings.
"""


@contextlib.asynccontextmanager
async def database(core: Core, name: str | None) -> AsyncIterator[str]:
    """Yield the URL of the database to restore into; with ``name`` another one on that server, created if missing."""
    async with contextlib.AsyncExitStack() as stack:
        if core.database_url is not None:
            # Without the fence: this may be another database than the servers used before.
            hosts = Cluster(core.database_url.get_secret_value(), quiet=True)
            (await hosts.connect(timeout=5)).terminate()
            dsn = address(hosts.dsn, hosts.current or hosts.hosts[0])
        elif name is not None:
            dsn = await stack.enter_async_context(embedded.postgres_beside(core.mimu_data_dir))
        else:
            stack.enter_context(embedded.lock(core.mimu_data_dir))  # no server runs on it
            dsn = await stack.enter_async_context(embedded.postgres(core.mimu_data_dir))
        if name is not None:
            connection = await connect(dsn, timeout=5)
            try:
                with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
            finally:
                await connection.close()
            dsn = into(dsn, name)
        yield dsn


async def restore(
    options: argparse.Namespace, core: Core, values: Mapping[str, str], storage: Storage, report: Report
) -> dict[str, Any]:
    """Restore a backup. Returns the result to print."""
    folder = options.backup.absolute()
    manifest = Manifest.read(folder)
    if manifest.schema > migrations.versions()[-1]:
        raise BackupError(
            f"the backup has the schema {manifest.schema}, and this version knows {migrations.versions()[-1]}: "
            "restore it with the version that made it, or a newer one"
        )
    await asyncio.to_thread(verify, folder, manifest, report)
    result: dict[str, Any] = {"backup": str(folder), "made_at": manifest.made_at, "schema": manifest.schema}
    if options.check:
        return {**result, "rows": manifest.rows, "files": manifest.files and manifest.files.count}
    secrets = keys.read(options.keys) if options.keys else {}
    files = manifest.files if options.files == "copy" and options.into is None else None
    async with database(core, options.into) as dsn, target(dsn) as place:
        await _check_version(place, manifest)
        await place.wait_until_alone()
        await _confirm(options, dsn, place, f"restores the backup of {manifest.made_at}")
        async with place.keep_servers_out(folder.name):
            await place.wait_until_alone()  # a supervisor may have started a server during the question
            result["keys"] = keys.restore(core, values, secrets, force=options.force)
            await place.empty()
        await place.restore_dump(folder, options.jobs, report)
        if files is not None:
            async with storage.running():
                await stored.restore(storage, folder, files, report)
        result["files"] = files and files.count
        without = files.without if files else ()
        return {**result, **await _settle(options, core, place, without, report)}


async def settle(options: argparse.Namespace, core: Core, report: Report) -> dict[str, Any]:
    """Make a database that was restored by other means safe. Returns the result to print."""
    async with database(core, options.into) as dsn, target(dsn) as place:
        await migrations.ready(dsn)
        await place.wait_until_alone()
        await _confirm(options, dsn, place, "ends all sessions and withdraws all one-time prekeys", over=True)
        await place.wait_until_alone()  # a supervisor may have started a server during the question
        return await _settle(options, core, place, (), report)


async def _check_version(place: Target, manifest: Manifest) -> None:
    if place.postgresql < manifest.postgresql:
        raise BackupError(f"the backup is of PostgreSQL {manifest.postgresql}; this server is {place.postgresql}")
    await find("pg_restore", place.postgresql)  # before the database is emptied


async def _confirm(options: argparse.Namespace, dsn: str, place: Target, what: str, *, over: bool = False) -> None:
    """Ask the operator. Raises BackupError if the database has contents (unless ``--force``), or the answer is no."""
    name = await place.name()
    lost = None if over else await place.contents()
    if lost and not options.force:
        raise BackupError(f"the database {name} has {lost}: restore into an empty one, or replace them with --force")
    if options.yes:
        return
    replaced = f" and deletes {lost}" if lost else ""
    where = f"{name} at {urlsplit(dsn).hostname or 'this machine'}"
    if not await command.confirm(f"This {what} in {where}{replaced}."):
        raise BackupError("not confirmed; nothing was changed")


async def _settle(
    options: argparse.Namespace, core: Core, place: Target, without: tuple[str, ...], report: Report
) -> dict[str, Any]:
    report("making it safe")
    keyring = None
    if not options.keep_sessions and options.into is None:
        # Before servers can start: with the old secret they would accept tokens of sessions that ended since then.
        KeyringFile(core.keyring_path).renew("jwt")
        keyring = str(core.keyring_path)
    done = await place.settle(keep_sessions=options.keep_sessions, without=without)
    if options.into is None:
        await command.move_fence(core, await place.identity())
    report("gathering statistics")
    await place.analyze()
    due = [version for version in migrations.versions() if version > await place.schema()]
    return {**done, "keyring": keyring, "due": due}


def _print_result(result: dict[str, Any]) -> None:
    if "epoch" not in result:
        print(f"{result['backup']} is complete: made {result['made_at']}, schema {result['schema']}")
        return
    if "backup" in result:
        print(f"restored {result['backup']}, made {result['made_at']}")
        print(f"files restored: {result['files'] if result['files'] is not None else 'none'}")
    print(f"epoch {result['epoch']}: clients list their chats again, and send missing messages again")
    print(f"sessions ended: {result['sessions_ended']}; one-time prekeys withdrawn: {result['prekeys_withdrawn']}")
    if result["files_forgotten"] or result["uploads_forgotten"]:
        print(f"files without bytes: {result['files_forgotten']}; unfinished uploads: {result['uploads_forgotten']}")
    for line in result.get("keys", []):
        print(line)
    if result["keyring"]:
        print(f"access tokens are signed with a new secret, in {result['keyring']}: every server needs that file")
    if result["due"]:
        print(f"due before servers start: python -m scripts.migrate ({', '.join(result['due'])})")


def _name(text: str) -> str:
    if not re.fullmatch("[a-z_][a-z0-9_]{0,62}", text):
        raise argparse.ArgumentTypeError("expected the name of a database: small letters, digits and _")
    return text


def _parse() -> argparse.Namespace:
    parser = command.parser("restore", __doc__, EPILOG)
    parser.add_argument("backup", type=Path, nargs="?", metavar="BACKUP", help="the folder that scripts.backup made")
    parser.add_argument("--check", action="store_true", help="verify the backup, and change nothing")
    parser.add_argument("--settle", action="store_true", help="make a database safe that was restored by other means")
    parser.add_argument("--keys", type=Path, metavar="FILE", help="also restore the secrets of this archive")
    parser.add_argument("--files", choices=("copy", "none"), default="copy", help="none: leave the storage alone")
    parser.add_argument(
        "--into", type=_name, metavar="NAME", help="another database of the same server, without files and secrets"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace the contents of the database, and different secrets"
    )
    parser.add_argument(
        "--keep-sessions",
        action="store_true",
        help="for a move: the backup was made after all servers had been stopped for good, so sessions need not end",
    )
    parser.add_argument("--jobs", type=int, default=1, help="restore so many tables at a time (default: 1)")
    parser.add_argument("--yes", action="store_true", help="don't ask")
    command.common(parser)
    options = parser.parse_args()
    if (options.backup is None) != options.settle:
        parser.error("name a backup, or --settle")
    if options.jobs < 1 or (options.into and options.keys):
        parser.error("--jobs counts from 1" if options.jobs < 1 else "--into restores no secrets")
    return options


def main() -> int:
    options = _parse()
    return command.run(
        lambda: _run(options),
        failed="restore failed",
        interrupted="interrupted; if it had begun, no server starts until you run it again",
        failures=(BackupError, migrations.MigrationError),
    )


async def _run(options: argparse.Namespace) -> int:
    os.umask(0o077)
    core, values, storage = command.settings_and_storage(options.env_file)
    if not options.check:
        command.refuse_new_folder_as_root(core)
    logs.configure("warning")
    with progress() as report:
        result = await (
            settle(options, core, report) if options.settle else restore(options, core, values, storage, report)
        )
    if options.json:
        print(json.dumps(result))
    else:
        _print_result(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
