"""Requests to S3, against a server with scripted answers that S3 servers rarely give."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, cast

import pytest

from models.storage import StorageAway
from models.storage import requests as sending
from models.storage.multipart import Multipart
from models.storage.objects import Objects
from models.storage.requests import Part, Requests
from models.storage.sigv4 import Signer
from tests.waiting import WAIT


class Answered(NamedTuple):
    status: int
    body: bytes = b""
    length: int | None = None


class Fake(ThreadingHTTPServer):
    """Gives each request the next answer, the last one again and again, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Answered] = []
        self.seen: list[tuple[str, str, bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        server = cast(Fake, self.server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.seen.append((self.command, self.path, body))
        answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def requests(port: int) -> Requests:
    return Requests(Signer(f"http://127.0.0.1:{port}", "mimu", "us-east-1", "access", "secret"))


@pytest.mark.gen_test
async def test_a_passing_trouble_is_asked_again_and_a_refusal_is_not(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "FIRST_PAUSE", 0.001)
    asked = requests(fake.server_port)
    fake.answers = [Answered(503), Answered(500), Answered(200)]
    await Objects(asked).put("name", b"bytes")
    assert [body for *_, body in fake.seen] == [b"bytes"] * 3
    fake.seen, fake.answers = [], [Answered(403)]
    with pytest.raises(StorageAway, match="403"):
        await Objects(asked).put("name", b"bytes")
    assert len(fake.seen) == 1
    fake.answers = [Answered(503)]
    with pytest.raises(StorageAway, match="503"):
        await Objects(asked).size("name")
    assert len(fake.seen) == 1 + sending.TRIES
    await asked.close()


@pytest.mark.gen_test
async def test_a_request_that_looks_for_the_cause_is_sent_once(fake: Fake) -> None:
    asked = requests(fake.server_port)
    fake.answers = [Answered(503, b"<Code>SlowDown</Code>")]
    answer = await asked.try_once("PUT", "name", body=b"bytes", headers={"Range": "bytes=0-1"})
    assert (answer.status, answer.body, len(fake.seen)) == (503, b"<Code>SlowDown</Code>", 1)
    await asked.close()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and nothing listens there
        asked = requests(silent.getsockname()[1])
        with pytest.raises(ConnectionRefusedError):
            await asked.try_once("GET", "", {"list-type": "2"})
    await asked.close()


@pytest.mark.gen_test
async def test_a_range_that_is_not_what_was_asked_for_is_no_data(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "FIRST_PAUSE", 0.001)
    asked = requests(fake.server_port)
    for answer in (Answered(206, b"abc"), Answered(200, b"abcd"), Answered(206, b"abcde"), Answered(206, b"ab", 4)):
        fake.answers = [answer]
        with pytest.raises(StorageAway):
            await Objects(asked).read("name", 4, 8)
    fake.answers = [Answered(404)]
    with pytest.raises(FileNotFoundError):
        await Objects(asked).read("name", 4, 8)
    fake.answers = [Answered(206, b"abcd")]
    assert await Objects(asked).read("name", 4, 8) == b"abcd"
    await asked.close()


@pytest.mark.gen_test
async def test_a_list_is_read_to_its_end(fake: Fake) -> None:
    asked = requests(fake.server_port)
    fake.answers = [
        Answered(200, b"<Key>tails/a/1</Key><NextContinuationToken>x&amp;y/</NextContinuationToken>"),
        Answered(200, b"<Key>tails/a/2</Key><Key>tails/a/&lt;3</Key>"),
    ]
    assert [name async for name in Objects(asked).listed("tails/a/")] == ["tails/a/1", "tails/a/2", "tails/a/<3"]
    assert "continuation-token=x%26y%2F" in fake.seen[1][1]
    fake.answers = [Answered(403)]
    with pytest.raises(StorageAway, match="a list: 403"):
        [name async for name in Objects(asked).listed("tails/a/")]
    await asked.close()


@pytest.mark.gen_test
async def test_removing_a_missing_object_succeeds(fake: Fake) -> None:
    asked = requests(fake.server_port)
    fake.answers = [Answered(404)]
    await Objects(asked).remove("name")
    assert await Objects(asked).size("name") is None
    await asked.close()


@pytest.mark.gen_test
async def test_a_part_is_those_bytes_of_the_file_each_time(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "FIRST_PAUSE", 0.001)
    asked = requests(fake.server_port)
    fake.answers = [Answered(500), Answered(200)]
    with pytest.raises(StorageAway, match="a part"):  # S3 gave no tag
        await Multipart(asked).part("name", "upload", 1, Part(io.BytesIO(b"0123456789"), 4, 3))
    assert [body for *_, body in fake.seen] == [b"3456"] * 2
    await asked.close()


@pytest.mark.gen_test
async def test_large_bodies_keep_no_question_waiting(fake: Fake) -> None:
    asked, go_on = requests(fake.server_port), threading.Event()
    fake.answers = [Answered(404)]
    busy = [asked._bulk.submit(go_on.wait) for _ in range(sending.THREADS)]
    async with asyncio.timeout(WAIT):
        assert await Objects(asked).size("name") is None
    assert not any(one.done() for one in busy)
    go_on.set()
    await asked.close()


@pytest.mark.gen_test
async def test_a_server_that_says_nothing_is_given_up() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        asked = requests(silent.getsockname()[1])
        began = time.monotonic()
        with pytest.raises(StorageAway, match="TimeoutError"):
            await asked.ask("HEAD", "", patience=0.2, tries=1)
        assert time.monotonic() - began < 5
        await asked.close()
