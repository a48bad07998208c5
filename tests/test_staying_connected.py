"""docs/examples/staying_connected.py against servers and proxies that misbehave, and against a real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from tests.client import Account
from tests.running import ROOT, Services, place, serving
from tests.test_docs import example, part
from tests.waiting import WAIT

READY = '{"type": "ready"}'
Step = int | str  # a status, with which the handshake or refresh is refused; or what a socket does


class Script:
    """What a server does, one step for each handshake and each refresh; the last one again and again."""

    def __init__(self, sockets: list[list[Step]], refreshes: tuple[int, ...] = (200,)) -> None:
        self.sockets, self.refreshes = sockets, list(refreshes)
        self.good = "access-0"  # the one access token that is accepted
        self.refresh_token, self.rotations, self.handshakes = "refresh-0", 0, 0
        self.heard: list[Any] = []


class Refresh(RequestHandler):
    def initialize(self, script: Script) -> None:
        self._script = script

    def post(self) -> None:
        script = self._script
        status = script.refreshes.pop(0) if len(script.refreshes) > 1 else script.refreshes[0]
        if "Authorization" in self.request.headers:  # what is sent is judged, and it has expired
            status = 401
        if status == 200:
            if json.loads(self.request.body)["refresh_token"] != script.refresh_token:
                status = 401
            else:
                script.rotations += 1
                script.refresh_token, script.good = f"refresh-{script.rotations}", f"access-{script.rotations}"
        self.set_status(status)
        self.finish({"access_token": script.good, "refresh_token": script.refresh_token} if status == 200 else "<html>")


class Me(RequestHandler):
    """The token's own judgement, or the proxy's answer to everything."""

    def initialize(self, script: Script) -> None:
        self._script = script

    def get(self) -> None:
        step = self._script.sockets[0][0]
        good = self.request.headers.get("Authorization") == f"Bearer {self._script.good}"
        self.set_status(step if step in (426, 502) else 200 if good else 401)
        if self._script.sockets[0][0] in (426, 502) and len(self._script.sockets) > 1:
            self._script.sockets.pop(0)
        self.finish("<html>")


class Socket(WebSocketHandler):
    def initialize(self, script: Script) -> None:
        self._script = script

    async def get(self, *args: Any, **given: Any) -> None:
        script, step = self._script, self._script.sockets[0][0]
        script.handshakes += 1
        if step in (426, 502):  # the step goes on at /users/me
            self.set_status(int(step))
            return
        if self.request.headers.get("Authorization") != f"Bearer {script.good}":
            self.set_status(401)
            return
        await super().get(*args, **given)

    async def open(self, *_: str, **__: str) -> None:
        script = self._script
        steps = script.sockets.pop(0) if len(script.sockets) > 1 else script.sockets[0]
        for step in steps:
            if isinstance(step, int):
                self.close(step)
            elif step == "expire":
                script.good = "another"
            else:
                await self.write_message(step)

    def on_message(self, message: str | bytes) -> None:
        self._script.heard.append(json.loads(message))


class Driven:
    """The example's connection, with its pauses noted down and not waited for."""

    def __init__(self, module: ModuleType, url: str) -> None:
        module.SERVER = url
        self.pauses: list[float] = []
        self.frames: list[Any] = []
        self.ready, self.away, self.back = 0, asyncio.Event(), asyncio.Event()
        tokens = module.Tokens({"access_token": "access-0", "refresh_token": "refresh-0"})
        self.connection = module.Connection(tokens, self._ready, self.frames.append, self._returned)
        self.connection.pause = self._pause

    def _ready(self, _: Any) -> None:
        self.ready += 1

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def _returned(self) -> None:
        self.away.set()
        await self.back.wait()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, whose random pauses are as long as they can be."""
    module = example("staying_connected")
    monkeypatch.setattr(module.JITTER, "uniform", lambda least, most: most)
    return module


@contextlib.asynccontextmanager
async def driven(module: ModuleType, script: Script) -> AsyncIterator[Driven]:
    [listening] = bind_sockets(0, "127.0.0.1")
    given = {"script": script}
    server = HTTPServer(
        Application([("/ws", Socket, given), ("/users/me", Me, given), ("/auth/refresh", Refresh, given)])
    )
    server.add_socket(listening)
    made = Driven(module, f"http://127.0.0.1:{listening.getsockname()[1]}")
    staying = asyncio.create_task(made.connection.stay())
    made.staying = staying  # type: ignore[attr-defined]
    try:
        yield made
    finally:
        staying.cancel()
        await asyncio.gather(staying, return_exceptions=True)
        server.stop()
        await server.close_all_connections()


async def until(done: Callable[[], bool], driven: Driven) -> None:
    async with asyncio.timeout(WAIT):
        while not done():
            assert not driven.staying.done(), driven.staying  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)


STAYS: list[Step] = [READY]


@pytest.mark.gen_test
async def test_a_proxy_s_502_ends_nothing_and_costs_no_refresh_token(module: ModuleType) -> None:
    script = Script([[502]] * 7 + [STAYS])
    async with driven(module, script) as client:
        await until(lambda: client.ready == 1, client)
        assert client.pauses == [1, 2, 4, 8, 16, 30, 30]
        assert script.rotations == 0


@pytest.mark.gen_test
async def test_a_token_that_ended_is_refreshed_once_though_the_refresh_fails_at_first(module: ModuleType) -> None:
    script = Script([STAYS], refreshes=(502, 503, 429, 200))
    script.good = "another"
    async with driven(module, script) as client:
        await until(lambda: client.ready == 1, client)
        assert script.rotations == 1
        assert client.pauses == [1, 2, 4, 8]


@pytest.mark.gen_test
async def test_the_code_of_the_closing_says_how_long_to_wait(module: ModuleType) -> None:
    codes = [1012, 4429, 1001, 4999]
    script = Script([*([READY, code] for code in codes), STAYS])
    async with driven(module, script) as client:
        await until(lambda: client.ready == 5, client)
        assert client.pauses == [5, 15, 4, 8]  # 1001 is at once only when it is the first break
        assert script.rotations == 0


@pytest.mark.gen_test
async def test_the_oldest_of_too_many_waits_for_its_user(module: ModuleType) -> None:
    script = Script([[READY, 4409], STAYS])
    async with driven(module, script) as client:
        await asyncio.wait_for(client.away.wait(), WAIT)
        await asyncio.sleep(0.1)
        assert (script.handshakes, client.pauses) == (1, [])
        client.back.set()
        await until(lambda: client.ready == 2, client)


@pytest.mark.gen_test
async def test_a_socket_is_prolonged_before_its_token_ends(module: ModuleType) -> None:
    script = Script([[READY, '{"type": "token_expiring", "seconds": 59}', '{"type": "from_the_future"}']])
    async with driven(module, script) as client:
        await until(lambda: bool(script.heard), client)
        assert script.heard == [{"type": "auth", "access_token": "access-1"}]
        assert (script.rotations, script.handshakes) == (1, 1)
        assert client.frames == [{"type": "from_the_future"}]


@pytest.mark.gen_test
async def test_a_prolonging_that_fails_leaves_the_socket_to_4401(module: ModuleType) -> None:
    expiring = '{"type": "token_expiring", "seconds": 59}'
    script = Script([[READY, expiring, "expire", 4401], STAYS], refreshes=(502, 200))
    async with driven(module, script) as client:
        await until(lambda: client.ready == 2, client)
        assert script.rotations == 1


@pytest.mark.gen_test
@pytest.mark.parametrize("status", [401, 403])
async def test_a_session_that_ended_shows_the_login(module: ModuleType, status: int) -> None:
    script = Script([[READY, "expire", 4401]], refreshes=(status,))
    async with driven(module, script) as client:
        with pytest.raises(module.LoggedOut):
            await asyncio.wait_for(client.staying, WAIT)  # type: ignore[attr-defined]
        assert script.handshakes == 1


@pytest.mark.gen_test
async def test_an_app_that_is_too_old_stops(module: ModuleType) -> None:
    async with driven(module, Script([[426]])) as client:
        with pytest.raises(module.Outdated):
            await asyncio.wait_for(client.staying, WAIT)  # type: ignore[attr-defined]


@pytest.mark.gen_test
async def test_a_socket_without_ready_and_a_frame_that_is_no_json_are_breaks(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPENING", 0.3)
    script = Script([['{"type": "typing"}'], [READY, "<html>"], STAYS])
    async with driven(module, script) as client:
        await until(lambda: client.ready == 2, client)
        assert client.pauses == [1, 2]


@pytest.mark.gen_test
async def test_many_that_ask_at_once_refresh_once(module: ModuleType) -> None:
    script = Script([STAYS])
    async with driven(module, script) as client:
        tokens = client.connection._tokens
        assert set(await asyncio.gather(*(tokens.access(refused="access-0") for _ in range(20)))) == {"access-1"}
        assert script.rotations == 1


@pytest.mark.gen_test(timeout=60)
async def test_at_a_real_server_one_socket_outlives_its_tokens(services: Services, module: ModuleType) -> None:
    async with place(services) as shared, serving(shared, JWT_EXPIRATION_HOURS=str(62 / 3600)) as running:
        module.SERVER = running.url
        alice = await Account().register(running.url)
        given = {"access_token": alice.token, "refresh_token": alice.refresh_token}
        ready: list[Any] = []
        connection = module.Connection(module.Tokens(given), ready.append, lambda _: None, asyncio.Event().wait)
        staying = asyncio.create_task(connection.stay())
        async with asyncio.timeout(20):  # token_expiring comes 60 seconds before the end
            while connection._sent in ("", alice.token):
                assert not staying.done()
                await asyncio.sleep(0.05)
        sockets = running.app.metrics.registry.get_sample_value("mimu_websocket_connections")
        assert (len(ready), sockets, staying.done()) == (1, 1, False)
        staying.cancel()
        await asyncio.gather(staying, return_exceptions=True)


def dart() -> Iterator[str]:
    page = part(ROOT / "docs/clients.md", "Flutter")
    yield from re.findall(r"^```dart\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_loop_in_dart_knows_what_the_example_knows() -> None:
    """It can't be run here. It names the same codes, and has as many brackets that open as that close."""
    code = "\n".join(dart())
    assert {"1001", "1012", "4401", "4408", "4409", "4429"} <= set(re.findall(r"\b\d{4}\b", code))
    assert "token_expiring" in code
    for opens, closes in ("()", "{}", "[]"):
        assert code.count(opens) == code.count(closes)
