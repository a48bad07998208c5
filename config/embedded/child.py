"""A server program as our child: started on a free loopback port, kept running, and gone when we are."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import IO

import structlog

from config.embedded.home import EmbeddedError, Home, InUse

START = 60  # seconds to be ready; replaying 512 MB of WAL on a slow disk takes about 20
STOP = 10  # seconds for each way of stopping, as long as Docker waits in all by default
LOG = 5_000_000  # bytes; there is one older file of at most about this size
LOG_CHECK = 30  # seconds

_log = structlog.get_logger(__name__)


@dataclass
class Child:
    """What to start, and how to end it.

    ``command`` and ``ready`` are given the port. ``stops`` are signals, the gentlest first; ``orphaned`` is the one
    that the kernel sends when we are gone (Linux only).
    """

    name: str
    home: Home
    pid_file: Path
    command: Callable[[int], Sequence[str]]
    ready: Callable[[int], Awaitable[bool]]
    stops: Sequence[Signals]
    orphaned: Signals
    _process: Process | None = field(default=None, init=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Start it, yield its port once it is ready, restart it there when it dies, and stop it at the end.

        Raises EmbeddedError, bearing the end of its log, when it doesn't start.
        """
        port = await self._start_somewhere()
        keeper = asyncio.create_task(self._keep(port), name=f"keep embedded {self.name}")
        try:
            yield port
        finally:
            keeper.cancel()
            try:
                await asyncio.wait([keeper])
            finally:
                await self._stop()

    async def _start_somewhere(self) -> int:
        for pause in (0, 0.5, 1, 2, None):
            port = _free_port()
            try:
                await self._start(port)
                break
            except InUse:
                if pause is None:
                    raise
                await asyncio.sleep(pause)
        return port

    async def _start(self, port: int) -> None:
        await self._stop_left_behind()
        _bound(_log_file(self.home))
        since = _size(_log_file(self.home))
        self._process = process = await _launch(self.command(port), self.home, self.home.data, self.orphaned)
        try:
            async with asyncio.timeout(START):
                while process.returncode is None:
                    if await self.ready(port):
                        _log.info(f"embedded_{self.name}_started", port=port, pid=process.pid)
                        return
                    await asyncio.sleep(0.02)  # a second start takes less than 0.1 s
        except TimeoutError:
            await self._stop()
            raise _failed(self.name, f"wasn't ready within {START} s", self.home, since) from None
        except BaseException:
            await self._stop()
            raise
        raise _failed(self.name, f"stopped as it started (status {process.returncode})", self.home, since)

    async def _keep(self, port: int) -> None:
        pause = 0.1
        while True:
            since = time.monotonic()
            status = await self._ended()
            _log.error(f"embedded_{self.name}_died", status=status, log=str(_log_file(self.home)))
            if time.monotonic() - since > 60:  # it had recovered from the death before
                pause = 0.1
            while True:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 30)
                try:
                    await self._start(port)
                    break
                except (EmbeddedError, OSError) as error:
                    _log.error(f"embedded_{self.name}_restart_failed", reason=str(error).splitlines()[0])

    async def _ended(self) -> int:
        assert self._process is not None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOG_CHECK):
                    return await self._process.wait()
            _bound(_log_file(self.home))

    async def _stop(self) -> None:
        # Cancelled meanwhile, it leaves a child that was asked to end and does.
        if self._process is None:
            return
        for stop in (*self.stops, SIGKILL):
            with suppress(ProcessLookupError):
                self._process.send_signal(stop)
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP):
                    await self._process.wait()
                    return

    async def _stop_left_behind(self) -> None:
        # A former server was killed and its child lives on: for a moment or, where the kernel doesn't end it, for long.
        # We hold the lock, so no server uses it.
        pid = _first_number(self.pid_file)
        if pid is None:
            return
        ours = str(self.home.path)
        if ours in _command(pid):
            _log.warning(f"embedded_{self.name}_left_behind", pid=pid)
        for stop in (*self.stops, SIGKILL):
            if ours not in _command(pid):
                break
            with suppress(ProcessLookupError):
                os.kill(pid, stop)
            for _ in range(STOP * 50):
                if ours not in _command(pid):
                    break
                await asyncio.sleep(0.02)
        # In a container started anew that number is often another process's, and PostgreSQL would refuse to start.
        self.pid_file.unlink(missing_ok=True)


async def run(name: str, command: Sequence[str], home: Home, folder: Path, given: str = "") -> None:
    """Run a program in ``folder`` to its end, with ``given`` as its input.

    Raises EmbeddedError, bearing the end of its log, when it fails.
    """
    since = _size(_log_file(home))
    process = await _launch(command, home, folder, SIGTERM, stdin=PIPE)
    try:
        async with asyncio.timeout(START):
            await process.communicate(given.encode())
    except BaseException as error:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise _failed(name, f"wasn't done within {START} s", home, since) from None
        raise
    if process.returncode != 0:
        raise _failed(name, f"failed (status {process.returncode})", home, since)


async def _launch(command: Sequence[str], home: Home, folder: Path, orphaned: Signals, stdin: int = DEVNULL) -> Process:
    launch = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(os.getpid())]
    launch += [str(int(orphaned)), home.user.pw_name if home.user else "", str(folder)]
    # Our environment holds secrets, and that of a process can be read by the user it runs as.
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment["LC_ALL"] = "C"  # logs in English, which _failed reads too
    with _appending(_log_file(home)) as log:
        return await asyncio.create_subprocess_exec(
            *launch, *command, stdin=stdin, stdout=log, stderr=log, env=environment
        )


def _failed(name: str, how: str, home: Home, since: int) -> EmbeddedError:
    log = _log_file(home)
    with log.open("rb") as file:
        file.seek(max(since, _size(log) - 4000))
        lines = file.read().decode(errors="replace").splitlines()[-20:]
    # A program has no exceptions: what its log says, in English, is all that there is.
    kind = InUse if any("in use" in line for line in lines) else EmbeddedError
    return kind("\n  ".join([f"The embedded {name} {how}. The end of its log, {log}:", *lines]))


def _log_file(home: Home) -> Path:
    return home.path / "log"


def _appending(log: Path) -> IO[bytes]:
    return open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _bound(log: Path) -> None:
    # Copied and emptied, not renamed: the child holds it open, and appends.
    if _size(log) > LOG:
        shutil.copy(log, log.with_name("log.1"))
        os.truncate(log, 0)


def _free_port() -> int:
    for _ in range(100):
        # Below the ports that systems give to outgoing connections: one of those could sit on it while we restart.
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise EmbeddedError("No free port on 127.0.0.1 between 20000 and 32000.")


def _first_number(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _command(pid: int) -> str:
    """The command line of a process; empty when it is gone, or a zombie."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    ps = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return ps.stdout
