"""What all commands share: their common options, connections to the services, and exit codes.

``./mimu NAME``, ``python -m scripts.NAME`` in the project's folder and ``python PATH/scripts/NAME.py`` anywhere do the
same; the first also finds the installation's settings (scripts/__main__.py). For the last, each script puts the
project's folder on ``sys.path`` before its other imports.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pwd
import re
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from config import embedded
from config.settings import Core, Section, SettingsError, environment, load
from config.storage import StorageSettings
from models.database import Unavailable
from models.postgres.cluster import Cluster, name_of
from models.postgres.fence import Fence
from models.postgres.hosts import address, describe
from models.postgres.identity import Identity
from models.storage import Storage, StorageAway, StorageFull, opened

STARTED_BY = os.getuid()  # before ``become_owner``
FAILED, WRONG_USAGE, WRONG_SETTINGS = 1, 2, 78  # argparse ends with 2; sysexits.h: EX_CONFIG
FAILURES: tuple[type[Exception], ...] = (
    *(Unavailable, StorageAway, StorageFull, embedded.EmbeddedError, OSError),
    *(asyncpg.PostgresError, asyncpg.InterfaceError, RedisError),
)


def parser(name: str, purpose: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of a script's arguments. It accepts no abbreviations: one in an operator's timer could become
    ambiguous with the next option."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog=_program(name), description=_plain(purpose), epilog=_plain(epilog), formatter_class=raw, allow_abbrev=False
    )


def _plain(text: str | None) -> str | None:
    """Turn a docstring into help: without backquotes, and with the commands as the user types them."""
    if text is None:
        return None
    if "MIMU_COMMAND" in os.environ:
        text = re.sub(r"python -m scripts\.(\w+)", lambda found: f"./mimu {found[1].replace('_', '-')}", text)
    return text.replace("``", "").strip()


def _program(name: str) -> str:
    """Return the command that the user typed: ``./mimu backup``, or the module's name."""
    return os.environ.get("MIMU_COMMAND") or f"scripts.{name}"


def verb(verbs: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    """Add a subcommand to a script: ``python -m scripts.users show``."""
    sentence = purpose[0].upper() + purpose[1:] + "."
    added: argparse.ArgumentParser = verbs.add_parser(name, help=purpose, description=sentence, allow_abbrev=False)
    return added


def common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every script that reads settings."""
    usual = os.environ.get("MIMU_ENV_FILE") if "MIMU_COMMAND" in os.environ else None
    where = usual or ".env beside server.py"
    parser.add_argument("--env-file", type=Path, metavar="FILE", help=f"read settings from FILE (default: {where})")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def number(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """Return the type of an option that is a whole number within these bounds."""

    def read(text: str) -> int:
        if text.isascii() and text.isdecimal() and least <= int(text) and (most is None or int(text) <= most):
            return int(text)
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"expected a number {bounds}")

    return read


def label(text: str) -> str:
    """Parse an option that is a name for people to read."""
    if not (text.isprintable() and 1 <= len(text.strip()) <= 100):
        raise argparse.ArgumentTypeError("expected a name of up to 100 characters")
    return text.strip()


def postgres(core: Core) -> str:
    """Return the URL of the database: from the settings, else of the embedded one if a server runs it here. Raises
    SettingsError."""
    dsn = core.database_url.get_secret_value() if core.database_url else embedded.postgres_of(core.mimu_data_dir)
    if dsn is None:
        raise SettingsError(["DATABASE_URL: missing, and no server runs its own PostgreSQL in MIMU_DATA_DIR"])
    return dsn


async def cluster(core: Core) -> Cluster:
    """Return the cluster of the settings, with the fence that keeps us from another host than the servers use. Raises
    SettingsError."""
    dsn = postgres(core)
    if core.database_url is None:
        return Cluster(dsn)
    async with _fence_redis(core) as client:
        fence = Fence(core.mimu_data_dir, client, name_of(dsn))
        await fence.read()
    fence.detach()
    return Cluster(dsn, fence, quiet=True)  # the error names the hosts that were refused


async def host_url(core: Core) -> str:
    """Return the URL of the database with the one host in use, for programs that would try others. Raises
    SettingsError."""
    hosts = await cluster(core)
    (await hosts.connect(timeout=5)).terminate()
    return address(hosts.dsn, hosts.current or hosts.hosts[0])


@contextlib.asynccontextmanager
async def database(core: Core) -> AsyncIterator[str]:
    """Yield the URL of the database for a script that needs no server: from the settings, else of the embedded one,
    which is started unless a server runs it. Raises SettingsError."""
    if core.database_url is not None:
        yield await host_url(core)
        return
    async with embedded.postgres_beside(core.mimu_data_dir) as dsn:
        yield dsn


async def move_fence(core: Core, seen: Identity) -> None:
    """Make servers accept a restored database, whatever database they have used before."""
    if core.database_url is not None:
        async with _fence_redis(core) as client:
            dsn = core.database_url.get_secret_value()
            await Fence(core.mimu_data_dir, client, name_of(dsn)).replace(seen)


@contextlib.asynccontextmanager
async def _fence_redis(core: Core) -> AsyncIterator[Redis | None]:
    if core.redis_url is None:
        yield None
        return
    once = Retry(NoBackoff(), 0)
    url = core.redis_url.get_secret_value()
    async with Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1, retry=once) as client:
        yield client


def redis(core: Core) -> str:
    """Return the URL of Redis: from the settings, else of the embedded Valkey if a server runs it here. Raises
    SettingsError."""
    url = core.redis_url.get_secret_value() if core.redis_url else embedded.valkey_of(core.mimu_data_dir)
    if url is None:
        raise SettingsError(["REDIS_URL: missing, and no server runs its own Valkey in MIMU_DATA_DIR"])
    return url


def read_settings(env_file: Path | None) -> dict[str, str]:
    """Read all settings, then become the owner of the data folder. Raises SettingsError."""
    values = environment(env_file)
    become_owner(Path(values.get("MIMU_DATA_DIR", "var")))
    return values


def other_owner(folder: Path) -> os.stat_result | None:
    """Return the owner of the data folder if we are root and it belongs to another user; else None."""
    status = folder.stat() if os.geteuid() == 0 and folder.exists() else None
    return status if status and status.st_uid else None


def become_owner(folder: Path) -> None:
    """If we are root, become the owner of the data folder, for good: the servers run as that user, and could neither
    read nor remove files of root. Raises SettingsError if that user can't read our code."""
    owner = other_owner(folder)
    if owner is None:
        return
    try:
        account = pwd.getpwuid(owner.st_uid)
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.environ["HOME"] = account.pw_dir  # libraries look for certificates and passwords there
    except KeyError:  # as in containers, a number without a name
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.environ["HOME"] = "/nonexistent"
    os.setuid(owner.st_uid)
    if not os.access(__file__, os.R_OK):
        who = user(owner.st_uid)
        raise SettingsError(
            [f"{folder} belongs to user {who}, who can't read {Path(__file__).parent}: let them read it"]
        )


def user(uid: int) -> str:
    """Return the name of a user, or the number if it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def refuse_new_folder_as_root(core: Core) -> None:
    """Raise SettingsError if root would create the data folder in production: the servers' user could not use it."""
    if os.geteuid() == 0 and core.production and not core.mimu_data_dir.exists():
        fault = f"MIMU_DATA_DIR: {core.mimu_data_dir} does not exist, and root must not create it:"
        raise SettingsError([f"{fault} create it as the server's user"])


def settings_and_storage(env_file: Path | None) -> tuple[Core, dict[str, str], Storage]:
    """Return the core's settings, the values of all settings, and the storage of files. Raises SettingsError."""
    values = read_settings(env_file)
    wanted: dict[str, type[Section]] = {"": Core, "files": StorageSettings}
    core, stored = load(wanted, values).values()
    assert isinstance(core, Core) and isinstance(stored, StorageSettings)
    return core, values, opened.storage(stored, core.mimu_data_dir)


async def confirm(question: str, word: str = "yes") -> bool:
    """Ask the operator. Returns True if they type ``word``."""
    # On standard error, since a program may read standard output.
    print(f"{question} Type {word} to go on: ", end="", file=sys.stderr, flush=True)
    answer: str = await asyncio.to_thread(sys.stdin.readline)
    return answer.strip() == word


def run(
    work: Callable[[], Coroutine[Any, Any, int] | int],
    *,
    failed: str,
    interrupted: str = "interrupted",
    failures: tuple[type[Exception], ...] = (),
) -> int:
    """Run ``work``, a function or a coroutine function, and return its exit code. Errors and faults of the settings are
    printed to standard error; ``failures`` are the errors that only this script expects."""
    try:
        done = work()
        return done if isinstance(done, int) else asyncio.run(done)
    except SettingsError as error:
        print("\n".join(error.faults), file=sys.stderr)
        return WRONG_SETTINGS
    except (*FAILURES, *failures) as error:
        return fail(f"{failed}: {why(error)}")
    except KeyboardInterrupt:
        return fail(interrupted)


def why(error: BaseException) -> str:
    """Explain an error to the operator. The text of a storage's error is for clients, so its cause is shown."""
    if isinstance(error, StorageAway | StorageFull):
        cause = getattr(error.__cause__, "strerror", None) or str(error) or "there is no space"
        return f"a file can't be copied ({cause})"
    if isinstance(error, PermissionError) and error.filename:
        return f"{_whose(Path(os.fsdecode(error.filename)))}, and this is user {user(os.geteuid())}"
    return str(error) or describe(error)


def _whose(path: Path) -> str:
    """Name the owner of a file that we may not use, or of the nearest folder above it that we may look at."""
    for place in (path, *path.absolute().parents):
        try:
            status = place.lstat()
        except OSError:
            continue
        mode = stat.filemode(status.st_mode)
        return f"{path} can't be used: {place} belongs to user {user(status.st_uid)} ({mode})"
    return f"{path} can't be used"


def fail(reason: str) -> int:
    """Print why a run failed, and return its exit code."""
    print(reason, file=sys.stderr)
    return FAILED


def usage_error(reason: str) -> int:
    """Print what is wrong with the usage, and return the exit code, if only the settings show it. Parsers have
    ``error`` for other faults."""
    print(reason, file=sys.stderr)
    return WRONG_USAGE


def format_time(moment: datetime | None) -> str | None:
    """Format a time as all scripts print it: in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None
