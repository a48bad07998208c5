"""``python -m tests.bench.peers``: the same 1:1 load on ejabberd and prosody with their archives, and on ours.

All archive each message in the same run, on the same core, with the same PostgreSQL. What is missing is installed from
apt when we are root; each server is started here on loopback, with its own data, and stopped at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from tests.bench import machine, report, rivals, users
from tests.bench.calls import sockets_of
from tests.bench.chats import audit, talking
from tests.bench.figures import OURS, Bench, Figure, Measured
from tests.bench.machine import Meter, Target
from tests.bench.pairs import USERS, Talker, latency, throughput
from tests.bench.rivals import Rival
from tests.bench.scenarios import IDLE, IDLE_WARM, RATE
from tests.bench.users import User
from tests.bench.xmpp import Client
from tests.running import Services

MOST = 600  # seconds for one run of everything
ATTEMPTS = 4  # at a measurement that others disturb
FASTER = (1_000, 2_000)  # messages a second at which ours is measured as well; the peers end before

Starts = Callable[[Services, int, list[str]], AbstractAsyncContextManager[Rival]]
PEERS: dict[str, tuple[str, Starts]] = {
    "ejabberd": ("ejabberd, mod_mam in PostgreSQL", rivals.ejabberd),
    "prosody-files": ("prosody, mod_mam in files", partial(rivals.prosody, storage="internal")),
    "prosody-sql": ("prosody, mod_mam in PostgreSQL", partial(rivals.prosody, storage="sql")),
}
THROUGHPUT = {"ejabberd": 6.0, "prosody-files": 4.0}  # times theirs
LATENCY = {"ejabberd": 0.25}


def _names(count: int) -> list[str]:
    return [f"bench{number:05}" for number in range(count)]


@contextlib.asynccontextmanager
async def _clients(target: Target, names: list[str]) -> AsyncIterator[list[Client]]:
    clients: list[Client] = []
    try:
        for name in names:
            clients.append(await Client.open(target.host, target.port, name))  # noqa: PERF401  # kept so that it is closed
        for one, two in zip(clients[::2], clients[1::2], strict=True):
            one.write_to(two)
            two.write_to(one)
        yield clients
    finally:
        for client in clients:
            client.close()


@contextlib.asynccontextmanager
async def _ours(services: Services, beside: int) -> AsyncIterator[tuple[Target, list[User]]]:
    async with machine.place(services) as place:
        accounts = await users.create(place, IDLE_WARM + IDLE, "bench")
        async with machine.server(place, beside) as target:
            yield target, accounts


async def exchange(bench: Bench, names: list[str], services: Services, beside: int) -> list[Figure]:
    """Messages a second, and milliseconds at fixed rates. Raises RuntimeError when an archive lacks a message."""
    rates = {
        name: [Figure("1:1 messages", "msg/s", PEERS[name][0], THROUGHPUT.get(name), True)] for name in _peers(names)
    }
    times = {
        name: [
            Figure(f"message p50 at {RATE}/s", "ms", PEERS[name][0], None, False),
            Figure(f"message p99 at {RATE}/s", "ms", PEERS[name][0], LATENCY.get(name), False),
        ]
        for name in _peers(names)
    }
    figures: list[Figure] = []
    async with contextlib.AsyncExitStack() as stack:
        targets: dict[str, Target] = {}
        talkers: dict[str, list[Talker]] = {}
        running: dict[str, Rival] = {}
        for name in _peers(names):
            running[name] = await stack.enter_async_context(PEERS[name][1](services, beside, _names(USERS)))
            targets[name] = running[name].target
            talkers[name] = await stack.enter_async_context(_clients(targets[name], _names(USERS)))
        if OURS in names:
            targets[OURS], accounts = await stack.enter_async_context(_ours(services, beside))
            talkers[OURS] = await stack.enter_async_context(talking(targets[OURS], accounts))

        figures += await bench.compare(
            rates, lambda name: throughput(bench, targets[name], talkers[name]), ours=OURS in names
        )
        figures += await bench.compare(
            times, lambda name: latency(bench, targets[name], talkers[name], RATE), ours=OURS in names
        )
        for rate in FASTER if OURS in names else ():
            pair = [Figure(f"message {end} at {rate:,}/s", "ms", "", None, False) for end in ("p50", "p99")]
            figures += await bench.alone(pair, partial(latency, bench, targets[OURS], talkers[OURS], rate))

        for name, rival in running.items():
            sent, archived = sum(client.sent for client in talkers[name]), await rival.archived()
            print(f"{PEERS[name][0]}: {archived:,} archived of {sent:,} messages to two users", file=sys.stderr)
            if archived != 2 * sent:
                raise RuntimeError(f"{name} didn't archive everything, so it didn't do the same work")
        if OURS in names:
            stored = await audit(targets[OURS], talkers[OURS])
            print(f"ours: {stored:,} stored, as many as were acknowledged", file=sys.stderr)
    return figures


def _peers(names: list[str]) -> list[str]:
    return [name for name in names if name != OURS]


async def idle(bench: Bench, names: list[str], services: Services, beside: int) -> list[Figure]:
    """Resident memory of the server process for each idle connection."""
    figures = {
        name: [Figure(f"idle connection, of {IDLE}", "KiB", PEERS[name][0], None, False)] for name in _peers(names)
    }

    async def measure(name: str) -> Measured:
        # A fresh process each time: memory once taken is not given back.
        async with contextlib.AsyncExitStack() as stack:
            if name == OURS:
                target, accounts = await stack.enter_async_context(_ours(services, beside))
                connect = partial(sockets_of, target)
            else:
                accounts = _names(IDLE_WARM + IDLE)
                target = (await stack.enter_async_context(PEERS[name][1](services, beside, accounts))).target
                connect = partial(_clients, target)
            await stack.enter_async_context(connect(accounts[:IDLE_WARM]))
            await asyncio.sleep(1)
            meter, before = Meter(target), target.rss()
            connections = await stack.enter_async_context(connect(accounts[IDLE_WARM:]))
            await asyncio.sleep(2)  # what arrival leaves to be done
            use, grown = meter.read(), target.rss() - before
            if any(connection.lost for connection in connections):
                raise RuntimeError("idle connections were lost")
            return [grown / IDLE], use

    return await bench.compare(figures, measure, ours=OURS in names, timed=False)


async def measure(names: list[str], runs: int, quick: bool) -> list[Figure]:
    """The figures of those servers."""
    rivals.install()
    machine.take_load_core()
    seconds, warm_up = (1.0, 0.3) if quick else (5.0, 1.0)
    async with asyncio.timeout(MOST * runs), machine.services() as (services, beside):
        bench = Bench(None, None, [], runs, seconds, warm_up, attempts=1 if quick else ATTEMPTS)
        gc.collect()
        gc.freeze()
        gc.disable()
        figures = await exchange(bench, names, services, beside)
        return figures + await idle(bench, names, services, beside)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    known = (*PEERS, OURS)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(known)}; without any, all")
    report.options(parser)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    try:
        return report.tell(arguments, lambda runs: measure(arguments.names or list(known), runs, arguments.quick))
    except rivals.Missing as missing:
        print(missing, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
