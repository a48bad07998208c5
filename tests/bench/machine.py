"""The machine a benchmark runs on: which core does what, the processes that are measured, and what they used."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.running import ROOT, Place, Services, place, program

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE") // 1024
QUIET = 0.05  # share of its core that a server uses, with its services, when it has nothing to do
SOCKETS = 16_384  # open files that a run may need: sockets at both ends


def cores() -> tuple[int, int]:
    """The core of the servers and that of the load; on a machine with one core they share it."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[-1] if len(available) == 1 else available[1]


SERVER_CORE, LOAD_CORE = cores()


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Stay on that core until the block ends; processes started inside stay there for ever."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def take_load_core() -> None:
    """Move this process to the load's core, with room for many sockets (children inherit the room)."""
    os.sched_setaffinity(0, {LOAD_CORE})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = SOCKETS if most == resource.RLIM_INFINITY else min(SOCKETS, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True)
class Target:
    """A server under load: ours, or the yardstick."""

    ours: bool
    host: str
    port: int
    pid: int
    services: int  # the process whose children PostgreSQL and Valkey are
    place: Place | None = None
    more: tuple[int, ...] = ()  # processes of other instances, whose use counts as well

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def socket_path(self, user_id: str) -> str:
        return "/ws" if self.ours else f"/ws/{user_id}"

    def rss(self) -> int:
        """Resident memory in KiB."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE

    def peak(self) -> int:
        """The most resident memory it ever had, in KiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])


@dataclass(frozen=True)
class Use:
    """Shares of a core used during a measurement: by the server process, by its PostgreSQL and Valkey, by others on
    the same core (a noisy neighbour, or the hypervisor), by the load generator, and by others on that one's core."""

    server: float
    services: float
    others: float
    load: float
    load_others: float

    @property
    def noise(self) -> float:
        """What others took of either core; they delay what the load generator sees as much as what the server does."""
        return max(self.others, self.load_others)

    @property
    def left(self) -> float:
        """The share of the core that other processes left. A rate divided by it is the rate on an undisturbed core."""
        return max(0.1, 1 - self.others)


class Meter:
    """Measures Use from its making to ``read``."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._wall, self._before = time.perf_counter(), self._now()

    def _now(self) -> tuple[float, ...]:
        used = _processes()
        server = sum(used[pid][1] for pid in (self._target.pid, *self._target.more))
        services = sum(used[pid][1] for pid in _family(used, self._target.services))
        load = time.process_time()
        ours = server + services + (load if LOAD_CORE == SERVER_CORE else 0)
        beside = 0.0 if LOAD_CORE == SERVER_CORE else _busy(LOAD_CORE) - load
        return server, services, _busy(SERVER_CORE) - ours, load, beside

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._wall

    def read(self) -> Use:
        wall, now = self.seconds, self._now()
        return Use(*(max(0.0, after - before) / wall for before, after in zip(self._before, now, strict=True)))


async def quiet(target: Target) -> None:
    """Wait until a server has done what the coming or going of many sockets left it to do, half a minute at most."""
    for _ in range(60):
        meter = Meter(target)
        await asyncio.sleep(0.5)
        use = meter.read()
        if use.server + use.services < QUIET:
            return


def _busy(core: int) -> float:
    """Seconds that a core was not idle since the machine started (proc(5))."""
    line = next(x for x in Path("/proc/stat").read_text().splitlines() if x.startswith(f"cpu{core} "))
    ticks = [int(x) for x in line.split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICK  # the fourth and fifth: idle, iowait


def _processes() -> dict[int, tuple[int, float]]:
    """Every process's parent, and the processor seconds that it and its ended children used (proc(5))."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it may have ended meanwhile
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = (int(after_name[1]), sum(map(int, after_name[11:15])) / _TICK)
    return found


def _family(processes: dict[int, tuple[int, float]], root: int) -> set[int]:
    """A process and all its descendants."""
    family, grown = {root}, True
    while grown:
        more = {pid for pid, (parent, _) in processes.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return family & processes.keys()


@contextlib.asynccontextmanager
async def child(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A program on the servers' core that tells one line when it is up, and ends with its standard input."""
    with pinned(SERVER_CORE):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; we end our children in order
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        if not line:
            raise RuntimeError(f"{' '.join(arguments)} did not start")
        yield process, line
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def services() -> AsyncIterator[tuple[Services, int]]:
    """PostgreSQL and Valkey with the settings of the embedded default, and the process whose children they are. Their
    data are in a folder that goes with them."""
    folder = Path(tempfile.mkdtemp(prefix="mimu-bench-"))
    folder.chmod(0o755)  # PostgreSQL runs as another user when we are root
    try:
        async with child("-m", "tests.services", str(folder)) as (process, line):
            addresses = json.loads(line)
            yield Services(addresses["dsn"], addresses["redis"]), process.pid
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def yardstick(beside: int) -> AsyncIterator[Target]:
    """The bare program; ``beside`` is the process of the services, which have nothing to do for it."""
    async with child("-m", "tests.bench.yardsticks") as (process, line):
        yield Target(False, "127.0.0.1", int(line), process.pid, beside)


@contextlib.asynccontextmanager
async def server(
    where: Place, beside: int, *, started: Sequence[str] = (str(ROOT / "server.py"),), **settings: str
) -> AsyncIterator[Target]:
    """The real program, on a database that is there already; ``beside`` is the process of the services."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mimu-bench-")))
        with pinned(SERVER_CORE):
            settings = {"LOG_LEVEL": "warning", "MIMU_DATA_DIR": str(folder), **settings}
            running = await stack.enter_async_context(program(where, folder, started=started, **settings))
        address = urlsplit(running.url)
        assert address.hostname
        assert address.port
        try:
            yield Target(True, address.hostname, address.port, running.process.pid, beside, where)
        finally:
            complaints = running.log_text()
            if complaints:
                print(f"The server complained:\n{complaints[:2000]}", file=sys.stderr)


__all__ = [
    "Meter",
    "Place",
    "Target",
    "Use",
    "child",
    "pinned",
    "place",
    "quiet",
    "server",
    "services",
    "take_load_core",
    "yardstick",
]
