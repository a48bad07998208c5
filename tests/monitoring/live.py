"""A server at which things have happened, and a real Prometheus that has looked at it, seen once for many tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from server import Server
from tests.client import ask
from tests.files.transfer import got, shared
from tests.plugins.chatting import Town, chat, message, say
from tests.plugins.pushing import pushing, registered
from tests.running import ROOT, Services, periodic

FOLDER = ROOT / "config/deploy/prometheus"
DASHBOARD = ROOT / "config/deploy/grafana/dashboards/mimu.json"
WINDOW = "1m"  # for Grafana's $__rate_interval; a scrape each second fills it soon
SCRAPES = 4  # after what has happened, so that there is something to compare

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass
class Seen:
    """What was there to see."""

    metrics: str
    handlers: Collection[str]  # names of the classes that answer requests
    database: str  # the host and the port of PostgreSQL
    rules: list[dict[str, Any]] = field(default_factory=list)  # as Prometheus has loaded them
    answers: Mapping[str, list[Any]] = field(default_factory=dict)  # the result of each query of the dashboard
    refused: Mapping[str, str] = field(default_factory=dict)  # what Prometheus says of those that it doesn't take

    @property
    def samples(self) -> dict[str, dict[str, set[str]]]:
        """The values of each label, by the name of a sample."""
        found: dict[str, dict[str, set[str]]] = {}
        for line in self.metrics.splitlines():
            if match := _SAMPLE.fullmatch(line):
                labels = found.setdefault(match[1], {})
                for name, value in _LABEL.findall(match[2] or ""):
                    labels.setdefault(name, set()).add(value)
        return found


def queries() -> list[str]:
    """Every query of the dashboard, as Grafana would send it."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    asked += [one["expr"] for one in dashboard["annotations"]["list"]]
    return [expr.replace("$__rate_interval", WINDOW).replace("$instance", ".*") for expr in asked]


def program(name: str) -> str | None:
    return shutil.which(name)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[str]:
    """Prometheus with the configuration of the repository, but for its target and its pace; its address."""
    settings = (FOLDER / "prometheus.yml").read_text()
    assert '"server:8080", "server-b:8080"' in settings
    (folder / "prometheus.yml").write_text(
        settings.replace('"server:8080", "server-b:8080"', f'"{target}"').replace("15s", "1s")
    )
    shutil.copy(FOLDER / "alerts.yml", folder)
    url = f"http://127.0.0.1:{_free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program("prometheus") or "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--log.level=warn",
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(20):
            while (await _asked(url, "/-/ready")) != 200:
                assert process.returncode is None, (folder / "prometheus.log").read_text()
                await asyncio.sleep(0.1)
        yield url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _asked(url: str, path: str) -> int:
    try:
        return (await ask(url, "GET", path)).status
    except OSError:
        return 0


async def live(services: Services, folder: Path) -> Seen:
    """Let things happen, have Prometheus look, and ask it everything."""
    async with pushing(services, folder, people=4) as (made, world):
        [running] = made.servers
        async with prometheus(folder, running.url.removeprefix("http://")) as url:
            await _happen(made, world)
            for name in ("push_queue", "files_room"):
                await periodic(running, name)()
            await _scraped(running, SCRAPES)
            text = (await ask(running.url, "GET", "/metrics")).text
            handlers = {rule.target.__qualname__ for rule in running.site.wildcard_router.rules}
            seen = Seen(text, handlers, urlsplit(services.dsn).netloc.rpartition("@")[2])
            loaded = (await ask(url, "GET", "/api/v1/rules")).json["data"]["groups"]
            seen.rules = [rule for group in loaded for rule in group["rules"]]
            answers, refused = {}, {}
            for query in queries():
                answer = await ask(url, "GET", f"/api/v1/query?query={quote(query)}")
                if answer.status == 200:
                    answers[query] = answer.json["data"]["result"]
                else:
                    refused[query] = answer.text
            seen.answers, seen.refused = answers, refused
            return seen


async def _scraped(running: Server, times: int) -> None:
    """Wait until Prometheus has looked so often more."""
    looks = running.app.metrics.requests.labels("MetricsPage", "GET", 200)._value
    before = looks.get()
    async with asyncio.timeout(30):
        while looks.get() < before + times:
            await asyncio.sleep(0.1)


async def _happen(made: Town, world: Any) -> None:
    alice, bob, carol, dave = made.people
    token = await registered(carol, "fcm")
    assert token
    phone, other, leaving = await made.socket(alice), await made.socket(bob), await made.socket(dave)
    group = await chat(alice, bob, carol)
    for _ in range(3):
        await phone.send("message_send", chat_id=group["id"], **message())
        await other.expect("message_new")
    await say(alice, group)
    await phone.send("typing", chat_id=group["id"])
    await phone.send("nonsense")
    await phone.send("presence_subscribe", user_ids=[bob.user_id])
    call = {"call_id": str(uuid4())}
    await phone.send("call_offer", to_user_id=bob.user_id, encrypted_payload="AAAA", **call)
    await other.expect("call_offer")
    await other.send("call_answer", encrypted_payload="AAAA", **call)
    await phone.send("call_hangup", reason="hangup", **call)
    content = b"ciphertext" * 1000
    file_id = await shared(alice, content)
    assert (await got(alice, file_id)).body == content
    assert (await alice.get("/nowhere")).status == 404
    await dave.post("/auth/logout", {})
    await leaving.expect("closed")
    await world.google.expect("message_new")
