"""A run: clients write and sync while servers and PostgreSQL are killed; then all settle, and all is compared."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from tests.bench import users
from tests.bench.users import User
from tests.history.checker import Checker, Place, Row, Seen, Shown, Stored
from tests.history.clients import Client, Follower, Reader
from tests.history.deeds import EXPIRES, Actor
from tests.history.ledger import Fault, Ledger
from tests.history.stage import Killed, Stage, Theatre, stage
from tests.history.view import Event, View

SETTLE = 90.0  # seconds for all to finish what they began; each waits for PostgreSQL's recovery at most
ERASED = 16.0  # seconds until what has expired is erased (contract section 7: within 15)
REACH = 10.0  # seconds a frame may take when all is quiet


@dataclass(frozen=True)
class Plan:
    seed: int
    instances: int = 1
    server_kills: int = 3
    postgres_kills: int = 2
    clients: int = 50
    pace: float = 0.15  # seconds between two deeds of a client, in the mean
    pause: tuple[float, float] = (0.5, 1.5)  # seconds between kills
    vanishing: float = 0.0  # share of messages that expire
    lossy: bool = False  # let PostgreSQL acknowledge what isn't on the disk, to see that this is found


@dataclass
class Report:
    plan: Plan
    counts: Counter[str]
    faults: list[Fault]
    logs: dict[str, dict[int, Event]]
    seconds: float
    events: int = 0
    extra: dict[str, object] = field(default_factory=dict)

    def summary(self) -> str:
        """One line, for people."""
        kinds = Counter(fault.kind for fault in self.faults)
        plan, named = self.plan, ("lost", "doubled", "gap")
        others = sum(times for kind, times in kinds.items() if kind not in named)
        return (
            f"seed {plan.seed}: {plan.clients} clients, {plan.instances} instance(s), {plan.server_kills} kills of a "
            f"server and {plan.postgres_kills} of PostgreSQL in {self.seconds:.0f} s: {self.events} events, "
            f"{self.counts['acked']} messages acknowledged, {kinds['lost']} lost, {kinds['doubled']} doubled, "
            f"{kinds['gap']} gaps, {others} other faults"
        )

    def story(self, faults: int = 12, around: int = 6) -> str:
        """The first faults, and what all know of their chats around them: ids and seqs, no payloads."""
        lines = [self.summary()]
        for kind, times in Counter(fault.kind for fault in self.faults).items():
            lines.append(f"  {kind}: {times}")
        shown: set[str] = set()
        for fault in self.faults[:faults]:
            lines.append(f"{fault.kind}: chat {fault.chat or '-'} seq {fault.seq or '-'}: {fault.text}")
            log = self.logs.get(fault.chat, {})
            if fault.chat in shown or not log:
                continue
            shown.add(fault.chat)
            middle = fault.seq or max(log)
            lines += [f"    {log[seq]}" for seq in range(middle - around, middle + around + 1) if seq in log]
        return "\n".join(lines)


class Run:
    def __init__(self, plan: Plan, theatre: Theatre, people: list[User]) -> None:
        self.plan, self.stage, self.people = plan, theatre, people
        self.ledger = Ledger()
        self.luck = random.Random(f"{plan.seed} run")
        by_id = {person.user_id: person for person in people}
        self.clients = [Client(person, theatre, self._luck("client", person), self.ledger) for person in people]
        self.actors = [Actor(client, by_id, plan.pace, plan.vanishing) for client in self.clients]
        chosen = self.luck.sample(people, min(10, len(people)))
        self.followers = [Follower(person, theatre, self._luck("follower", person), self.ledger) for person in chosen]
        self._over = asyncio.Event()

    def _luck(self, what: str, person: User) -> random.Random:
        return random.Random(f"{self.plan.seed} {what} {person.public_id}")

    async def play(self) -> None:
        """Chats are made, all write, things are killed, all settle."""
        early, late = self.followers[::2], self.followers[1::2]
        await asyncio.gather(*(follower.begin() for follower in early))
        await self._found()
        async with asyncio.TaskGroup() as group:
            for number, actor in enumerate(self.actors):
                delay = 0.0 if number % 5 else self.luck.uniform(0.5, 4)
                group.create_task(self._live(actor, delay), name=actor.client.user.public_id)
            for follower in early:
                group.create_task(follower.follow(self._over))
            for follower in late:
                group.create_task(self._follow_late(follower, self.luck.uniform(0.5, 4)))
            await self.disturb()
            self._over.set()
        await self.stage.whole()
        await asyncio.sleep(EXPIRES + ERASED if self.plan.vanishing else 0)
        await self._settle()

    async def _settle(self) -> None:
        await asyncio.gather(*(reader.settle() for reader in (*self.clients, *self.followers)))

    async def _found(self) -> None:
        """Direct chats, groups and a channel, at random."""
        for number in range(max(3, len(self.people) // 2)):
            kind = "direct" if number > len(self.people) // 8 else "group" if number else "channel"
            size = {"direct": 2, "group": self.luck.randint(3, min(30, len(self.people))), "channel": len(self.people)}
            members = self.luck.sample(self.people, size[kind])
            owner, others = members[0], members[1:]
            body = {"type": kind, "title": None if kind == "direct" else f"{kind} {number}"}
            body["participants"] = [other.public_id for other in others]  # type: ignore[assignment]
            line = self.clients[self.people.index(owner)].line
            chat = (await line.surely(lambda line=line, body=body: line.ask("POST", "/chats", body))).json
            self.ledger.chat(chat["id"], kind, {member.user_id for member in members})

    async def _live(self, actor: Actor, delay: float) -> None:
        await asyncio.sleep(delay)
        await actor.client.begin()
        up = asyncio.create_task(actor.client.keep_up(self._over))
        try:
            await actor.act(self._over)
            await up
        finally:
            up.cancel()

    async def _follow_late(self, follower: Follower, delay: float) -> None:
        await asyncio.sleep(delay)
        await follower.begin()
        await follower.follow(self._over)

    async def disturb(self) -> None:
        """Kill what the plan says, while all write."""
        assert isinstance(self.stage, Stage)
        parts: list[Killed | None] = [None] * self.plan.server_kills + [self.stage.postgres] * self.plan.postgres_kills
        self.luck.shuffle(parts)
        await asyncio.sleep(2)
        for part in parts:
            if self.luck.random() < 0.7:  # else one thing dies while another is not back yet
                await self.stage.whole()
            await asyncio.sleep(self.luck.uniform(*self.plan.pause))
            await (part or self.luck.choice(self.stage.instances)).kill()
        await self.stage.whole()
        await asyncio.sleep(self.luck.uniform(*self.plan.pause))

    async def reach(self) -> None:
        """Now that nothing is killed, a message reaches every member's socket by itself."""
        waiting = []
        for chat, kind in self.ledger.kinds.items():
            inside = [actor for actor in self.actors if (view := actor.client.views.get(chat)) and view.member]
            writers = [actor for actor in inside if actor.client.views[chat].role in ("owner", "admin")]
            if kind != "channel":
                writers += [actor for actor in inside if actor.client.views[chat].role == "member"]
            if writers:
                waiting.append(self._reach(chat, writers[0], inside))
        await asyncio.gather(*waiting)
        await self._settle()

    async def _reach(self, chat: str, writer: Actor, inside: list[Actor]) -> None:
        send = await writer.send(chat)
        if send is None:
            return
        [(_, seq)] = send.places
        until = time.monotonic() + REACH
        for actor in inside:
            while seq not in actor.client.views[chat].events:
                if time.monotonic() > until:
                    self.ledger.fault("frames", chat, f"{actor.client.user.public_id} got no frame", seq)
                    break
                await asyncio.sleep(0.02)

    async def look(self) -> list[Seen]:
        """What all know at the end, and what GET shows them."""
        seen = []
        for client in self.clients:
            shown = {}
            for chat in await client.chats():
                messages = await client.messages(chat["id"])
                shown[chat["id"]] = Shown(chat["last_seq"], chat["read_seq"], chat["unread_count"], messages)
            seen.append(Seen(client.user.user_id, client.user.public_id, client.views, shown))
        return seen + [
            Seen(
                follower.user.user_id,
                f"{follower.user.public_id}'s follower",
                views(follower),
                {},
                follower.heard,
                follower.marks,
            )
            for follower in self.followers
        ]


def views(follower: Follower) -> dict[str, View]:
    made = {}
    for chat in follower.logs.keys() | follower.views.keys():
        made[chat] = View(follower.views[chat].base if chat in follower.views else 0)
        made[chat].events = follower.logs[chat]
    return made


async def stored(dsn: str) -> Stored:
    """What PostgreSQL holds."""
    connection = await asyncpg.connect(dsn)
    try:
        messages = await connection.fetch(
            "SELECT chat_id::text, abs(seq), id::text, client_id::text, deleted_at IS NULL FROM messages"
        )
        events = await connection.fetch("SELECT chat_id::text, seq, type::text, user_id::text FROM chat_events")
        last = await connection.fetch("SELECT id::text, last_seq FROM chat_threads")
        marks = await connection.fetch(
            """SELECT chat_id::text, user_id::text, delivered_seq, read_seq
               FROM chat_marks JOIN chat_participants USING (chat_id, user_id)"""
        )
    finally:
        await connection.close()
    return Stored(
        [Row(*row) for row in messages],
        [Place(*row) for row in events],
        dict(last),
        {(row[0], row[1]): (row[2], row[3]) for row in marks},
    )


async def run(plan: Plan, folder: Path) -> Report:
    """Run the whole plan. The user of PostgreSQL must be able to enter ``folder``."""
    started = time.monotonic()
    async with stage(folder, plan.instances) as theatre:
        if plan.lossy:
            await theatre.postgres.be_lossy()
        people = await users.create(theatre.place, plan.clients, f"h{plan.seed % 10_000}")
        one = Run(plan, theatre, people)
        try:
            await one.play()
            await one.reach()
            seen = await one.look()
        finally:
            readers: list[Reader] = [*one.clients, *one.followers]
            await asyncio.gather(*(reader.line.close() for reader in readers))
        rows = await stored(theatre.postgres.dsn)
        away = theatre.postgres.away + sum(instance.away for instance in theatre.instances)
    checker = Checker(one.ledger, rows, seen)
    checker.check()
    one.ledger.counts["seconds away"] = round(away)
    return Report(
        plan, one.ledger.counts, one.ledger.faults, checker.logs, time.monotonic() - started, sum(rows.last.values())
    )
