"""How a benchmark program ends: with a table, a file of figures, or nothing; its children have ended by then."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import signal
import statistics
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, astuple
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from tests.bench import machine
from tests.bench.figures import Figure
from tests.bench.machine import Use

SATURATED = 0.9  # share of its core from which the load, not the server, may be what is measured


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked of each of them."""
    parser.add_argument("--runs", type=int, default=None, help="runs of each measurement (default: 3)")
    parser.add_argument("--quick", action="store_true", help="one short run: shows that it works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's figures there")


def tell(arguments: argparse.Namespace, measure: Callable[[int], Awaitable[list[Figure]]]) -> int:
    """Measure in so many runs, and print the figures; the exit code. Ctrl-C and SIGTERM end our children with us."""
    runs = max(1, arguments.runs or (1 if arguments.quick else 3))

    async def measure_until_signal() -> list[Figure]:
        task = asyncio.current_task()
        assert task is not None
        for name in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(name, task.cancel)
        return await measure(runs)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(measure_until_signal())
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(document(figures, runs), indent=2) + "\n")
    for figure in figures:
        uses = [*figure.use_ours, *figure.use_yardstick]
        if uses and _middle(uses).load > SATURATED:
            print(f"The load generator was saturated in {figure.name}: its figure is a lower bound.", file=sys.stderr)
    return 0


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
            verdict = {True: " reached", False: " MISSED", None: ""}[figure.reached]
            goal = f"{'>=' if figure.more else '<='} {figure.goal}{unit}{verdict}"
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
