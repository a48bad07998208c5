"""The addresses that the server listens on, and the log lines about them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from config.settings import Core as CoreSettings
from config.settings import SettingsError, load
from handlers.http.listener import bind
from tests.client import ask
from tests.deploy.relay import free_port
from tests.handlers.test_stop import ipv6_loopback
from tests.running import Services, json_lines, place, program, serving


async def reached(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("host", "urls", "addresses"),
    [
        ("127.0.0.1", ["http://127.0.0.1:{}"], ["127.0.0.1:{}"]),
        ("0.0.0.0", ["http://127.0.0.1:{}"], ["0.0.0.0:{}"]),
        ("::1", ["http://[::1]:{}"], ["[::1]:{}"]),
        ("127.0.0.1, ::1", ["http://127.0.0.1:{}", "http://[::1]:{}"], ["127.0.0.1:{}", "[::1]:{}"]),
        ("[::1],127.0.0.1", ["http://[::1]:{}", "http://127.0.0.1:{}"], ["[::1]:{}", "127.0.0.1:{}"]),
        ("::", ["http://127.0.0.1:{}", "http://[::1]:{}"], ["0.0.0.0:{}", "[::]:{}"]),
        ("*", ["http://127.0.0.1:{}", "http://[::1]:{}"], ["0.0.0.0:{}", "[::]:{}"]),
        ("0.0.0.0,::", ["http://127.0.0.1:{}", "http://[::1]:{}"], ["0.0.0.0:{}", "[::]:{}"]),
    ],
)
async def test_it_listens_where_it_says(
    services: Services, log: io.StringIO, host: str, urls: list[str], addresses: list[str]
) -> None:
    if ":" in host and not ipv6_loopback():
        pytest.skip("NOT TESTED with IPv6: this machine has none")
    async with place(services) as shared, serving(shared, HOST=host) as one:
        assert one.urls == [url.format(one.port) for url in urls]
        assert one.url == one.urls[0]
        [started] = [line for line in json_lines(log.getvalue()) if line["event"] == "started"]
        assert started["addresses"] == [address.format(one.port) for address in addresses]
        for url in one.urls:
            assert (await ask(url, "GET", "/health/live")).status == 200
        named = {urlsplit(url).hostname for url in one.urls}
        for other in ("127.0.0.1", "::1"):
            assert await reached(other, one.port) == (other in named)


@pytest.mark.gen_test
async def test_the_line_at_its_start_names_every_address(services: Services, tmp_path: Path) -> None:
    async with place(services) as shared, program(shared, tmp_path, HOST="127.0.0.2,127.0.0.1") as running:
        assert running.url.startswith("http://127.0.0.2:")
        [started] = [line for line in json_lines(running.log_text()) if line["event"] == "started"]
        port = urlsplit(running.url).port
        assert started["addresses"] == [f"127.0.0.2:{port}", f"127.0.0.1:{port}"]
        assert (await ask(f"http://127.0.0.1:{port}", "GET", "/health/live")).status == 200


def test_an_address_in_use_is_named_and_all_others_are_closed() -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", port))
        taken.listen()
        with pytest.raises(OSError, match=f"Can't listen on PORT {port} of HOST 127.0.0.2"):
            bind(["127.0.0.1", "127.0.0.2"], port)
    for each in bind(["127.0.0.1", "127.0.0.2"], port):
        each.close()


def test_without_ipv6_a_wildcard_is_every_address_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.bind

    def no_ipv6(own: socket.socket, address: tuple[str, int]) -> None:
        if own.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        real(own, address)

    monkeypatch.setattr(socket.socket, "bind", no_ipv6)
    with contextlib.ExitStack() as open_:
        bound = bind(["::"], 0)
        for each in bound:
            open_.callback(each.close)
        assert [each.family for each in bound] == [socket.AF_INET]
    with pytest.raises(OSError, match="HOST ::1"):
        bind(["::1"], 0)


@pytest.mark.parametrize("host", [",", "http://127.0.0.1", "127.0.0.1 ::1"])
def test_an_invalid_list_of_addresses_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="HOST"):
        load({"": CoreSettings}, {"HOST": host})
