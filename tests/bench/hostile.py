"""What one hostile account does to fifty people who behave, and to the server, with the limits of the default.

For each attack another account, whose budgets are full; before each a quiet phase. The yardstick is the median of the
quiet phases. A separate process attacks, behind the honest ones on the load's core. The memory is watched from
outside: no limit ends the server, for what it would have used is a better figure than that it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg
import orjson
from redis.asyncio import Redis

from scripts import vapid_keys
from tests.bench import machine, users
from tests.bench.attacks import ATTACKS
from tests.bench.figures import Bench, Figure
from tests.bench.honest import Honest, Times
from tests.bench.machine import LOAD_CORE, Meter, Target
from tests.bench.users import User
from tests.client import Account
from tests.running import ROOT, Services

HONEST, PEOPLE = 50, 1_024
NOTES = 60  # of 64 KiB in a chat, and half as many chats with one and with 16 KiB of settings: some pages of 1 MiB
MEMORY = 448  # MiB of the server's container in docker-compose.yml
REDIS = 64  # MiB that one account may fill at most
TIMES = 3.0  # as long as in the quiet phase
QUIET = 0.8  # share of an attack's time that the quiet phase before it takes
REST = 0.2  # of an attack's time, before and after it
PREPARING = 120  # seconds
SAMPLES = 0.25  # seconds


@dataclass
class Stand:
    """What the server and its services hold, in MiB."""

    rss: float
    pss: float
    redis: float
    database: float


async def stand(target: Target) -> Stand:
    assert target.place is not None
    redis = Redis.from_url(target.place.redis)
    connection = await asyncpg.connect(target.place.dsn)
    try:
        used = (await redis.info("memory"))["used_memory"]
        size = await connection.fetchval("SELECT pg_database_size(current_database())")
    finally:
        await connection.close()
        await redis.aclose()
    return Stand(target.rss() / 1024, pss(target) / 1024, used / 2**20, size / 2**20)


def pss(target: Target) -> int:
    """Resident memory in KiB, of shared pages its part."""
    text = Path(f"/proc/{target.pid}/smaps_rollup").read_text()
    return int(text.partition("\nPss:")[2].split()[0])


class Attacker:
    """The process that attacks."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, world: dict[str, object]) -> AsyncIterator[Attacker]:
        pipe = asyncio.subprocess.PIPE
        with machine.pinned(LOAD_CORE):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.bench.attacks", cwd=ROOT, stdin=pipe, stdout=pipe, start_new_session=True
            )
        attacker = cls(process)
        try:
            attacker._say(orjson.dumps(world).decode())
            yield attacker
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def _read(self, seconds: float) -> str:
        assert self._process.stdout is not None
        line = (await asyncio.wait_for(self._process.stdout.readline(), seconds)).decode().strip()
        if not line:
            raise RuntimeError("the attacker ended")
        return line

    async def prepare(self, attack: str) -> None:
        self._say(attack)
        await self._read(PREPARING)

    def go(self, seconds: float) -> None:
        self._say(str(seconds))

    async def answers(self, seconds: float) -> dict[str, int]:
        found: dict[str, int] = orjson.loads(await self._read(seconds))
        return found


@dataclass
class Attacked:
    """One attack, and what it did."""

    name: str
    quiet: Times
    times: Times
    most: Stand  # what there was at most
    grown: Stand  # in the whole attack with its preparation
    answers: dict[str, int]
    use: machine.Use
    use_quiet: machine.Use


async def attack(
    name: str, seconds: float, target: Target, attacker: Attacker, honest: Honest, before: Stand
) -> Attacked:
    """A quiet phase, then the attack."""
    meter = Meter(target)
    quiet = await honest.phase(QUIET * seconds)
    use_quiet = meter.read()
    start = await stand(target)
    await attacker.prepare(name)
    await asyncio.sleep(REST * seconds)
    Path(f"/proc/{target.pid}/clear_refs").write_text("5")  # VmHWM begins again
    meter, samples, going = Meter(target), [await stand(target)], True

    async def sample() -> None:
        while going:
            await asyncio.sleep(SAMPLES)
            samples.append(await stand(target))

    sampling = asyncio.create_task(sample())
    attacker.go(seconds)
    times = await honest.phase(seconds)
    use = meter.read()
    answers = await attacker.answers(30)
    going = False
    await sampling
    await asyncio.sleep(REST * seconds)
    end = await stand(target)
    most = Stand(
        target.peak() / 1024,
        max(each.pss for each in samples),
        max(each.redis for each in samples),
        max(each.database for each in samples),
    )
    grown = Stand(end.rss - start.rss, end.pss - start.pss, most.redis - before.redis, end.database - start.database)
    return Attacked(name, quiet, times, most, grown, answers, use, use_quiet)


def p99(seconds: list[float]) -> float:
    """Milliseconds."""
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1e3 if seconds else float("inf")


@contextlib.asynccontextmanager
async def scene(
    services: Services, beside: int, names: list[str]
) -> AsyncIterator[tuple[Target, list[User], dict[str, list[User]]]]:
    """A server with the limits of the default, a crowd, and for each attack an account and its accomplice."""
    async with machine.place(services) as place:
        crowd = await users.create(place, PEOPLE + 200, "hostile")
        with tempfile.TemporaryDirectory(prefix="mimu-bench-") as folder:
            key = Path(folder) / "vapid.pem"
            vapid_keys.make(key)
            settings = {
                "RATE_LIMITS": "on",
                "RATE_LIMIT_REGISTER": "1000/hour",  # so that there are accounts
                "TRUSTED_PROXIES": "127.0.0.1/32",  # so that passwords come from many addresses
                "VAPID_PRIVATE_KEY_FILE": str(key),
                "VAPID_SUBJECT": "mailto:ops@example.org",
                "PUSH_ALLOW_PRIVATE": "true",  # so that a silent push service can be here
                "DATABASE_MAX_CONNECTIONS": "20",
            }
            async with machine.server(place, beside, **settings) as target:
                accounts = {}
                for name in names:
                    two = [await Account(one_time=0).register(target.url) for _ in range(2)]
                    accounts[name] = [User(each.user_id, each.public_id, each.token) for each in two]
                yield target, crowd, accounts


async def run(
    services: Services, beside: int, names: list[str], seconds: float, *, people: int = PEOPLE, notes: int = NOTES
) -> tuple[list[Attacked], int, Stand, Stand]:
    """All the attacks; how many messages were not acknowledged, and what was held before and after."""
    found = []
    async with contextlib.AsyncExitStack() as stack:
        target, crowd, accounts = await stack.enter_async_context(scene(services, beside, names))
        world: dict[str, object] = {
            "host": target.host,
            "port": target.port,
            "people": people,
            "notes": notes,
            "accounts": {name: list(map(asdict, two)) for name, two in accounts.items()},
            "crowd": list(map(asdict, crowd)),
        }
        attacker = await stack.enter_async_context(Attacker.of(world))
        honest = await stack.enter_async_context(Honest.of(target, crowd[:HONEST]))
        await honest.phase(1)
        before = await stand(target)
        for name in names:
            done = await attack(name, seconds, target, attacker, honest, before)
            found.append(done)
            print(
                f"{name}: acks {p99(done.times.acks):.1f} of {p99(done.quiet.acks):.1f} ms, requests"
                f" {p99(done.times.requests):.1f} of {p99(done.quiet.requests):.1f} ms, {done.most.rss:.0f} MiB"
                f" ({done.most.pss:.0f} PSS), Redis {done.grown.redis:+.1f}, PostgreSQL {done.grown.database:+.1f} MiB,"
                f" answers {done.answers}, server {done.use.server:.0%} + {done.use.services:.0%},"
                f" honest: {len(done.times.acks)} acks, {len(done.times.requests)} answers,"
                f" failed {sorted(set(done.quiet.failures + done.times.failures))[:3]},"
                f" sockets closed {dict(done.times.closed)}, in the quiet phase {dict(done.quiet.closed)}",
                file=sys.stderr,
            )
        await honest.phase(1)
        return found, honest.overdue(), before, await stand(target)


async def hostile(bench: Bench) -> list[Figure]:
    """What each attack does to acks and requests of fifty others, and what it makes the server hold."""
    figures: dict[str, Figure] = {}

    def add(name: str, unit: str, value: float, done: Attacked | None = None, **more: float) -> None:
        quiet, goal = more.get("quiet"), more.get("goal")
        beside = "the quiet phases" if quiet is not None else ""
        figure = figures.setdefault(name, Figure(name, unit, beside, goal, False, absolute=quiet is None))
        figure.ours.append(value)
        if quiet is not None:
            figure.yardstick.append(quiet)
        if done is not None:
            figure.use_ours.append(done.use)
            if quiet is not None:
                figure.use_yardstick.append(done.use_quiet)

    assert bench.services is not None
    for _ in range(bench.runs):
        found, lost, before, after = await run(bench.services, bench.ours.services, list(ATTACKS), bench.seconds)
        acks = statistics.median(p99(each.quiet.acks) for each in found)
        requests = statistics.median(p99(each.quiet.requests) for each in found)
        for each in found:
            add(f"ack p99: {each.name}", "ms", p99(each.times.acks), each, quiet=acks, goal=TIMES)
            add(f"request p99: {each.name}", "ms", p99(each.times.requests), each, quiet=requests, goal=TIMES)
            add(f"memory: {each.name}", "MiB", each.most.rss, goal=MEMORY)
        failures = sum(len(each.quiet.failures) + len(each.times.failures) for each in found)
        add("most memory (RSS)", "MiB", max(each.most.rss for each in found), goal=MEMORY)
        add("most memory (PSS)", "MiB", max(each.most.pss for each in found), goal=MEMORY)
        add("most that Redis grew", "MiB", max(each.grown.redis for each in found), goal=REDIS)
        add("PostgreSQL grew", "MiB", after.database - before.database)
        add("honest requests and messages that failed", "", failures, goal=0)
        add("honest messages without an ack", "", lost, goal=0)
        add("honest sockets closed", "", sum((each.quiet.closed + each.times.closed).total() for each in found))
    return list(figures.values())


SCENARIOS = {"hostile": hostile}
