"""The shipped nginx configuration before two real servers: forwarded requests, refused requests, and its log."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import secrets
import socket
import ssl
import subprocess
import warnings
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from handlers.http.base import MAX_BODY
from handlers.http.listener import IDLE_SECONDS, STALL_SECONDS
from handlers.sockets import hub
from tests.client import Account, Answer, ask
from tests.deploy.nginx import HOST, SHIPPED, Proxy, certificates, folder, program, proxying, render
from tests.deploy.relay import free_port
from tests.files.transfer import MIB, announce, bearer, got, put, send
from tests.running import ROOT, Services, json_lines, place, serving
from tests.running import program as started
from tests.thorough import rounds
from tests.waiting import WAIT

CANARY = "canary-" + secrets.token_hex(8)
PROXIED = {"TRUSTED_PROXIES": "127.0.0.1/32", "METRICS_ALLOW": "127.0.0.0/8"}


def text(name: str) -> str:
    return (SHIPPED / f"{name}.conf.template").read_text()


def value(directive: str, part: str = "") -> str:
    """What a directive of mimu.conf says, within the location that is named, or outside of all."""
    conf = text("mimu")
    if part:
        conf = conf[conf.index(f"location {part} {{") :]
        conf = conf[: conf.index("}")]
    found = re.findall(rf"(?m)^\s+{directive} ([^;]+);", conf)
    assert len(found) >= 1, directive
    return found[0]


def authority(proxy: Proxy) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(proxy.authority))


# What a file says ----------------------------------------------------------------------------------------------------


def test_nginx_takes_all_of_it() -> None:
    """Also the lines for IPv6, which the other tests do without, and the files' own."""
    with folder() as made:
        certificates(made)
        done = render(
            made,
            NGINX_HOST="mimu.example.org",
            NGINX_FILES_HOST="files.example.org",
            NGINX_TLS=str(made),
            NGINX_ACCESS_LOG=str(made / "log"),
            NGINX_ERROR_LOG="stderr",
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert len(list((made / "conf.d").iterdir())) == 3
        ports = {"80": str(free_port()), "443": str(free_port())}
        for path in [made / "nginx.conf", *(made / "conf.d").iterdir()]:
            assert "${NGINX" not in path.read_text()
            path.write_text(
                re.sub(r"(listen (?:\[::\]:)?)(80|443)\b", lambda found: found[1] + ports[found[2]], path.read_text())
            )
        assert Path("/proc/net/if_inet6").exists() == ("    listen [::]:" in (made / "conf.d/mimu.conf").read_text())
        command = [program(), "-t", "-q", "-c", str(made / "nginx.conf"), "-g", f"pid {made}/pid;"]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert (tried.returncode, tried.stdout, tried.stderr) == (0, "", "")


def test_without_a_certificate_port_80_is_served_and_later_none_is_taken_away() -> None:
    with folder() as made:
        variables = {"NGINX_HOST": HOST, "NGINX_TLS": str(made / "tls")}
        done = render(made, **variables)
        assert done.returncode == 0
        assert "only port 80" in done.stderr
        assert [path.name for path in (made / "conf.d").iterdir()] == ["http.conf"]
        (made / "tls").mkdir()
        (made / "tls" / "fullchain.pem").touch()
        assert render(made, **variables).returncode == 0
        assert sorted(path.name for path in (made / "conf.d").iterdir()) == ["http.conf", "mimu.conf"]
        before = (made / "conf.d" / "mimu.conf").read_text()
        (made / "tls" / "fullchain.pem").unlink()
        done = render(made, **(variables | {"NGINX_HOST": "other.example.org"}))
        assert done.returncode == 1
        assert "nothing was changed" in done.stderr
        assert (made / "conf.d" / "mimu.conf").read_text() == before
        assert "NGINX_HOST" in render(made).stderr


def test_its_limits_are_the_servers() -> None:
    seconds = {name: int(value(name).removesuffix("s")) for name in ("client_header_timeout", "client_body_timeout")}
    assert set(seconds.values()) == {STALL_SECONDS}
    assert value("keepalive_timeout", "") == "4s"  # to the servers, see the next test
    assert f"    keepalive_timeout {IDLE_SECONDS}s;" in text("mimu")
    assert value("client_max_body_size") == f"{MAX_BODY // 1024}k"
    assert f"larger than {MAX_BODY} bytes" in text("mimu")
    # An idle socket has a ping and its pong within this time.
    for name in ("proxy_read_timeout", "proxy_send_timeout"):
        assert int(value(name, "= /ws").removesuffix("s")) >= hub.PING_EVERY + 2 * hub.PONG_WITHIN


def test_the_shipped_shutdown_outlasts_its_idle_connections() -> None:
    """It is nginx that closes an idle connection to a server that stops, never the server."""
    example = (ROOT / "config" / "env.example").read_text()
    shutdown = re.search(r"(?m)^#SHUTDOWN_SECONDS=(\d+)$", example)
    assert shutdown
    assert int(value("keepalive_timeout").removesuffix("s")) < int(shutdown[1])


# Requests ------------------------------------------------------------------------------------------------------------


async def raw(proxy: Proxy, request: bytes, name: str | None = HOST) -> bytes:
    """What is answered to these bytes, until the connection ends."""
    context = authority(proxy)
    context.check_hostname = name is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context, server_hostname=name or "")
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), WAIT)
    finally:
        writer.close()


def request(line: str, **headers: str) -> bytes:
    return "\r\n".join(
        [f"{line} HTTP/1.1", f"Host: {HOST}", "Connection: close", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    ).encode()


def error(answer: Answer | bytes, status: int, code: str) -> None:
    """It is that refusal, in the one form of all refusals."""
    if isinstance(answer, bytes):
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f" {status} ".encode() in head.splitlines()[0], answer
        kind = head.lower()
        said = json.loads(body)
        assert b"content-type: application/json" in kind
        assert f"x-request-id: {said['request_id']}".encode() in kind
    else:
        said = answer.json
        assert answer.status == status, answer.text
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers.get_list("X-Request-ID") == [said["request_id"]]
        assert "Strict-Transport-Security" in answer.headers
    assert said["error"] == code
    assert said["message"]


@pytest.mark.gen_test(timeout=60)
async def test_requests_and_sockets_pass_over_tls(services: Services) -> None:
    async with place(services) as shared, serving(shared, **PROXIED) as one, serving(shared, **PROXIED) as two:
        with proxying(f"127.0.0.1:{one.port}", f"127.0.0.1:{two.port}") as proxy:
            alice, bob = [await Account().register(proxy.url) for _ in range(2)]
            async with alice.socket() as from_alice, bob.socket() as from_bob:
                chat = (await alice.post("/chats", {"type": "direct", "participants": [bob.public_id]})).json["id"]
                payload = "QUJD" * 20_000  # a frame of 80 KB
                sent = {
                    "chat_id": chat,
                    "client_id": str(uuid4()),
                    "encrypted_payload": payload,
                    "message_type": "text",
                }
                ack = await from_alice.send("message_send", **sent)
                assert ack["type"] == "ack", ack
                assert (await from_bob.expect("message_new"))["message"]["encrypted_payload"] == payload
                # Both servers are asked.
                assert len(one.app.hub) + len(two.app.hub) == 2
                for _ in range(4):
                    assert (await alice.get("/users/me")).status == 200
            answer = await alice.get("/users/me")
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
            assert len(answer.headers.get_list("X-Request-ID")) == 1
            asked = {line["upstream"] for line in proxy.requests(8)}
            assert asked == {f"127.0.0.1:{one.port}", f"127.0.0.1:{two.port}"}
            # HTTP/2, for phones that ask much at once.
            context = authority(proxy)
            context.set_alpn_protocols(["h2", "http/1.1"])
            with (
                socket.create_connection(("127.0.0.1", proxy.port)) as plain,
                context.wrap_socket(plain, server_hostname=HOST) as line,
            ):
                assert line.selected_alpn_protocol() == "h2"
                assert line.version() == "TLSv1.3"


@pytest.mark.gen_test(timeout=60)
async def test_plain_http_is_sent_to_tls_and_strangers_get_nothing(services: Services) -> None:
    async with place(services) as shared, serving(shared, **PROXIED) as one:
        with proxying(f"127.0.0.1:{one.port}") as proxy:
            plain = f"http://127.0.0.1:{proxy.http_port}"
            answer = await ask(plain, "GET", "/users/me?a=b", headers={"Host": "elsewhere.example.org"})
            assert (answer.status, answer.headers["Location"]) == (308, f"https://{HOST}/users/me?a=b")
            challenge = proxy.folder / "acme" / ".well-known" / "acme-challenge"
            challenge.mkdir(parents=True)
            (challenge / "token").write_text("proof")
            for path in (challenge.parent, challenge, challenge / "token"):
                path.chmod(0o755)
            assert (await ask(plain, "GET", "/.well-known/acme-challenge/token")).text == "proof"
            assert (await ask(plain, "GET", "/nginx-alive")).status == 200
            # A client that sends no server name, or another one, gets no certificate.
            for name in (None, "example.org"):
                with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
                    await raw(proxy, b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", name)
            # Nor does anything answer to another name once TLS is there.
            assert await raw(proxy, b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n") == b""
            # TLS 1.1 is not spoken; certificates of those days would not be either.
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.set_ciphers("DEFAULT:@SECLEVEL=0")
            old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
            with warnings.catch_warnings(action="ignore"):  # Python would rather not, too
                old.maximum_version = ssl.TLSVersion.TLSv1_1
                old.minimum_version = ssl.TLSVersion.TLSv1
            with socket.create_connection(("127.0.0.1", proxy.port)) as line, pytest.raises(ssl.SSLError):
                old.wrap_socket(line, server_hostname=HOST)


@pytest.mark.gen_test(timeout=60)
async def test_claims_of_a_client_reach_no_server() -> None:
    """The servers trust nginx for the trace of a request and for their own host name."""
    heads: list[bytes] = []

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    upstream = await asyncio.start_server(answered, "127.0.0.1", 0)
    async with upstream:
        with proxying(f"127.0.0.1:{upstream.sockets[0].getsockname()[1]}") as proxy:
            parent = f"00-{'1' * 32}-{'2' * 16}-01"
            await raw(proxy, request("GET /health", traceparent=parent, tracestate="a=b", Upgrade="h2c"))
            await raw(proxy, request("GET /ws", traceparent=parent, Upgrade="websocket"))
            for line, host in (
                (f"GET https://{HOST}/health", "evil.example"),
                ("GET /health", f"{HOST}:@evil.example"),
                ("GET /health", f"{HOST}:8443"),
            ):
                await raw(proxy, f"{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert b"trace" not in b"".join(heads).lower()
    assert [b"Upgrade" in head for head in heads[:2]] == [False, True]
    hosts = [re.findall(rb"(?mi)^host: (.*)\r$", head) for head in heads]
    assert hosts == [[HOST.encode()], [HOST.encode()], [HOST.encode()], [HOST.encode()], [f"{HOST}:8443".encode()]]


@pytest.mark.gen_test(timeout=60)
async def test_a_request_of_which_a_server_died_is_not_asked_of_the_other() -> None:
    asked: list[bytes] = []

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.transport.abort()

    one, two = [await asyncio.start_server(dies, "127.0.0.1", 0) for _ in range(2)]
    addresses = [f"127.0.0.1:{each.sockets[0].getsockname()[1]}" for each in (one, two)]
    async with one, two:
        with proxying(*addresses) as proxy:
            for method in ("GET", "DELETE", "PUT", "POST", "PATCH"):
                for path in ("/users/me", "/files", "/ws"):
                    body = b"{}" if method in ("PUT", "POST", "PATCH") else None
                    error(await ask(proxy.url, method, path, body), 503, "unavailable")
                    assert len(asked) == 1, (method, path)
                    asked.clear()


@pytest.mark.gen_test(timeout=60)
async def test_a_request_that_one_server_cannot_receive_goes_to_the_other() -> None:
    heads: list[bytes] = []

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"(?i)content-length: (\d+)", head)
        heads.append(head + (await reader.readexactly(int(size[1])) if size else b""))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    upstream = await asyncio.start_server(answers, "127.0.0.1", 0)
    there = f"127.0.0.1:{upstream.sockets[0].getsockname()[1]}"
    async with upstream:
        with proxying(f"127.0.0.1:{free_port()}", there) as proxy:
            body = secrets.token_hex(50_000).encode()
            got = await asyncio.gather(
                *(ask(proxy.url, method, "/users/me", body) for method in ("PUT", "POST", "PATCH") * 10),
                *(
                    ask(proxy.url, method, path)
                    for method in ("GET", "DELETE")
                    for path in ("/a", "/files/x", "/ws") * 5
                ),
            )
            assert {(answer.status, answer.text) for answer in got} == {(200, "ok")}
            assert len(heads) == len(got) == 60
            assert sum(head.endswith(b"\r\n\r\n" + body) for head in heads) == 30


@pytest.mark.gen_test(timeout=60)
async def test_a_body_that_stalls_takes_little_memory() -> None:
    """What is beyond 16 KiB of it is in a file, which has no name."""
    with proxying(f"127.0.0.1:{free_port()}") as proxy:
        writers = []
        for size in (10_000, 200_000):
            head = f"POST /messages HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size + 1}\r\n\r\n".encode()
            _, writer = await asyncio.open_connection(
                "127.0.0.1", proxy.port, ssl=authority(proxy), server_hostname=HOST
            )
            writers.append(writer)
            writer.write(head + b"x" * size)
            await writer.drain()
        async with asyncio.timeout(WAIT):
            while not (kept := bodies(proxy)) or max(kept) < 150_000:
                await asyncio.sleep(0.05)
        assert len(kept) == 1
        assert 200_000 - kept[0] <= 16 * 1024
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def bodies(proxy: Proxy) -> list[int]:
    """The sizes of bodies that nginx keeps in files."""
    workers = subprocess.run(["pgrep", "-P", str(proxy.process.pid)], capture_output=True, text=True, timeout=10)
    found: list[int] = []
    for worker in workers.stdout.split():
        files = Path(f"/proc/{worker}/fd").iterdir()
        found += [opened.stat().st_size for opened in files if "/client_body/" in str(opened.readlink())]
    return found


@pytest.mark.gen_test(timeout=60)
async def test_limits_count_the_clients_own_address(services: Services) -> None:
    limited = PROXIED | {"RATE_LIMITS": "on", "RATE_LIMIT_REGISTER": "2/hour"}
    async with place(services) as shared, serving(shared, **limited) as one:
        with proxying(f"127.0.0.1:{one.port}") as proxy:
            answers = [
                await ask(
                    proxy.url,
                    "POST",
                    "/auth/register",
                    Account().body(),
                    headers={"X-Forwarded-For": f"203.0.113.{number}", "X-Real-IP": f"203.0.113.{number}"},
                )
                for number in range(3)
            ]
            assert [answer.status for answer in answers] == [201, 201, 429]
            # Another address has its own count: the limit is per client, not per proxy.
            context = authority(proxy)
            body = json.dumps(Account().body()).encode()
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", proxy.port, ssl=context, server_hostname=HOST, local_addr=("127.0.0.2", 0)
            )
            head = f"POST /auth/register HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            # Our own server believes 127.0.0.1, and 127.0.0.2 is one of the addresses that it does not.
            assert (await asyncio.wait_for(reader.read(), WAIT)).startswith(b"HTTP/1.1 201")
            writer.close()


@pytest.mark.gen_test(timeout=60)
async def test_errors_of_nginx_have_the_form_of_the_contract(services: Services) -> None:
    async with place(services) as shared, serving(shared, **PROXIED) as one:
        few = {"limit_req zone=mimu_requests burst=400 nodelay": "limit_req zone=mimu_requests burst=40 nodelay"}
        with proxying(f"127.0.0.1:{one.port}", changes=few) as proxy:
            alice = await Account().register(proxy.url)
            large = b'{"display_name": "' + b"x" * MAX_BODY + b'"}'
            error(await ask(proxy.url, "PUT", "/users/me", large, alice.token), 413, "too_large")
            head = f"PUT /users/me HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {alice.token}\r\n"
            head += "Content-Type: application/json\r\nConnection: close\r\n"
            chunks = b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(9)) + b"0\r\n\r\n"
            error(await raw(proxy, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks), 413, "too_large")
            # What is just allowed passes, and it is the server that judges it.
            fits = b'{"bio": "' + b"x" * (MAX_BODY - 11) + b'"}'
            assert len(fits) == MAX_BODY
            assert (await ask(proxy.url, "PUT", "/users/me", fits, alice.token)).code == "invalid_request"
            for path in ("/metrics", "/%6detrics", "//metrics", "/x/../metrics", "/metrics?x=1"):
                error(await raw(proxy, request(f"GET {path}")), 404, "not_found")
            assert (await ask(one.url, "GET", "/metrics")).status == 200
            for odd in (b"nonsense\r\n\r\n", request(f"GET /{'x' * 20_000}"), request("GET /", X="x" * 20_000)):
                error(await raw(proxy, odd), 400, "invalid_request")
            error(await raw(proxy, request("TRACE /")), 405, "method_not_allowed")
            assert (await ask(proxy.url, "GET", "/-/refusal")).code == "not_found"
            answers = await asyncio.gather(*(ask(proxy.url, "GET", "/health/live") for _ in range(120)))
            refused = [answer for answer in answers if answer.status != 200]
            assert refused
            error(refused[0], 429, "rate_limited")
            assert refused[0].headers["Retry-After"] == "1"
    with proxying(f"127.0.0.1:{free_port()}") as proxy:
        answer = await ask(proxy.url, "GET", "/health")
        error(answer, 503, "unavailable")
        assert answer.headers["Retry-After"] == "1"
        [line] = proxy.requests(1)
        assert (line["status"], line["upstream_status"]) == ("503", "502 : 502 : 502")


@pytest.mark.gen_test(timeout=60)
async def test_clients_with_bad_tokens_cost_others_nothing(services: Services, tmp_path: Path) -> None:
    """The servers keep the connections on which nginx sends everybody's requests, whatever they refuse on them; a POST
    that is sent on one which is being closed would be lost, for nginx does not repeat it."""
    many = {"limit_req zone=mimu_requests burst=400 nodelay": "limit_req zone=mimu_requests burst=9000 nodelay"}
    each = rounds(40, thorough=100)
    async with place(services) as shared, started(shared, tmp_path, **PROXIED) as one:
        with proxying(urlsplit(one.url).netloc, changes=many) as proxy:
            alice, bob = await Account().register(one.url), await Account().register(one.url)
            verify = {"verified_fingerprint": bob.fingerprint, "method": "manual"}

            async def asking(method: str, path: str, token: str, body: object = None) -> list[int]:
                headers = {"Authorization": f"Bearer {token}"}
                async with httpx.AsyncClient(base_url=proxy.url, verify=authority(proxy), trust_env=False) as client:
                    answers = [await client.request(method, path, json=body, headers=headers) for _ in range(each)]
                    return [answer.status_code for answer in answers]

            *refused, first, second = await asyncio.gather(
                *(asking(method, "/chats", "x", {} if method == "POST" else None) for method in ("GET", "POST") * 3),
                *(asking("POST", f"/users/{bob.public_id}/verify", alice.token, verify) for _ in range(2)),
            )
            assert {code for codes in refused for code in codes} == {401}
            assert {*first, *second} == {200}
            assert {line["upstream_status"] for line in proxy.requests(8 * each)} == {"401", "200"}


@pytest.mark.gen_test(timeout=60)
async def test_answers_are_compressed_once_and_those_with_tokens_never(services: Services) -> None:
    async with place(services) as shared, serving(shared, **PROXIED) as one:
        # As on a machine whose nginx compresses whatever it serves.
        directive = "proxy_http_version 1.1"
        everything = {directive: f"{directive}; gzip_types *; gzip_proxied any; gzip_min_length 1"}
        with proxying(f"127.0.0.1:{one.port}", changes=everything) as proxy:
            alice = await Account().register(proxy.url)
            await alice.put("/users/me", {"settings": {"drafts": "written by hand, " * 200}})
            accepts = {"Accept-Encoding": "gzip"}
            packed = await ask(proxy.url, "GET", "/users/me", token=alice.token, headers=accepts)
            assert packed.headers["Content-Encoding"] == "gzip"
            assert packed.json == (await alice.get("/users/me")).json
            credentials = {"public_id": alice.public_id, "password": alice.password}
            signed_in = await ask(proxy.url, "POST", "/auth/login", credentials, headers=accepts)
            assert signed_in.status == 200
            assert "Content-Encoding" not in signed_in.headers


# Logs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_a_request_has_one_id_from_nginx_to_the_servers_log(
    services: Services, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place(services) as shared, serving(shared, **PROXIED) as one:
        with proxying(f"127.0.0.1:{one.port}") as proxy:
            given = await ask(proxy.url, "GET", "/health/live", headers={"X-Request-ID": "from-the.client_1"})
            assert given.headers["X-Request-ID"] == "from-the.client_1"
            odd = await ask(proxy.url, "GET", "/health/live", headers={"X-Request-ID": '"odd" id'})
            made = await ask(proxy.url, "GET", "/health/live")
            for answer in (odd, made):
                assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])

            monkeypatch.setattr(one.app.db, "value", None)  # asked for its health it fails, and says so
            failed = await ask(proxy.url, "GET", "/health/ready")
            assert failed.status == 503
            said = [line for line in json_lines(log.getvalue()) if line["event"] == "check_failed"]
            assert [line["request_id"] for line in said] == [failed.headers["X-Request-ID"]]
            lines = proxy.requests(4)
            assert [line["request_id"] for line in lines] == [
                answer.headers["X-Request-ID"] for answer in (given, odd, made, failed)
            ]


def routes() -> list[tuple[str, str]]:
    """Every route of the API page."""
    return re.findall(r"(?m)^### `([A-Z]+) (/\S*)`$", (ROOT / "docs" / "api.md").read_text())


def logged(path: str) -> str:
    """What the log may say of a route: its words, up to the second id; of an id at the end of some, not even that."""
    words, name, more = path.partition("/{")
    if not name or words.startswith(("/auth/", "/push/", "/files/tus")):
        return words
    return f"{words}/-{more.partition('}')[2].partition('/{')[0]}"


@pytest.mark.gen_test(timeout=60)
async def test_its_log_has_the_route_and_no_address_id_or_header(services: Services) -> None:
    headers = {"X-Forwarded-For": CANARY, "X-PrID": CANARY, "User-Agent": CANARY, "Referer": CANARY}
    async with place(services) as shared, serving(shared, **PROXIED) as one:
        with proxying(f"127.0.0.1:{one.port}") as proxy:
            alice = await Account().register(proxy.url)
            for method, path in routes():
                body = b"{}" if method in ("POST", "PUT", "PATCH") else None
                address = re.sub(r"\{\w+\}", CANARY, path)
                await ask(proxy.url, method, f"{address}?sig={CANARY}", body, alice.token, headers)
            assert (await alice.get(f"/users/{alice.public_id}")).status == 200
            lines = proxy.requests(len(routes()) + 2)
            said = proxy.log_text()
        # Where no server answers, the error log would have the request line, with a query that is a key.
        with proxying(f"127.0.0.1:{free_port()}") as lonely:
            for path in (
                f"/uploads/{CANARY}?sig={CANARY}",
                f"/downloads/{CANARY}?sig={CANARY}",
                f"/users/{CANARY}?sig={CANARY}",
            ):
                assert (await ask(lonely.url, "PUT", path, b"x", headers=headers)).status == 503
            lonely.requests(3)
            said += lonely.log_text()
    for secret in (CANARY, alice.token, alice.public_id, alice.user_id):
        assert secret not in said
    # Each worker of nginx writes its own lines, so their order is not that of the requests.
    asked = [(method, logged(path)) for method, path in routes()]
    by_alice = [("POST", "/auth/register"), ("GET", "/users/-")]
    assert sorted((line["method"], line["route"]) for line in lines) == sorted(asked + by_alice)
    for line in lines:
        assert line["address"] == ("127.0.0.1" if line["status"] >= "400" else "")
    statuses = {(line["method"], line["route"], line["status"]) for line in lines}
    assert statuses >= {("POST", "/auth/register", "201"), ("GET", "/users/-", "200")}
    assert set(lines[0]) == {
        *("time", "event", "request_id", "method", "route", "protocol", "status", "seconds"),
        *("upstream", "upstream_status", "upstream_seconds", "address"),
    }


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:"),
        ("2001:db8:1:2::6", "2001:db8:1:2:"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2:"),
        ("2001:db8::5", "2001:db8::"),
        ("2001:db8:0:5::1", "2001:db8:0:5:"),
        ("::1", "::"),
    ],
)
def test_a_whole_network_of_ipv6_is_one_client(address: str, counted: str) -> None:
    """By the expressions of the map, in its order, as nginx (PCRE) reads them."""
    block = re.search(r"map \$remote_addr \$mimu_client \{(.*?)\n\}", text("mimu"), re.DOTALL)
    assert block
    patterns = re.findall(r'"~(\S+)"', block[1])
    assert len(patterns) == 2
    found = (re.match(pattern.replace("(?<", "(?P<"), address) for pattern in patterns)
    assert next((match["mimu_net"] for match in found if match), address) == counted


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=60)
async def test_files_pass_as_they_come(services: Services, tmp_path: Path) -> None:
    content = secrets.token_bytes(5 * MIB)
    local = PROXIED | {"MIMU_DATA_DIR": str(tmp_path)}
    async with place(services) as shared, serving(shared, **local) as one:
        with proxying(f"127.0.0.1:{one.port}") as proxy:
            alice = await Account().register(proxy.url)
            announced = await announce(alice, content)
            assert announced.json["upload"]["url"].startswith(f"{proxy.url}/uploads/")
            assert (await put(announced, content)).code in (200, 204)
            file_id = announced.json["file_id"]
            assert (await alice.post(f"/files/{file_id}/complete", {})).status == 200
            assert (await got(alice, file_id)).body == content
            assert (await got(alice, file_id, Range="bytes=1000000-1999999")).body == content[1_000_000:2_000_000]
            # Unbuffered: what was sent is on the server's disk before the rest of the body is there.
            tus = bearer(alice, Tus_Resumable="1.0.0", Upload_Length=str(len(content)))
            made = await send("POST", f"{proxy.url}/files/tus", b"", tus)
            upload = made.headers["Location"]
            assert upload.startswith(f"{proxy.url}/files/tus/")
            _, writer = await asyncio.open_connection(
                "127.0.0.1", proxy.port, ssl=authority(proxy), server_hostname=HOST
            )
            head = f"PATCH {upload.removeprefix(proxy.url)} HTTP/1.1\r\nHost: {HOST}:{proxy.port}\r\n"
            head += f"Authorization: Bearer {alice.token}\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            head += f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content[: 2 * MIB])
            await writer.drain()
            async with asyncio.timeout(WAIT):
                while sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < len(content) + MIB:
                    await asyncio.sleep(0.02)
            # The connection breaks; what came counts, and the rest follows.
            writer.transport.abort()
            where = bearer(alice, Tus_Resumable="1.0.0")
            offset = int((await send("HEAD", upload, None, where)).headers["Upload-Offset"])
            assert MIB < offset <= 2 * MIB
            rest = bearer(alice, Tus_Resumable="1.0.0", Upload_Offset=str(offset))
            rest["Content-Type"] = "application/offset+octet-stream"
            assert (await send("PATCH", upload, content[offset:], rest)).code == 204
            assert (await got(alice, upload.rpartition("/")[2])).body == content
            assert list((proxy.folder / "client_body").iterdir()) == []
