"""``python -m tests.bench``: measures what is named, prints a table, and leaves nothing running behind."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import platform
import signal
import statistics
import sys
import time
from dataclasses import asdict, astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from tests.bench import machine, users
from tests.bench.figures import Bench, Figure
from tests.bench.machine import Use
from tests.bench.scenarios import IDLE, IDLE_WARM, SCENARIOS

MOST = 600  # seconds that one run of one scenario may take; beyond it something hangs
ATTEMPTS = 4  # at a measurement that others disturb
SATURATED = 0.9  # share of its core from which the load, not the server, may be what is measured


async def measure(names: list[str], runs: int, quick: bool) -> list[Figure]:
    """The figures of those scenarios."""
    figures: list[Figure] = []
    seconds, warm_up = (1.0, 0.3) if quick else (5.0, 1.0)
    machine.take_load_core()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(MOST * runs * len(names)))
        services, beside = await stack.enter_async_context(machine.services())
        place = await stack.enter_async_context(machine.place(services))
        accounts = await users.create(place, IDLE + IDLE_WARM, "bench")
        bare = await stack.enter_async_context(machine.yardstick(beside))
        ours = await stack.enter_async_context(machine.server(place, beside))
        bench = Bench(ours, bare, accounts, runs, seconds, warm_up, attempts=1 if quick else ATTEMPTS)
        gc.collect()
        gc.freeze()
        gc.disable()
        for name in names:
            started = time.monotonic()
            figures += await SCENARIOS[name](bench)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return figures


def table(figures: list[Figure]) -> str:
    """What people read."""
    head = (
        "figure",
        "unit",
        "ours",
        "yardstick",
        "ratio (min-max)",
        "goal",
        "CPU ours",
        "CPU yardstick",
        "yardstick is",
    )
    lines = [head]
    for figure in figures:
        goal = ""
        if figure.goal is not None:
            unit = f" {figure.unit}" if figure.absolute else ""
            goal = f"{'>=' if figure.more else '<='} {figure.goal}{unit} {'reached' if figure.reached else 'MISSED'}"
        ratio = ""
        if figure.ratio is not None:
            ratio = f"{figure.ratio:.2f} ({min(figure.ratios):.2f}-{max(figure.ratios):.2f})"
        lines.append(
            (
                figure.name,
                figure.unit,
                _number(figure.ours),
                _number(figure.yardstick),
                ratio,
                goal,
                _use(figure.use_ours),
                _use(figure.use_yardstick),
                figure.beside,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    foot = (
        "CPU, % of a core: server + PostgreSQL and Valkey + others / load generator + others. All are medians;"
        " the ratio is that of the runs' ratios. Rates are per second of the core that others left."
    )
    return "\n".join([*rows, foot])


def _number(values: list[float]) -> str:
    if not values:
        return ""
    middle = statistics.median(values)
    return f"{middle:,.0f}" if middle >= 100 else f"{middle:.2f}"


def _middle(uses: list[Use]) -> Use:
    return Use(*(statistics.median(values) for values in zip(*map(astuple, uses), strict=True)))


def _use(uses: list[Use]) -> str:
    if not uses:
        return ""
    use = _middle(uses)
    return f"{use.server:.0%} + {use.services:.0%} + {use.others:.0%} / {use.load:.0%} + {use.load_others:.0%}".replace(
        "%", ""
    )


def document(figures: list[Figure], runs: int) -> dict[str, Any]:
    """What programs read."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "server_core": machine.SERVER_CORE,
        "load_core": machine.LOAD_CORE,
        "runs": runs,
        "figures": [
            {
                "name": figure.name,
                "unit": figure.unit,
                "ours": figure.ours,
                "yardstick": figure.yardstick,
                "yardstick_is": figure.beside,
                "ratio": figure.ratio,
                "ratios": figure.ratios,
                "goal": figure.goal,
                "reached": figure.reached,
                "cpu_ours": [asdict(use) for use in figure.use_ours],
                "cpu_yardstick": [asdict(use) for use in figure.use_yardstick],
            }
            for figure in figures
        ],
    }


async def _until_told(names: list[str], runs: int, quick: bool) -> list[Figure]:
    """Ctrl-C and SIGTERM end our children with us."""
    task = asyncio.current_task()
    assert task is not None
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    return await measure(names, runs, quick)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(SCENARIOS)}; without any, all")
    parser.add_argument("--runs", type=int, default=None, help="runs of each measurement (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one short run: shows that it works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's figures there")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    runs = max(1, arguments.runs or (1 if arguments.quick else 3))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(_until_told(arguments.names or list(SCENARIOS), runs, arguments.quick))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(document(figures, runs), indent=2) + "\n")
    for figure in figures:
        uses = [*figure.use_ours, *figure.use_yardstick]
        if _middle(uses).load > SATURATED:
            print(f"The load generator was saturated in {figure.name}: its figure is a lower bound.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
