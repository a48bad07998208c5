"""The doctor before the public address: a good proxy is found good, and one with a fault in just that fault."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tornado.httpserver import HTTPServer
from tornado.web import Application, RedirectHandler, RequestHandler

from scripts import doctor
from scripts.checks import public
from scripts.checks.asking import ask
from tests import canaries
from tests.client import Account
from tests.deploy.relay import free_port
from tests.providers.certificates import certified
from tests.running import Services, place, serving
from tests.scripts.examining import Found, examine
from tests.scripts.program import script
from tests.scripts.proxy import Proxy, proxying

MONTHS = datetime.timedelta(days=90)
TRUSTING = {"TRUSTED_PROXIES": "127.0.0.9/32", "METRICS_ALLOW": "203.0.113.0/24", "RATE_LIMITS": "on"}


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for certificates, whose authority, once it is there, is trusted as if the system knew it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return tmp_path


@pytest.mark.gen_test
async def test_faults_of_a_proxy(services: Services, trusted: Path) -> None:
    _, context = certified(trusted, ends=MONTHS, alpn="http/1.1")
    async with place(services) as shared, serving(shared, **TRUSTING) as running:
        given = {**shared.environment, **TRUSTING}

        async def found(proxy: Proxy, **changed: str) -> Found:
            async with proxying(running.port, context, proxy):
                return await examine({**given, **changed}, "public", url=proxy.url)

        assert (await found(Proxy())).bad() == {}
        for proxy, part, state, words in (
            (Proxy(hsts=False), "hsts", "weak", "Strict-Transport-Security is missing"),
            (Proxy(upgrades=False), "upgrade", "wrong", "into an ordinary request (400)"),
            (Proxy(appends=False), "forwarded", "wrong", "trusts X-Forwarded-For"),
            (Proxy(largest=200 * 1024), "body limit", "weak", "with its own page"),
            (Proxy(largest=1 << 20), "uploads", "wrong", "rejects large uploads (413)"),
            (Proxy(collects=True), "uploads", "weak", "proxy buffers uploads"),
            (Proxy(ahead=30), "clock", "weak", "ahead of this machine's"),
            (Proxy(ahead=-3600), "clock", "wrong", "behind this machine's"),
            (Proxy(drops="X-Request-ID"), "request id", "weak", "is not returned"),
        ):
            said = await found(proxy)
            bad = said.bad()
            assert (said["public", part].state, words in said["public", part].says) == (state, True), said[
                "public", part
            ]
            if proxy.largest > 200 * 1024:  # which is too little for uploads as well
                assert bad.keys() == {("public", part)}
        said = await found(Proxy(hides=True))
        assert said.bad() == {}
        assert said["public", "forwarded"].says == "The proxy answers /metrics itself, so this can't be checked."
        # Another secret than the server's: what it signs is refused there.
        said = await found(Proxy(), JWT_SECRET="another-secret-0123456789abcdefghijklmn")
        assert "rejects tokens signed with our JWT_SECRET" in said["public", "upgrade"].says


@pytest.mark.gen_test
async def test_metrics_that_the_world_may_read(services: Services, trusted: Path) -> None:
    _, context = certified(trusted, ends=MONTHS, alpn="http/1.1")
    async with place(services) as shared, serving(shared) as running, proxying(running.port, context, Proxy()) as proxy:
        said = await examine(shared.environment, "public", url=proxy.url)
        assert said["public", "metrics"].state == "weak"
        # Without TRUSTED_PROXIES, and the server's own port.
        said = await examine(shared.environment, "public", url=running.url)
        assert said["public", "certificate"].state == "skipped"
        assert said["public", "upgrade"].state == "good"


@pytest.mark.gen_test
async def test_a_socket_is_opened_with_an_account(services: Services, trusted: Path) -> None:
    _, context = certified(trusted, ends=MONTHS, alpn="http/1.1")
    token_file = trusted / "token"
    async with place(services) as shared, serving(shared) as running, proxying(running.port, context, Proxy()) as proxy:
        alice = await Account().register(running.url)
        assert alice.token
        canaries.plant(alice.token)

        async def said(token: str) -> tuple[str, str]:
            token_file.write_text(token + "\n")
            asked = doctor.parse(["--url", proxy.url, "--token-file", str(token_file)])
            [one] = [one for one in doctor.examinations(asked, shared.environment) if one.name == "public"]
            finding = Found(await doctor.look([one], 15))["public", "socket"]
            return finding.state, finding.says

        state, words = await said(alice.token)
        assert (state, words.startswith("A socket opens, and a frame is answered in ")) == ("good", True)
        assert await said("no-token-at-all") == ("wrong", "The server rejects the token (401).")
        proxy.upgrades = False
        assert (await said(alice.token))[0] == "wrong"


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("days", "name", "state", "words"),
    [
        (-1, "127.0.0.1", "wrong", "certificate has expired"),
        (5, "127.0.0.1", "weak", "valid for 5 days"),
        (90, "chat.mimu.test", "wrong", "IP address mismatch"),
        (90, "", "wrong", "unable to get local issuer certificate"),
    ],
)
async def test_certificates(days: int, name: str, state: str, words: str, trusted: Path) -> None:
    names = [name or "127.0.0.1"]
    _, context = certified(trusted, ends=datetime.timedelta(days=days, hours=1), names=names, alpn="http/1.1")
    if not name:  # of an unknown authority
        certified(trusted)
    async with proxying(free_port(), context, Proxy()) as proxy:
        said = await examine({}, "public", url=proxy.url)
        finding = said["public", "certificate"]
        assert (finding.state, words in finding.says) == (state, True), finding
        if state == "wrong":
            assert said["public", "metrics"].says == "Not checked, because the certificate is not trusted."


class Page(RequestHandler):
    def get(self) -> None:
        self.finish("<h1>Welcome to nginx!</h1>")


class Ill(RequestHandler):
    def get(self) -> None:
        self.set_status(503)
        self.finish({"status": "unhealthy", "database": "ok", "redis": "error", "uptime_seconds": 3})


@asynccontextmanager
async def pages(**routes: type[RequestHandler]) -> AsyncIterator[str]:
    site = Application([(f"/{name}", handler) for name, handler in routes.items()], log_function=lambda _: None)
    site.add_handlers(".*", [("/", RedirectHandler, {"url": "https://chat.mimu.test/"}), ("/plain", Page)])
    server = HTTPServer(site)
    server.listen(0, "127.0.0.1")
    try:
        yield f"http://127.0.0.1:{next(iter(server._sockets.values())).getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()


@pytest.mark.gen_test
async def test_an_unhealthy_server_and_another_program_are_distinguished() -> None:
    async with pages(health=Page) as url:
        said = await examine({}, "public", url=url)
        assert said["public", "health"].says == "What answers there (200) is not Mimu."
        assert said["public", "upgrade"].state == "skipped"
    async with pages(health=Ill) as url:
        said = await examine({}, "public", url=url)
        assert said["public", "health"].says == "Mimu reports failed checks: redis."
    said = await examine({}, "public", url=f"http://127.0.0.1:{free_port()}")
    assert said["public", "health"].says == "There is no answer (ConnectionRefusedError)."
    said = await examine({}, "public", url="https://nowhere.invalid")
    assert said["public", "address"].says == "nowhere.invalid has no address."
    said = await examine({"PORT": "0"}, "public")
    assert set(said.states("public").values()) == {"skipped"}


@pytest.mark.gen_test(timeout=60)
async def test_a_server_that_answers_a_byte_at_a_time_times_out() -> None:
    ended = asyncio.Event()
    dripping: set[asyncio.Task[None] | None] = set()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dripping.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            while not ended.is_set():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, asyncio.timeout(20):
        with pytest.raises(TimeoutError):
            await ask(url, seconds=0.1)
        said = await script(None, "doctor", "--only", "public", "--url", url, "--timeout", "0.5", "--json")
        ended.set()
        await asyncio.gather(*filter(None, dripping))
    [health] = [one for one in said.json["findings"] if one["part"] == "health"]
    assert (said.code, health["state"], health["says"]) == (1, "wrong", "No answer within 0.5 s.")


@pytest.mark.gen_test
async def test_plain_http_must_redirect_to_https() -> None:
    async with pages() as url:
        assert (await public.redirected(f"{url}/")).state == "good"
        assert (await public.redirected(f"{url}/plain")).says == "Requests without TLS are answered (200)."
    assert (await public.redirected(f"http://127.0.0.1:{free_port()}/")).state == "good"
