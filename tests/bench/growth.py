"""``python -m tests.bench.growth``: how long sync, lists, posts and pages take as users, chats and history grow.

Fills a new database at a hundredth, a tenth and all of ``--messages``, and asks the real server the same of
each, one request after the other. At the last size it also prints PostgreSQL's plan of every statement about messages
that a request or a periodic task causes, and judges that none reads a table of the history from end to end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import uvloop

from models.database import Database
from tests.bench import history, machine
from tests.bench.history import BUSY, GROUP, ROUNDS, UNREAD, History
from tests.bench.search import middle_and_end
from tests.bench.users import User, payload
from tests.client import ask
from tests.running import place, serving

COUNT = 300  # requests of a kind
MISSED = 1_000  # events
SYNCS = 50
WHOLE = re.compile(r"Seq Scan on (messages|chat_events|chat_participants|chat_threads|message_reads)\b")
ABOUT = re.compile(r"\b(messages|chat_\w+|message_\w+)\b")


class Phone:
    """A user who asks one thing after the other. It blocks, which is well: the server is another process."""

    def __init__(self, target: machine.Target, user: User) -> None:
        self._client = http.client.HTTPConnection(target.host, target.port, timeout=15)
        self._headers = {"Authorization": f"Bearer {user.token}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer's JSON. Raises RuntimeError."""
        self._client.request(method, path, None if body is None else json.dumps(body), self._headers)
        answer = self._client.getresponse()
        text = answer.read()
        if answer.status not in (200, 201):
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        return json.loads(text)

    def post(self, chat_id: str) -> Any:
        return self.ask("POST", f"/chats/{chat_id}/messages", message())

    def missed(self, cursor: str) -> int:
        """How many events there are since a cursor."""
        count, more = 0, True
        while more:
            page = self.ask("GET", f"/sync?limit=1000&cursor={quote(cursor, safe='')}")
            count, cursor, more = count + len(page["events"]), page["cursor"], page["has_more"]
        return count


def message() -> dict[str, str]:
    return {"client_id": str(uuid4()), "encrypted_payload": payload(400), "message_type": "text"}


def pages(whole: History) -> dict[str, str]:
    """Paths that read a history, by what they mean."""
    newest = whole.group_messages
    return {
        f"messages: newest 50 of {ROUNDS}": f"/chats/{whole.chat(1)}/messages?limit=50",
        "messages: newest 50 of the group": f"/chats/{whole.chat(0)}/messages?limit=50",
        "messages: 50 in the middle of it": f"/chats/{whole.chat(0)}/messages?limit=50&before_seq={newest // 2}",
        "messages: oldest 50 of it": f"/chats/{whole.chat(0)}/messages?limit=50&after_seq=1",
    }


def times(whole: History, target: machine.Target) -> dict[str, tuple[float, float]]:
    """Milliseconds, p50 and p99, of each thing that is asked."""
    first = Phone(target, whole.user(0))
    found = {name: _timed(lambda path=path: first.ask("GET", path), COUNT) for name, path in pages(whole).items()}
    for chats in BUSY:
        phone = Phone(target, whole.busy(chats))
        listed = phone.ask("GET", "/chats?limit=500")
        if len(listed) != min(chats, 500) or any(each["unread_count"] != UNREAD for each in listed):
            raise RuntimeError("the list of chats is not as it was filled in")
        found[f"chats: newest 100 of {chats:,}"] = _timed(
            lambda phone=phone: phone.ask("GET", "/chats?limit=100"), COUNT
        )
    found[f"post: chat of 2 with {ROUNDS}"] = _timed(lambda: first.post(whole.chat(1)), COUNT)
    found[f"post: group of {GROUP}"] = _timed(lambda: first.post(whole.chat(0)), COUNT)
    for chats in BUSY:
        phone = Phone(target, whole.busy(chats))
        cursor = phone.ask("GET", "/sync")["cursor"]
        for other in range(chats):
            writer = Phone(target, whole.user(other))
            for _ in range(MISSED // chats):
                writer.post(whole.chat_of_busy(chats, other))

        def sync(phone: Phone = phone, cursor: str = cursor) -> None:
            count = phone.missed(cursor)
            if count != MISSED:
                raise RuntimeError(f"{count} events came of {MISSED}")

        found[f"sync: {MISSED:,} events in {chats:,} chats"] = _timed(sync, SYNCS)
        now = phone.ask("GET", "/sync")["cursor"]
        found[f"sync: nothing new in {chats:,} chats"] = _timed(lambda phone=phone, now=now: phone.missed(now), COUNT)
    return found


def _timed(work: Callable[[], object], count: int) -> tuple[float, float]:
    taken = []
    for _ in range(count + 20):  # the first ones warm up: PostgreSQL keeps a plan after five
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1e3)
    return middle_and_end(taken[20:])


class _Undo(Exception):
    pass


@contextlib.contextmanager
def explaining(plans: list[tuple[str, str]]) -> Iterator[None]:
    """While the block lasts every statement about messages is first explained, by running it and undoing it."""
    kept = {name: getattr(Database, name) for name in ("fetch", "row", "value", "execute")}

    def explained(run: Callable[..., Any]) -> Callable[..., Any]:
        async def explain(self: Database, sql: str, *args: Any) -> Any:
            if ABOUT.search(sql) and re.match(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", sql):
                with contextlib.suppress(_Undo):
                    async with self.transaction():
                        lines = await kept["fetch"](self, f"EXPLAIN (ANALYZE, BUFFERS, SUMMARY) {sql}", *args)
                        plans.append((sql, "\n".join(line[0] for line in lines)))
                        raise _Undo
            return await run(self, sql, *args)

        return explain

    for name, run in kept.items():
        setattr(Database, name, explained(run))
    try:
        yield
    finally:
        for name, run in kept.items():
            setattr(Database, name, run)


async def plans(whole: History) -> bool:
    """Print them; whether none reads a whole table."""
    good, known = True, set()
    phone = whole.busy(100)
    async with serving(whole.place) as server:

        async def show(title: str, work: Callable[[], Any]) -> None:
            nonlocal good
            found: list[tuple[str, str]] = []
            with explaining(found):
                await work()
            for sql, plan in found:
                if (title, sql) not in known:
                    known.add((title, sql))
                    print(f"\n--- {title}\n{' '.join(sql.split())[:200]}\n{plan}")
                    if WHOLE.search(plan):
                        print("THIS READS A WHOLE TABLE")
                        good = False

        async def get(path: str, user: User) -> Any:
            answer = await ask(server.url, "GET", path, token=user.token)
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {answer.text[:300]}")
            return answer.json

        for name, path in pages(whole).items():
            await show(name, lambda path=path: get(path, whole.user(0)))
        await show("chats", lambda: get("/chats?limit=100", phone))
        await show("sync: the present cursor", lambda: get("/sync", phone))
        cursor = quote((await get("/sync", phone))["cursor"], safe="")
        posted = f"/chats/{whole.chat_of_busy(100, 0)}/messages"
        await show("post", lambda: ask(server.url, "POST", posted, message(), whole.user(0).token))
        await show("sync: one event", lambda: get(f"/sync?cursor={cursor}", phone))
        for feature in server.features:
            for every in feature.periodic:
                await show(f"periodic: {every.name}", every.task)
    return good


async def sizes(place_: machine.Place) -> None:
    connection = await asyncpg.connect(place_.dsn)
    try:
        print("\n   MiB        rows")
        for row in await connection.fetch(
            """SELECT relname, pg_relation_size(oid) / 1048576.0, reltuples::bigint FROM pg_class
               WHERE (relname LIKE 'messages%' OR relname LIKE 'chat\\_%') AND relkind IN ('i', 'r')
                 AND pg_relation_size(oid) > 1048576 ORDER BY 1"""
        ):
            print(f"{row[1]:>6,.0f}{row[2]:>12,}  {row[0]}")
    finally:
        await connection.close()


async def measure(messages: int) -> bool:
    """Print all there is to know; whether no plan reads a whole table."""
    machine.take_load_core()
    found: list[tuple[History, dict[str, tuple[float, float]]]] = []
    good = True
    async with machine.services() as (services, beside):
        for size in (messages // 100, messages // 10, messages):
            async with place(services) as where:
                whole = await history.fill(where, size)
                async with machine.server(where, beside) as target:
                    found.append((whole, times(whole, target)))
                if size == messages:
                    good = await plans(whole)
                    await sizes(where)
    print(f"\n{'p50 / p99 in ms':<36}" + "".join(f"{whole.messages:>18,}" for whole, _ in found) + "   p50 x100")
    print(f"{'users':<36}" + "".join(f"{whole.users:>18,}" for whole, _ in found))
    print(f"{'chats':<36}" + "".join(f"{whole.chats:>18,}" for whole, _ in found))
    for name in found[0][1]:
        cells = [f"{each[name][0]:.2f} / {each[name][1]:.2f}" for _, each in found]
        growth = found[-1][1][name][0] / found[0][1][name][0]
        print(f"{name:<36}" + "".join(f"{cell:>18}" for cell in cells) + f"{growth:>11.2f}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument(
        "--messages", type=int, default=10_000_000, help="at the last size (default: ten million; takes ten minutes)"
    )
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        good = runner.run(measure(arguments.messages))
    print(f"\nno statement reads a whole table: {'reached' if good else 'MISSED'}")
    return not good


if __name__ == "__main__":
    sys.exit(main())
