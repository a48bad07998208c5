"""``python -m tests.bench``: measures what is named, prints a table, and leaves nothing running behind."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import sys
import time

from tests.bench import fanout, hostile, machine, messages, reading, report, scenarios, users
from tests.bench.figures import Bench, Figure
from tests.bench.scenarios import IDLE, IDLE_WARM

SCENARIOS = {**scenarios.SCENARIOS, **messages.SCENARIOS, **fanout.SCENARIOS, **reading.SCENARIOS, **hostile.SCENARIOS}
MOST = 600  # seconds that one run of one scenario may take; beyond it something hangs
ATTEMPTS = 4  # at a measurement that others disturb


async def measure(names: list[str], runs: int, quick: bool) -> list[Figure]:
    """The figures of those scenarios."""
    figures: list[Figure] = []
    seconds, warm_up = (0.4, 0.1) if quick else (5.0, 1.0)
    machine.take_load_core()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(MOST * runs * len(names)))
        services, beside = await stack.enter_async_context(machine.services())
        place = await stack.enter_async_context(machine.place(services))
        accounts = await users.create(place, IDLE + IDLE_WARM, "bench")
        bare = await stack.enter_async_context(machine.yardstick(beside))
        ours = await stack.enter_async_context(machine.server(place, beside))
        bench = Bench(
            ours, bare, accounts, runs, seconds, warm_up, attempts=1 if quick else ATTEMPTS, services=services
        )
        gc.collect()
        gc.freeze()
        gc.disable()
        for name in names:
            started = time.monotonic()
            figures += await SCENARIOS[name](bench)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(SCENARIOS)}; without any, all")
    report.options(parser)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    names = arguments.names or list(SCENARIOS)
    return report.tell(arguments, lambda runs: measure(names, runs, arguments.quick))


if __name__ == "__main__":
    sys.exit(main())
