"""Metrics, alerts and the dashboard: they name what a server shows, and Prometheus takes them."""

from __future__ import annotations

import asyncio
import configparser
import io
import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from config import logs, reasons
from config.version import VERSION
from handlers import metrics, vitals
from handlers.sockets import hub
from models.postgres.fence import REASONS
from models.postgres.statements import OPERATIONS
from plugins.calls.tally import ENDS
from tests import canaries
from tests.monitoring.live import DASHBOARD, FOLDER, Seen, live, program, queries
from tests.running import ROOT, Services
from tests.test_docs import listed_errors, part
from tests.test_links import anchors

MONITORING, RUNBOOK = ROOT / "docs/monitoring.md", ROOT / "docs/runbook.md"
ALERTS, TRIALS = FOLDER / "alerts.yml", FOLDER / "alerts_test.yml"

# What Prometheus adds, and makes itself.
ADDED, MADE = {"job", "instance"}, {"up": set[str](), "ALERTS": {"alertname", "alertstate"}}
KINDS = {"message_new", "call_offer", "call_hangup", "prekeys_low"}

pytestmark = pytest.mark.skipif(program("promtool") is None, reason="Prometheus is not installed")


@pytest.fixture(scope="module")
def seen(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    logs.configure("error", io.StringIO())
    yield asyncio.run(live(services, tmp_path_factory.mktemp("monitoring")))
    canaries.clear()


def promtool(*arguments: str, given: str | None = None) -> None:
    """Run promtool, which must be content."""
    command = [program("promtool") or "promtool", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Metrics --------------------------------------------------------------------------------------------------------------


def test_names_and_units_are_those_of_the_field(seen: Seen) -> None:
    promtool("check", "metrics", given=seen.metrics)


def families(text: str) -> dict[str, str]:
    """The type of each metric in /metrics, by name."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def described() -> dict[str, tuple[set[str], str]]:
    """The labels and the words of each metric of the document."""
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\| (.*) \|$", part(MONITORING, "Metrics"), re.MULTILINE)
    found = {name: (set(re.findall(r"`(\w+)`", labels)), words) for name, labels, words in rows}
    assert len(found) == len(rows), "one stands there twice"
    return found


def test_every_metric_is_described_and_no_other(seen: Seen) -> None:
    assert described().keys() == families(seen.metrics).keys()


def test_metrics_are_described_with_their_labels_and_their_kind(seen: Seen) -> None:
    samples, kinds = seen.samples, families(seen.metrics)
    for name, (labels, words) in described().items():
        made = [samples.get(name + suffix, {}) for suffix in ("", "_bucket", "_sum", "_count")]
        shown = {label for sample in made for label in sample} - {"le"}
        assert shown == labels, name
        kind = kinds[name]
        assert (kind == "counter") == name.endswith("_total"), name
        assert words.startswith(f"{kind}") == (kind in ("histogram", "summary")), name


def test_no_label_has_a_value_of_a_user(seen: Seen) -> None:
    """Ids, addresses and paths would create a series each, and reveal who does what."""
    for name, labels in seen.samples.items():
        for label, values in labels.items():
            assert len(values) < 60, (name, label)
            if label == "host":  # of DATABASE_URL: few, and the operator's own
                assert values == {seen.database}, name
                continue
            odd = [value for value in values if re.search(r"[0-9a-f]{8}-|u_[0-9a-f]{12}|^/|@|127\.0", value)]
            assert not odd, (name, label)


def test_the_version_that_is_shown_is_that_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == VERSION


def test_metrics_count_every_kind_of_statement() -> None:
    assert {*OPERATIONS, "OTHER"} == set(vitals.OPERATIONS)


# Alerts and the dashboard ---------------------------------------------------------------------------------------------

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\bby \(([^)]*)\)")


def closed(seen: Seen) -> dict[str, set[str]]:
    """What the labels that are matched by value may be."""
    return {
        "handler": set(seen.handlers),
        "status": {str(status) for status in listed_errors().values()},
        "code": {*listed_errors(), *map(str, (hub.GOING_AWAY, hub.SESSION_ENDED, hub.SLOW, hub.REPLACED, hub.FLOOD))},
        "way": set(metrics.WAYS),
        "cause": set(vitals.CAUSES),
        "fault": {fault for faults in reasons.FAULTS.values() for fault in faults},
        "reason": {reason for _, reason in ENDS} | set(REASONS),
        "kind": KINDS,
        "outcome": {"sent", "later", "gone", "refused", "done", "failed"},
        "part": seen.samples["mimu_push_queue_jobs"]["part"],
        "job": {"mimu"},
        "alertstate": {"firing"},
    }


def faults(expr: str, seen: Seen) -> list[str]:
    """What a query names that is not there."""
    samples: dict[str, Any] = {**{name: set(labels) for name, labels in seen.samples.items()}, **MADE}
    known, found, labels = closed(seen), [], set(ADDED)
    for name, matchers in _SELECTOR.findall(expr):
        if name not in samples:
            found.append(f"{name} is not there")
            continue
        labels |= samples[name]
        for label, operator, value in _MATCHER.findall(matchers):
            if label not in samples[name] | ADDED:
                found.append(f"{name} has no label {label}")
            elif label not in ("instance", "alertname"):
                values = value.split("|") if "~" in operator else [value]
                found += [f"{label} is never {one}" for one in values if one not in known[label]]
    for grouping in _GROUPING.findall(expr):
        found += [f"nothing has a label {one}" for one in map(str.strip, grouping.split(",")) if one not in labels]
    # A metric without braces would be of all jobs.
    bare = re.findall(r"\b(?:mimu|process)_\w+(?!\w|\{)", _STRING.sub("", expr))
    return [*found, *(f"{name} is not asked of our job" for name in bare)]


@pytest.mark.parametrize(
    "expr",
    [
        'sum(mimu_nonsense_total{job="mimu"})',
        'mimu_redis_up{job="mimu",cause="x"}',
        'sum by (nonsense) (mimu_redis_up{job="mimu"})',
        'rate(mimu_http_requests_total{job="mimu",status="599"}[5m])',
        'rate(mimu_http_requests_total{job="mimu",handler!~"Upload|Nonsense"}[5m])',
        "sum(mimu_redis_up)",
    ],
)
def test_the_check_of_queries_sees_faults(seen: Seen, expr: str) -> None:
    assert faults(expr, seen)


def test_the_configuration_is_one() -> None:
    promtool("check", "config", str(FOLDER / "prometheus.yml"))
    promtool("check", "rules", str(ALERTS))


def test_every_alert_fires_and_stays_silent() -> None:
    promtool("test", "rules", str(TRIALS))
    names = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    tried = re.findall(r"alertname: (\w+)(, exp_alerts: \[\]\}|\n\s+exp_alerts:\n\s+- )", TRIALS.read_text())
    assert sorted({name for name, how in tried if "[]" in how}) == sorted(names)
    assert sorted({name for name, how in tried if "[]" not in how}) == sorted(names)


def test_every_alert_names_what_a_server_shows(seen: Seen) -> None:
    assert len(seen.rules) == len(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
    for rule in seen.rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        assert faults(rule["query"], seen) == [], rule["name"]


def test_no_alert_is_near_at_a_server_that_is_well(seen: Seen) -> None:
    # The machine may be busy with other tests, or have little room.
    machine = re.compile(r"Slow|Late|CoreFull|DiskFull|PoolExhausted")
    states = {rule["name"]: rule["state"] for rule in seen.rules}
    assert [name for name, state in states.items() if state == "firing"] == []
    assert [name for name, state in states.items() if state == "pending" and not machine.search(name)] == []


def test_every_alert_has_its_paragraph(seen: Seen) -> None:
    for rule in seen.rules:
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "runbook_url"}
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert ROOT / path == RUNBOOK
        assert anchor in anchors(RUNBOOK)
        words = part(RUNBOOK, rule["name"])
        assert re.findall(r"^- \*\*([\w ]+):\*\*", words, re.MULTILINE) == ["Seen", "Meaning", "Look at", "Do"]
    names = {rule["name"] for rule in seen.rules}
    assert set(re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)) == names


def test_every_panel_names_what_a_server_shows(seen: Seen) -> None:
    assert seen.refused == {}
    for query in queries():
        assert faults(query, seen) == [], query


def test_every_panel_shows_something_when_something_has_happened(seen: Seen) -> None:
    quiet = re.compile(r"ALERTS|changes\(process_start_time_seconds")  # no alert fires, and no process restarted
    empty = [query for query, answer in seen.answers.items() if not answer and not quiet.search(query)]
    assert empty == []


def test_the_dashboard_is_what_grafana_reads() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 39
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} covers another panel"
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["fieldConfig"]["defaults"]["unit"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == [
        *("Overview", "HTTP", "Sockets and frames", "Messages", "Calls", "Push", "Files", "PostgreSQL and Redis"),
        "Process",
    ]
    assert [one["name"] for one in dashboard["templating"]["list"]] == ["datasource", "instance"]


def test_the_provisioning_finds_the_dashboard_and_the_metrics() -> None:
    provisioning = DASHBOARD.parents[1] / "provisioning"
    names = sorted(str(path.relative_to(provisioning)) for path in provisioning.rglob("*") if path.is_file())
    assert names == ["dashboards/mimu.yml", "datasources/prometheus.yml"]
    assert "type: prometheus" in (provisioning / "datasources/prometheus.yml").read_text()
    assert "path: /var/lib/grafana/dashboards" in (provisioning / "dashboards/mimu.yml").read_text()
