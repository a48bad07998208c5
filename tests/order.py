"""The order of the files, as a plugin of pytest: with several processes those that take longest come first.

A file is run by one process, and a long one that begins last would keep the others waiting at the end. After a run the
slowest files are shown, so that this list can follow.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.running import ROOT

# The longest first; those that wait and those that compute in turn.
LONGEST = ("tests/test_schemathesis.py",)
SHOWN = 10


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {ROOT / name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(Path(item.path), len(places)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[file_of(report.nodeid)] += report.duration  # type: ignore[assignment]
    if len(seconds) > SHOWN:
        terminalreporter.section("slowest files")
        for name, taken in seconds.most_common(SHOWN):
            terminalreporter.write_line(f"{taken:6.1f}s {name}{'' if name in LONGEST else ' (not in tests/order.py)'}")
