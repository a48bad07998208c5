"""The order of the files, as a plugin of pytest: with several processes those that take longest come first.

A file is run by one process, and a long one that begins last would keep the others waiting at the end. After a run the
slowest files are shown, so that this list can follow.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.running import ROOT

# About the longest first.
LONGEST = (
    "tests/test_schemathesis.py",
    "tests/history/test_history.py",
    "tests/files/test_outages.py",
    "tests/plugins/test_push_queue.py",
    "tests/scripts/test_backup.py",
    "tests/bench/test_bench.py",
    "tests/plugins/test_push_answers.py",
    "tests/plugins/test_push.py",
    "tests/e2e/test_call.py",
    "tests/browser/test_tabs.py",
    "tests/deploy/test_restart.py",
    "tests/bench/test_hostile.py",
    "tests/monitoring/test_monitoring.py",
    "tests/test_matrix.py",
    "tests/config/test_embedded.py",
    "tests/files/test_clients.py",
    "tests/test_rubbish.py",
    "tests/test_features.py",
    "tests/handlers/test_http.py",
    "tests/plugins/test_push_left.py",
    "tests/files/test_tus.py",
    "tests/browser/test_reference.py",
    "tests/test_failover.py",
    "tests/browser/test_phone.py",
    "tests/config/test_logs.py",
    "tests/test_outages.py",
    "tests/scripts/test_doctor.py",
    "tests/handlers/test_socket.py",
    "tests/plugins/test_receipts.py",
    "tests/plugins/test_call_races.py",
    "tests/deploy/test_connections_page.py",
    "tests/handlers/test_stop.py",
    "tests/deploy/test_systemd.py",
    "tests/plugins/test_unread.py",
    "tests/test_message_outages.py",
    "tests/scripts/test_users.py",
    "tests/scripts/test_doctor_faults.py",
    "tests/scripts/test_cleanup.py",
    "tests/deploy/test_nginx.py",
    "tests/plugins/test_sync_races.py",
    "tests/deploy/test_hung.py",
    "tests/handlers/test_inflight.py",
    "tests/history/test_crash.py",
    "tests/models/test_migrations.py",
    "tests/deploy/test_images.py",
    "tests/browser/test_origin.py",
    "tests/deploy/test_moving_page.py",
    "tests/files/test_access.py",
    "tests/browser/test_files.py",
)
SHOWN = 10


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        places = {ROOT / name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration  # type: ignore[assignment]
    if len(seconds) > SHOWN:
        terminalreporter.section("slowest files")
        for name, taken in seconds.most_common(SHOWN):
            terminalreporter.write_line(f"{taken:6.1f}s {name}{'' if name in LONGEST else ', not in tests/order.py'}")
