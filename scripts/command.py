"""A command on an installation: the words that all of them take, the services they find, and how they end.

``./mimu NAME``, ``python -m scripts.NAME`` in the project's folder and ``python PATH/scripts/NAME.py`` anywhere do the
same; the first also finds the installation's settings (scripts/__main__.py). For the last, each script puts the
project's folder on ``sys.path`` before it imports anything of ours.
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

STARTED_BY = os.getuid()  # also when we become somebody else
FAILED, WRONG_USAGE, WRONG_SETTINGS = 1, 2, 78  # argparse ends with 2; sysexits.h: EX_CONFIG
FAILURES: tuple[type[Exception], ...] = (
    *(Unavailable, StorageAway, StorageFull, embedded.EmbeddedError, OSError),
    *(asyncpg.PostgresError, asyncpg.InterfaceError, RedisError),
)


def parser(name: str, purpose: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a script's arguments. It takes no abbreviations: one in somebody's timer would break with the next
    option."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog=_program(name), description=_plain(purpose), epilog=_plain(epilog), formatter_class=raw, allow_abbrev=False
    )


def _plain(text: str | None) -> str | None:
    """A docstring as help: without marks of code, and with the commands as the user types them."""
    if text is None:
        return None
    if "MIMU_COMMAND" in os.environ:
        text = re.sub(r"python -m scripts\.(\w+)", lambda found: f"./mimu {found[1].replace('_', '-')}", text)
    return text.replace("``", "").strip()


def _program(name: str) -> str:
    """What the user typed: ``./mimu backup``, or the module's name."""
    return os.environ.get("MIMU_COMMAND") or f"scripts.{name}"


def verb(verbs: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    """One of several things that a script does: ``python -m scripts.users show``."""
    described = purpose[0].upper() + purpose[1:] + "."
    made: argparse.ArgumentParser = verbs.add_parser(name, help=purpose, description=described, allow_abbrev=False)
    return made


def common(parser: argparse.ArgumentParser) -> None:
    """The options of every script that reads settings."""
    usual = os.environ.get("MIMU_ENV_FILE") if "MIMU_COMMAND" in os.environ else None
    where = usual or ".env beside server.py"
    parser.add_argument("--env-file", type=Path, metavar="FILE", help=f"read settings from FILE (default: {where})")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def number(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """A whole number in these bounds, as an option's type."""

    def read(text: str) -> int:
        if text.isascii() and text.isdecimal() and least <= int(text) and (most is None or int(text) <= most):
            return int(text)
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"expected a number {bounds}")

    return read


def label(text: str) -> str:
    """A name that people give to things, as an option's type."""
    if not (text.isprintable() and 1 <= len(text.strip()) <= 100):
        raise argparse.ArgumentTypeError("expected a name of up to 100 characters")
    return text.strip()


def postgres(core: Core) -> str:
    """The address of the database: of the settings, or the embedded one of the server that runs here just now.
    Raises SettingsError."""
    dsn = core.database_url.get_secret_value() if core.database_url else embedded.postgres_of(core.mimu_data_dir)
    if dsn is None:
        raise SettingsError(["DATABASE_URL: missing, and no server runs its own PostgreSQL in MIMU_DATA_DIR"])
    return dsn


async def cluster(core: Core) -> Cluster:
    """The database, of the hosts of the settings the one that servers use. Raises SettingsError."""
    dsn = postgres(core)
    if core.database_url is None:
        return Cluster(dsn)
    async with _fence_redis(core) as known:
        fence = Fence(core.mimu_data_dir, known, name_of(dsn))
        await fence.read()
    fence.detach()
    return Cluster(dsn, fence, quiet=True)  # what is refused is in the error


async def chosen(core: Core) -> str:
    """The address of the database on that host, for programs that take no other. Raises SettingsError."""
    found = await cluster(core)
    (await found.connect(timeout=5)).terminate()
    return address(found.dsn, found.current or found.hosts[0])


@contextlib.asynccontextmanager
async def database(core: Core) -> AsyncIterator[str]:
    """The address of the database for a script that needs no server: of the settings, else the embedded one, started
    unless a server runs it. Raises SettingsError."""
    if core.database_url is not None:
        yield await chosen(core)
        return
    async with embedded.postgres_beside(core.mimu_data_dir) as dsn:
        yield dsn


async def move_fence(core: Core, seen: Identity) -> None:
    """Have servers take a database that was put back, whatever they have seen before."""
    if core.database_url is not None:
        async with _fence_redis(core) as known:
            dsn = core.database_url.get_secret_value()
            await Fence(core.mimu_data_dir, known, name_of(dsn)).replace(seen)


@contextlib.asynccontextmanager
async def _fence_redis(core: Core) -> AsyncIterator[Redis | None]:
    if core.redis_url is None:
        yield None
        return
    once = Retry(NoBackoff(), 0)
    url = core.redis_url.get_secret_value()
    async with Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1, retry=once) as known:
        yield known


def redis(core: Core) -> str:
    """The address of Redis, likewise. Raises SettingsError."""
    url = core.redis_url.get_secret_value() if core.redis_url else embedded.valkey_of(core.mimu_data_dir)
    if url is None:
        raise SettingsError(["REDIS_URL: missing, and no server runs its own Valkey in MIMU_DATA_DIR"])
    return url


def read_settings(env_file: Path | None) -> dict[str, str]:
    """All settings, read before this process becomes the user of the data folder. Raises SettingsError."""
    values = environment(env_file)
    become_owner(Path(values.get("MIMU_DATA_DIR", "var")))
    return values


def other_owner(folder: Path) -> os.stat_result | None:
    """Whose the data folder is, when we are root and it is another user's."""
    held = folder.stat() if os.geteuid() == 0 and folder.exists() else None
    return held if held and held.st_uid else None


def become_owner(folder: Path) -> None:
    """Become the user that the data folder belongs to, for good, when we are root: the servers run as that user, and
    could neither read nor remove what root makes. Raises SettingsError when our own code can't be read then."""
    held = other_owner(folder)
    if held is None:
        return
    try:
        account = pwd.getpwuid(held.st_uid)
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.environ["HOME"] = account.pw_dir  # libraries look for certificates and passwords there
    except KeyError:  # as in containers, a number without a name
        os.setgroups([])
        os.setgid(held.st_gid)
        os.environ["HOME"] = "/nonexistent"
    os.setuid(held.st_uid)
    if not os.access(__file__, os.R_OK):
        who = user(held.st_uid)
        raise SettingsError(
            [f"{folder} belongs to user {who}, who can't read {Path(__file__).parent}: let them read it"]
        )


def user(uid: int) -> str:
    """The name of a user, else the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def refuse_new_folder_as_root(core: Core) -> None:
    """Raises SettingsError when root would make the data folder of a production: the servers' user could not use it."""
    if os.geteuid() == 0 and core.production and not core.mimu_data_dir.exists():
        fault = f"MIMU_DATA_DIR: {core.mimu_data_dir} is not there, and root must not make it:"
        raise SettingsError([f"{fault} make it for the server's user"])


def settings_and_storage(env_file: Path | None) -> tuple[Core, dict[str, str], Storage]:
    """The house's settings, all values that were given, and the storage of files. Raises SettingsError."""
    values = read_settings(env_file)
    wanted: dict[str, type[Section]] = {"": Core, "files": StorageSettings}
    core, stored = load(wanted, values).values()
    assert isinstance(core, Core) and isinstance(stored, StorageSettings)
    return core, values, opened.storage(stored, core.mimu_data_dir)


async def confirm(question: str, word: str = "yes") -> bool:
    """True if the operator types ``word``, or a name that the question asks for."""
    # On standard error: standard output may be read by a program.
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
    """The exit code of ``work``, a function or a coroutine function. An error is a line on standard error, and so is
    each fault of the settings; ``failures`` are the errors that only this script expects."""
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
    """What failed, for the operator. An error of the storage is for clients, and what it came of says more."""
    if isinstance(error, StorageAway | StorageFull):
        cause = getattr(error.__cause__, "strerror", None) or str(error) or "there is no room"
        return f"a file can't be copied ({cause})"
    if isinstance(error, PermissionError) and error.filename:
        return f"{_whose(Path(os.fsdecode(error.filename)))}, and this is user {user(os.geteuid())}"
    return str(error) or describe(error)


def _whose(path: Path) -> str:
    """Whose the file is that we may not use, or the nearest folder above it that we may look at."""
    for place in (path, *path.absolute().parents):
        try:
            held = place.lstat()
        except OSError:
            continue
        return f"{path} can't be used: {place} belongs to user {user(held.st_uid)} ({stat.filemode(held.st_mode)})"
    return f"{path} can't be used"


def fail(reason: str) -> int:
    """The exit code of a failed run, after its reason."""
    print(reason, file=sys.stderr)
    return FAILED


def usage_error(reason: str) -> int:
    """The exit code of wrong usage that only settings show, after its reason; parsers have ``error`` for the rest."""
    print(reason, file=sys.stderr)
    return WRONG_USAGE


def format_time(moment: datetime | None) -> str | None:
    """A time as scripts tell it: in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None
