"""A server that hangs: it is stopped in its tracks (SIGSTOP), behind the shipped nginx, and beside one that is well."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path

import pytest

from tests.client import ask
from tests.deploy.nginx import proxying
from tests.deploy.relay import free_port
from tests.deploy.test_nginx import text
from tests.running import Services, place, program
from tests.waiting import SLACK

# Seconds for which nginx waits for the first byte, or for the next one; every other route is answered within 3.
LONGER = {
    "= /ws": 90,
    "/devices/links/": 35,
    "/subscriptions/": 35,
    "/files": 300,
    "/uploads/": 300,
    "/downloads/": 60,
    "@first_long": 300,
    "@second_long": 300,
}
OTHERS = 5


def test_each_route_that_may_take_longer_is_named() -> None:
    conf = text("mimu")
    seconds = {}
    for name, block in re.findall(r"(?ms)^    location ((?:= )?[/@]\S*) \{\n(.*?)^    \}", conf):
        found = re.findall(r"proxy_read_timeout (\d+)s;", block)
        if found:
            seconds[name] = int(found[0])
    assert seconds == LONGER
    assert re.findall(r"(?m)^    proxy_read_timeout (\d+)s;", conf) == [str(OTHERS)]
    pattern = re.search(r'"~(\^/\(\?:ws\S*)" +@first_long', conf)
    assert pattern
    for name in LONGER:  # tried again they may take as long
        if name[0] != "@":
            assert re.search(pattern[1], name.removeprefix("= ") + ("x" if name[-1] == "/" else "")), name


@pytest.mark.gen_test(timeout=90)
async def test_requests_go_on_at_the_other_server_within_seconds(services: Services, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with (
        place(services) as shared,
        program(shared, tmp_path / "one") as hung,
        program(shared, tmp_path / "two") as well,
    ):
        with proxying(hung.url.removeprefix("http://"), well.url.removeprefix("http://")) as proxy:
            for _ in range(4):
                assert (await ask(proxy.url, "GET", "/health/live")).status == 200
            hung.process.send_signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                first = await asyncio.gather(*(ask(proxy.url, "GET", "/health/live") for _ in range(20)))
                assert time.monotonic() - began < OTHERS + SLACK, "no request waits longer"
                assert {answer.status for answer in first} == {200, 503}
                # From then on the other one is asked.
                began = time.monotonic()
                later = [await ask(proxy.url, "GET", "/health/live") for _ in range(40)]
                assert [answer.status for answer in later] == [200] * 40
                assert time.monotonic() - began < OTHERS + SLACK, "40 times OTHERS if the hung one is asked"
            finally:
                hung.process.send_signal(signal.SIGCONT)


@pytest.mark.gen_test(timeout=60)
async def test_a_request_that_kills_the_second_server_is_sent_once() -> None:
    asked: list[bytes] = []

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.transport.abort()

    dying = await asyncio.start_server(dies, "127.0.0.1", 0)
    there, nowhere = f"127.0.0.1:{dying.sockets[0].getsockname()[1]}", f"127.0.0.1:{free_port()}"
    async with dying:
        for servers in ((there, nowhere), (nowhere, there)):
            with proxying(*servers) as proxy:
                for number in range(8):  # set aside or not
                    for path in ("/users/me", "/files", "/ws"):
                        assert (await ask(proxy.url, "GET", path)).status == 503
                        assert len(asked) == 1, (servers, number, path)
                        asked.clear()
