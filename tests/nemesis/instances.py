"""Scenarios in which a server or Redis goes, while the database stays."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from tests.client import Answer, ask
from tests.nemesis.trial import Trial

READ, TRIED, ENOUGH = 5.0, 3, 60  # nginx: seconds for an answer, silences after which a server is set aside, requests
SLACK = 2.0


async def hung(trial: Trial) -> None:
    """8. A server hangs behind nginx: the other one gets the requests, and nothing is done twice."""
    one, _ = trial.stage.instances
    writer, front = trial.clients[0].user, trial.stage.front
    one.freeze()

    async def make(number: int) -> tuple[float, Answer]:
        began = time.monotonic()
        body = {"type": "group", "title": f"once {number}", "participants": []}
        answer = await ask(front, "POST", "/chats", body, writer.token)
        return time.monotonic() - began, answer

    try:
        first = await asyncio.gather(*(make(number) for number in range(20)))
        slowest = max(seconds for seconds, _ in first)
        trial.expect(slowest < READ + SLACK, f"a request waited {slowest:.1f} s for a server that hangs")
        trial.expect({answer.status for _, answer in first} <= {201, 503}, "a request was neither done nor refused")
        began = time.monotonic()
        later = [await make(20 + number) for number in range(ENOUGH)]
        refused = sum(answer.status == 503 for _, answer in later)
        trial.expect(refused <= TRIED, f"{refused} of {ENOUGH} later requests were still sent to it")
        trial.expect(time.monotonic() - began < TRIED * READ + 10, "the other server is slow")
        trial.figures.notes.append(f"slowest request {slowest:.1f} s, {refused} of {ENOUGH} later ones refused")
    finally:
        one.thaw()
    await asyncio.sleep(2)  # what it had been sent is done now
    answers = [answer for _, answer in (*first, *later)]
    connection = await trial.stage.databases.primary.connect()
    try:
        made = await connection.fetch("SELECT id::text, title FROM chat_threads WHERE title LIKE 'once %'")
    finally:
        connection.terminate()
    for chat, _ in made:
        trial.ledger.chat(chat, "group", {writer.user_id})
    titles = Counter(title for _, title in made)
    twice = [title for title, times in titles.items() if times > 1]
    trial.expect(not twice, f"{len(twice)} requests were done twice")
    lost = sum(answer.status == 201 and titles[answer.json["title"]] != 1 for answer in answers)
    trial.expect(lost == 0, f"{lost} chats that were acknowledged are not there")


async def killed(trial: Trial) -> None:
    """A server is killed, and starts again."""
    instance = trial.luck.choice(trial.stage.instances)
    await instance.stop(kill=True)
    await asyncio.sleep(trial.luck.uniform(0.5, 3))
    await instance.start()


async def watchdog(trial: Trial) -> None:
    """A server hangs for some seconds, is killed as systemd would, and starts again."""
    instance = trial.luck.choice(trial.stage.instances)
    instance.freeze()
    await asyncio.sleep(trial.luck.uniform(2, 7))
    await instance.stop(kill=True)
    await instance.start()


async def cache(trial: Trial) -> None:
    """The primary of Redis is killed, and a Sentinel promotes the other."""
    if len(trial.stage.caches.valkeys) > 1:
        seconds = await trial.stage.caches.fail_over()
        trial.figures.notes.append(f"Redis was failed over in {seconds:.1f} s")


async def silent_cache(trial: Trial) -> None:
    """Redis freezes for less than the Sentinels wait, or for longer."""
    valkey = await trial.stage.caches.primary()
    valkey.freeze()
    try:
        await asyncio.sleep(trial.luck.uniform(0.5, 4))
    finally:
        valkey.thaw()
    await trial.stage.caches.primary()
