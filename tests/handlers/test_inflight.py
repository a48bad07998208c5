"""Answers in flight: memory is shared, and clients that read nothing hold little of it for a short time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from handlers.http import answers_in_flight as inflight
from handlers.http import listener
from handlers.http.answers_in_flight import AnswerMemory, Reservation
from handlers.wire.errors import Unavailable
from tests.client import Account, ask, b64
from tests.files.transfer import shared as uploaded
from tests.plugins.chatting import chat, say, town
from tests.running import Services, place, program
from tests.waiting import WAIT, until

MIB = 1 << 20


class Stream:
    """The part of an IOStream that is used here."""

    def __init__(self) -> None:
        self.socket, self._other = socket.socketpair()

    def closed(self) -> bool:
        return self.socket.fileno() < 0

    def close(self) -> None:
        self.socket.close()
        self._other.close()


@contextlib.asynccontextmanager
async def shared(total: int, each: int) -> AsyncIterator[tuple[AnswerMemory, Stream]]:
    stream = Stream()
    try:
        yield AnswerMemory(total, each), stream
    finally:
        stream.close()


async def reserved(answers: AnswerMemory, key: str, stream: Stream, size: int = MIB) -> Reservation:
    return await answers.reserve(key, size, stream)  # type: ignore[arg-type]


@pytest.mark.gen_test
async def test_one_account_has_no_more_than_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight, "MEMORY_TIMEOUT", 0.1)
    async with shared(8 * MIB, 2 * MIB) as (answers, stream):
        first, second = [await reserved(answers, "a", stream) for _ in range(2)]
        with pytest.raises(Unavailable):
            await reserved(answers, "a", stream)
        other = await reserved(answers, "b", stream)
        coming = asyncio.create_task(reserved(answers, "a", stream))
        await asyncio.sleep(0)
        first.release()
        first.release()  # again changes nothing
        third = await coming
        answers.resize(second, 1000)
        fourth = await reserved(answers, "a", stream, MIB - 1000)
        for room in (second, third, fourth, other):
            room.release()
        assert answers.free == 8 * MIB
        assert not answers._held
        assert not answers._waiting


@pytest.mark.gen_test
async def test_waiting_requests_are_served_in_turn() -> None:
    async with shared(2 * MIB, 2 * MIB) as (answers, stream):
        held = [await reserved(answers, "a", stream) for _ in range(2)]
        order: list[str] = []

        async def wait(key: str) -> None:
            room = await reserved(answers, key, stream)
            order.append(key)
            await asyncio.sleep(0.01)
            room.release()

        waiting = [asyncio.create_task(wait(key)) for key in ("a", "a", "a", "b", "c")]
        await asyncio.sleep(0.01)
        held[0].release()
        await asyncio.gather(*waiting)
        assert order == ["a", "b", "c", "a", "a"]
        held[1].release()
        assert answers.free == 2 * MIB


@pytest.mark.gen_test
async def test_one_that_gives_up_as_its_turn_comes_holds_nothing() -> None:
    async with shared(MIB, MIB) as (answers, stream):
        held = await reserved(answers, "a", stream)
        waiting = asyncio.create_task(reserved(answers, "b", stream))
        await asyncio.sleep(0)
        held.release()  # its turn, and in the same one of the loop
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await waiting).release()
        assert answers.free == MIB
        assert not answers._waiting


@pytest.mark.gen_test
async def test_unread_answers_are_dropped_when_others_need_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(inflight, "CHECK_SECONDS", 0.02)
    async with shared(4 * MIB, 3 * MIB) as (answers, stream):
        quiet = Stream()
        lone = await reserved(answers, "lone", quiet)
        lone.keep_until_written(MIB, asyncio.get_running_loop().create_future())
        streams = [Stream() for _ in range(3)]
        for each in streams:
            room = await reserved(answers, "greedy", each)
            room.keep_until_written(MIB, asyncio.get_running_loop().create_future())
        # Another one of the same account drops nothing: it has to read what it has.
        monkeypatch.setattr(inflight, "MEMORY_TIMEOUT", 0.3)
        with pytest.raises(Unavailable):
            await reserved(answers, "greedy", stream)
        assert not any(each.closed() for each in streams)
        await reserved(answers, "new", stream)
        assert [each.closed() for each in streams] == [True, False, False]
        assert not quiet.closed()
        for each in (*streams, quiet):
            each.close()


_opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def unread(url: str, request: bytes) -> socket.socket:
    """Send a request and never read the answer. Returns the connection."""
    at = urlsplit(url)
    assert at.hostname is not None
    assert at.port is not None
    opened = socket.socket()
    _opened.append(opened)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.connect((at.hostname, at.port))
    opened.sendall(request)
    return opened


def asking(who: Account, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {who.token}\r\n\r\n".encode()


async def long_notes(who: Account, many: int) -> str:
    """Make a chat with ``many`` messages of 88 KB. Returns the path of its history."""
    notes = await chat(who, kind="cloud")
    payload = b64(os.urandom(64 * 1024))
    for _ in range(many):
        await say(who, notes, "", encrypted_payload=payload)
    return f"/chats/{notes['id']}/messages?limit=200"


@pytest.mark.gen_test
async def test_an_unread_answer_closes_its_connection(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "WRITE_SECONDS", 0.5)
    monkeypatch.setattr(listener, "SWEEP_SECONDS", 0.1)
    async with town(services, people=1) as made:
        [alice] = made.people
        path = await long_notes(alice, 13)
        answers = made.servers[0].site.answers
        whole = answers.free
        pool = made.servers[0].app.db.pool
        opened = [unread(alice.url, asking(alice, path)) for _ in range(3)]
        await until(lambda: answers.free < whole - 2 * MIB)
        await until(lambda: pool.get_idle_size() == pool.get_size())  # none of them holds a connection
        await until(lambda: answers.free == whole)
        for each in opened:
            each.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                while each.recv(1 << 20):
                    continue
            each.close()
        # A client that reads slowly gets the whole answer.
        slow = unread(alice.url, asking(alice, path))
        slow.setblocking(False)
        loop, got = asyncio.get_running_loop(), 0
        while got < MIB * 0.9:
            more = await asyncio.wait_for(loop.sock_recv(slow, 64 * 1024), WAIT)
            assert more, f"it ended after {got} bytes"
            got += len(more)
            await asyncio.sleep(0.005)
        slow.close()
        await until(lambda: answers.free == whole)


@pytest.mark.gen_test
async def test_a_client_that_disconnects_during_an_answer_holds_no_memory(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        path = await long_notes(alice, 13)
        answers = made.servers[0].site.answers
        whole = answers.free
        for _ in range(8):
            opened = unread(alice.url, asking(alice, path))
            await until(lambda: answers.free < whole)
            opened.close()
        await until(lambda: answers.free == whole)


@pytest.mark.gen_test
async def test_refusals_and_head_hold_nothing(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        path = await long_notes(alice, 2)
        answers = made.servers[0].site.answers
        whole = answers.free
        assert (await bob.get(path)).status == 404
        assert (await alice.get(f"{path}&before_seq=x")).status == 400
        assert (await ask(alice.url, "HEAD", path, token=alice.token)).status == 200
        assert (await alice.get("/sync?cursor=x")).status == 400
        for public in ("/openapi.json", "/docs", "/docs/page.js"):
            assert (await alice.get(public)).status == 200
        await until(lambda: answers.free == whole)
        assert not answers._held


@pytest.mark.gen_test
async def test_unread_documents_are_bounded(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight, "MEMORY_TIMEOUT", 0.3)
    async with town(services, people=1) as made:
        answers = made.servers[0].site.answers
        whole = answers.free
        request = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
        opened = [unread(made.servers[0].url, request) for _ in range(40)]
        await until(lambda: whole - answers.free > MIB)
        await asyncio.sleep(1)
        assert whole - answers.free <= inflight.MAX_BYTES_EACH
        for each in opened:
            each.close()
        await until(lambda: answers.free == whole)


@pytest.mark.gen_test
async def test_unread_downloads_are_bounded(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight, "MEMORY_TIMEOUT", 0.3)
    async with town(services, people=1) as made:
        [alice] = made.people
        file_id = await uploaded(alice, os.urandom(3 * MIB))
        answers = made.servers[0].site.answers
        whole = answers.free
        opened = [unread(alice.url, asking(alice, f"/files/{file_id}/content")) for _ in range(40)]
        await until(lambda: whole - answers.free == inflight.MAX_BYTES_EACH)
        await asyncio.sleep(1)
        assert whole - answers.free == inflight.MAX_BYTES_EACH
        for each in opened:
            each.close()
        await until(lambda: answers.free == whole)


def memory(pid: int) -> float:
    """Return the memory of a process, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.gen_test
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
async def test_the_memory_of_a_server_is_bounded(services: Services, tmp_path: Path) -> None:
    """100 connections ask for 8 pages of 1 MiB each, and read nothing: 800 MiB, if all were made."""
    async with place(services) as made, program(made, tmp_path) as running:
        alice = await Account(one_time=0).register(running.url)
        bob = await Account(one_time=0).register(running.url)
        cursor = str((await alice.get("/sync")).json["cursor"])
        history = await long_notes(alice, 30)
        assert len((await alice.get(history)).content) > MIB * 0.9
        before = memory(running.process.pid)
        sync = f"/sync?limit=1000&cursor={quote(cursor)}"
        opened = [unread(running.url, asking(alice, sync if n % 2 else history) * 8) for n in range(100)]
        most = before
        for _ in range(40):
            await asyncio.sleep(0.1)
            most = max(most, memory(running.process.pid))
            # Others are served meanwhile.
            assert (await bob.get("/chats")).status == 200
        assert most - before < 64, f"{most - before:.0f} MiB"
        for each in opened:
            each.close()
        async with asyncio.timeout(WAIT):
            while (answer := await alice.get(history)).status == 503:  # until the server notices the closing
                await asyncio.sleep(0.1)
        assert answer.status == 200
