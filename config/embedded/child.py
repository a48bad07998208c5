"""A server program as our child: start it on a free loopback port, restart it if it dies, and end it when we end."""

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

START_TIMEOUT = 60  # seconds to be ready; replaying 512 MB of WAL on a slow disk takes about 20
STOP_TIMEOUT = 10  # seconds for each signal, as long as Docker waits in all by default
MAX_LOG = 5_000_000  # bytes; there is one older file of at most about this size
LOG_INTERVAL = 30  # seconds between two looks at the size of the log

_log = structlog.get_logger(__name__)


@dataclass
class Child:
    """A program, how to start it and how to end it.

    ``command`` and ``ready`` take the port. ``stops`` are signals, the gentlest first; ``orphaned`` is the signal that
    the kernel sends when our process has died (Linux only).
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
        """Start it, yield its port once it is ready, restart it on that port when it dies, and stop it at the end.

        Raises EmbeddedError, with the end of its log, if it doesn't start.
        """
        port = await self._start_on_free_port()
        keeper = asyncio.create_task(self._keep(port), name=f"keep embedded {self.name}")
        try:
            yield port
        finally:
            keeper.cancel()
            try:
                await asyncio.wait([keeper])
            finally:
                await self._stop()

    async def _start_on_free_port(self) -> int:
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
        await self._stop_leftover()
        _limit_size(_log_file(self.home))
        since = _size(_log_file(self.home))
        self._process = process = await _launch(self.command(port), self.home, self.home.data, self.orphaned)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while process.returncode is None:
                    if await self.ready(port):
                        _log.info(f"embedded_{self.name}_started", port=port, pid=process.pid)
                        return
                    await asyncio.sleep(0.02)  # a second start takes less than 0.1 s
        except TimeoutError:
            await self._stop()
            raise _failure(self.name, f"wasn't ready within {START_TIMEOUT} s", self.home, since) from None
        except BaseException:
            await self._stop()
            raise
        raise _failure(self.name, f"stopped as it started (status {process.returncode})", self.home, since)

    async def _keep(self, port: int) -> None:
        pause = 0.1
        while True:
            since = time.monotonic()
            status = await self._wait_until_ended()
            _log.error(f"embedded_{self.name}_died", status=status, log=str(_log_file(self.home)))
            if time.monotonic() - since > 60:  # it ran well after the last restart
                pause = 0.1
            while True:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 30)
                try:
                    await self._start(port)
                    break
                except (EmbeddedError, OSError) as error:
                    _log.error(f"embedded_{self.name}_restart_failed", reason=str(error).splitlines()[0])

    async def _wait_until_ended(self) -> int:
        assert self._process is not None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOG_INTERVAL):
                    return await self._process.wait()
            _limit_size(_log_file(self.home))

    async def _stop(self) -> None:
        # If this is cancelled, the child has got a signal and ends later.
        if self._process is None:
            return
        for stop in (*self.stops, SIGKILL):
            with suppress(ProcessLookupError):
                self._process.send_signal(stop)
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self._process.wait()
                    return

    async def _stop_leftover(self) -> None:
        # An earlier server was killed and its child still runs, for long if the kernel does not end it.
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
            for _ in range(STOP_TIMEOUT * 50):
                if ours not in _command(pid):
                    break
                await asyncio.sleep(0.02)
        # In a restarted container another process often has that number, and PostgreSQL would refuse to start.
        self.pid_file.unlink(missing_ok=True)


async def run(name: str, command: Sequence[str], home: Home, folder: Path, text: str = "") -> None:
    """Run a program in ``folder`` to its end, with ``text`` as its input.

    Raises EmbeddedError, with the end of its log, if it fails.
    """
    since = _size(_log_file(home))
    process = await _launch(command, home, folder, SIGTERM, stdin=PIPE)
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await process.communicate(text.encode())
    except BaseException as error:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise _failure(name, f"wasn't done within {START_TIMEOUT} s", home, since) from None
        raise
    if process.returncode != 0:
        raise _failure(name, f"failed (status {process.returncode})", home, since)


async def _launch(command: Sequence[str], home: Home, folder: Path, orphaned: Signals, stdin: int = DEVNULL) -> Process:
    launch = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), str(os.getpid())]
    launch += [str(int(orphaned)), home.user.pw_name if home.user else "", str(folder)]
    # Our environment holds secrets, and that of a process can be read by the user it runs as.
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment["LC_ALL"] = "C"  # logs in English, which _failure reads too
    with _open_to_append(_log_file(home)) as log:
        return await asyncio.create_subprocess_exec(
            *launch, *command, stdin=stdin, stdout=log, stderr=log, env=environment
        )


def _failure(name: str, how: str, home: Home, since: int) -> EmbeddedError:
    log = _log_file(home)
    with log.open("rb") as file:
        file.seek(max(since, _size(log) - 4000))
        lines = file.read().decode(errors="replace").splitlines()[-20:]
    # A program raises no exceptions: the English text of its log is all that we have.
    kind = InUse if any("in use" in line for line in lines) else EmbeddedError
    return kind("\n  ".join([f"The embedded {name} {how}. The end of its log, {log}:", *lines]))


def _log_file(home: Home) -> Path:
    return home.path / "log"


def _open_to_append(log: Path) -> IO[bytes]:
    return open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _limit_size(log: Path) -> None:
    # Copied and truncated, not renamed: the child has it open, and appends.
    if _size(log) > MAX_LOG:
        shutil.copy(log, log.with_name("log.1"))
        os.truncate(log, 0)


def _free_port() -> int:
    for _ in range(100):
        # Below the ports that systems use for outgoing connections: one of those could take the port while we restart.
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
    """Return the command line of a process; empty if it has ended, or is a zombie."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    ps = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return ps.stdout
