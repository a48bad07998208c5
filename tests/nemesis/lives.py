"""Scenarios without the history checker: an older state that is promoted by mistake, and what health says."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.postgres import migrations
from tests.bench import users
from tests.client import Account, Answer, ask
from tests.history.ledger import Fault
from tests.nemesis.caches import single
from tests.nemesis.stage import Stage, stage
from tests.nemesis.trial import Figures
from tests.plugins.chatting import message
from tests.replication import machines
from tests.running import Place

SMALL = "160m"  # PostgreSQL with our tables takes 60
NOTICED = 20.0  # seconds in which health must say it, and must say that it is over
_BEFORE = """
SELECT (SELECT count(*) FROM messages WHERE position < base AND created_at > $1)
     + (SELECT count(*) FROM chat_events WHERE position < base AND created_at > $1) FROM sync_epoch
"""


class Bench:
    """A stage and its findings."""

    def __init__(self, theatre: Stage, figures: Figures) -> None:
        self.stage, self.figures = theatre, figures

    def expect(self, held: bool, text: str) -> None:
        if not held:
            self.figures.faults.append(Fault("nemesis", "", f"{self.figures.name}: {text}"))


async def older_state(bench: Bench) -> None:
    """5. A state of some time ago is promoted by mistake: sockets close with 1012, and nothing is stored in between."""
    databases = bench.stage.databases
    front, figures = bench.stage.front, bench.figures
    people = await users.create(Place(databases.dsn_of(databases.primary), bench.stage.place.redis), 2, "older")
    alice, bob = (
        Account(url=front, token=user.token, user_id=user.user_id, public_id=user.public_id) for user in people
    )
    chat = (await alice.post("/chats", {"type": "direct", "participants": [bob.public_id]})).json["id"]

    async def post() -> Answer:
        return await alice.post(f"/chats/{chat}/messages", message("x"))

    def acknowledged(answer: Answer) -> bool:
        bench.expect(answer.status in (201, 503), f"a message was answered with {answer.status}")
        figures.acknowledged += answer.status == 201
        return answer.status == 201

    acknowledged(await post())
    await databases.whole()
    old = databases.standbys[-1]
    old.kill()  # from now on it misses everything
    for _ in range(20):
        acknowledged(await post())
    async with contextlib.AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(account.socket(instance.url))
            for instance in bench.stage.instances
            for account in (alice, bob)
        ]
        epoch = sockets[0].ready["epoch"]
        for machine in (databases.primary, *databases.standbys):
            machine.kill()
        old.stand_alone()
        await old.start()
        moment = await old.value("SELECT now()")
        await old.promote()
        databases.primary = old
        accepted, last_refused = await databases.accepts(), 0.0
        while time.monotonic() - max(accepted, last_refused) < 3 and time.monotonic() - accepted < 60:
            if not acknowledged(await post()):
                last_refused = time.monotonic()
            await asyncio.sleep(0.05)
        figures.refused.append(max(0.0, last_refused - accepted))
        bench.expect(figures.refused[-1] <= 5, f"refusals for {figures.refused[-1]:.1f} s after the primary accepted")
        for socket in sockets:
            try:
                await socket.expect("closed", seconds=10, code=1012)
            except AssertionError:
                bench.expect(False, "a socket was not closed with 1012")
    before = await old.value(_BEFORE, moment)
    bench.expect(before == 0, f"{before} rows were stored under the former epoch")
    for instance in bench.stage.instances:
        async with alice.socket(instance.url) as again:
            bench.expect(again.ready["epoch"] != epoch, "a socket began with the former epoch")
    lives = {
        (await ask(i.url, "GET", f"/chats/{chat}", token=bob.token)).json["last_seq"] for i in bench.stage.instances
    }
    bench.expect(len(lives) == 1, "two instances show different states")


async def health(bench: Bench) -> None:
    """6. Nothing can be written, and health says so: no standby, a Redis that is a replica, a full disk."""
    databases, caches = bench.stage.databases, bench.stage.caches
    both = bench.stage.instances
    for instance in both:
        await _becomes(bench, instance.url, "database", "ok")
    for standby in databases.standbys:
        standby.freeze()
    try:
        for instance in both:
            seconds = await _becomes(bench, instance.url, "database", "error")
            bench.figures.notes.append(f"without a standby health said so after {seconds:.1f} s")
            ready = await ask(instance.url, "GET", "/health/ready")
            bench.expect(ready.status == 503, "a proxy is sent to a server that can't write")
    finally:
        for standby in databases.standbys:
            standby.thaw()
    for instance in both:
        await _becomes(bench, instance.url, "database", "ok")
    if len(caches.valkeys) > 1:
        replica = await caches.replica()
        async with bench.stage.beside("replica", databases.dsn, replica.url) as instance:
            await _becomes(bench, instance.url, "redis", "error")
    await _full_disk(bench)


async def _becomes(bench: Bench, url: str, part: str, state: str) -> float:
    """Wait for what health says of a part; the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < NOTICED:
        asked = time.monotonic()
        answer = await ask(url, "GET", "/health")
        bench.expect(time.monotonic() - asked < 3, "health was not answered within 3 s")
        if answer.json[part] == state:
            return time.monotonic() - began
        await asyncio.sleep(0.2)
    bench.expect(False, f"health does not say that the {part} is {state}")
    return NOTICED


async def _full_disk(bench: Bench) -> None:
    """Fill the disk of a separate PostgreSQL, up to the last byte."""
    with _small_disk(bench.stage.folder / "small") as disk:
        if disk is None:
            bench.figures.notes.append("no small disk can be mounted here: a full one was not tried")
            return
        (disk / "postgres").mkdir()
        async with machines(disk / "postgres") as made, single(bench.stage.folder / "full-redis") as redis:
            await made.primary()
            await migrations.migrate(made.dsn())
            async with bench.stage.beside("full", made.dsn(), redis.url) as instance:
                await _becomes(bench, instance.url, "database", "ok")
                ballast = disk / "ballast"
                with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while file.write(bytes(1 << 12)):
                        pass
                seconds = await _becomes(bench, instance.url, "database", "error")
                bench.figures.notes.append(f"with a full disk health said so after {seconds:.1f} s")
                ballast.unlink()
                made.all[0].kill()  # it has ended itself when it could not write its log
                await made.all[0].start()
                await _becomes(bench, instance.url, "database", "ok")


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[Path | None]:
    """A disk of SMALL in memory; None where none can be mounted."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=755", "none", place]).returncode == 0
    try:
        yield place if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", place], check=True)


BARE: dict[str, Any] = {"older-state": older_state, "health": health}


async def attempt(name: str, folder: Path) -> Figures:
    """Play one of these."""
    figures, began = Figures(name), time.monotonic()
    async with stage(folder) as theatre:
        await BARE[name](Bench(theatre, figures))
    figures.seconds = time.monotonic() - began
    return figures
