"""HTTP/1.1 as proxies and clients send it (RFC 9112), without request smuggling."""

from __future__ import annotations

import asyncio

import pytest
from tornado.httputil import HTTPInputError

from handlers.http.http1 import MAX_CHUNK_LINE, MAX_TRAILERS, SPARE_EXTENSIONS, chunk_line
from tests.client import Account
from tests.handlers.raw import LIVE, line, request
from tests.running import Services, place, serving
from tests.waiting import WAIT

BODY = b'{"public_id": "nobody_x", "password": "xxxxxxxxx"}'
CHUNKED = {"Content_Type": "application/json", "Transfer_Encoding": "chunked"}


@pytest.mark.parametrize(
    ("text", "size", "extensions"),
    [
        (b"0", 0, 0),
        (b"1f", 31, 0),
        (b"00aF", 175, 0),
        (b"5;a", 5, 2),
        (b"5;sig=ab", 5, 7),
        (b"5 ; sig = ab", 5, 11),
        (b'5;a="b;\\" c";d', 5, 13),
        (b"0;chunk-signature=" + b"a" * 64, 0, 81),
    ],
)
def test_a_chunk_has_a_size_and_extensions(text: bytes, size: int, extensions: int) -> None:
    assert chunk_line(text) == (size, extensions)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b";a",
        b" 5",
        b"5 ",
        b"-5",
        b"+5",
        b"0x5",
        b"5_0",
        b"5 5",
        b"5;",
        b"5;;a",
        b"5;a=",
        b"5;a=b c",
        b'5;a="b',
        b"5;a\n",
        b"5\n",
        b"5;a=\n0\n\nGET / HTTP/1.1",
        b"5\r;a",
        b"5;a=\0",
        "5;ä".encode(),
        "٥".encode(),
        b"f" * 16,
        b"5;" + b"a" * MAX_CHUNK_LINE,
    ],
)
def test_an_invalid_chunk_size_is_refused(text: bytes) -> None:
    with pytest.raises(HTTPInputError):
        chunk_line(text)


@pytest.mark.gen_test
async def test_extensions_and_trailers_are_dropped(services: Services) -> None:
    size = f"{len(BODY):x}".encode()
    half = b"19" + b";a=b\r\n" + BODY[:25] + b"\r\n19;c\r\n" + BODY[25:] + b"\r\n"
    assert len(BODY) == 50
    async with place(services) as shared, serving(shared) as one, line(one.url) as kept:
        head = request("POST /auth/login", **CHUNKED)
        for name, chunks in (
            ("plain", size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("an extension", size + b";sig=ab\r\n" + BODY + b"\r\n0\r\n\r\n"),
            ("a quoted one", size + b' ; a="\\"; 0"\r\n' + BODY + b"\r\n0;last\r\n\r\n"),
            ("two chunks", half + b"0\r\n\r\n"),
            ("a trailer", size + b"\r\n" + BODY + b"\r\n0\r\nX-Checksum: ab\r\n\r\n"),
            ("trailers", half + b"0\r\nA: 1\r\nB:\r\nC: \xc3\xa4\r\n\r\n"),
        ):
            answer = await kept.ask(head + chunks)
            assert (answer.status, answer.json["error"]) == (401, "invalid_credentials"), name
            assert await kept.stays(), name


@pytest.mark.gen_test
async def test_a_trailer_is_no_header(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, line(one.url) as kept:
        alice = await Account().register(one.url)
        trailer = f"0\r\nAuthorization: Bearer {alice.token}\r\nX-Request-ID: mine\r\n\r\n".encode()
        answer = await kept.ask(request("PUT /users/me", **CHUNKED) + b"2\r\n{}\r\n" + trailer)
        assert answer.status == 401
        assert answer.headers["X-Request-ID"] != "mine"


SMUGGLED = LIVE.replace(b"/health/live", b"/nothing")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "chunks",
    [
        b"2\r\n{}\n0\r\n\r\n",  # a chunk that ends in LF
        b"2\n{}\r\n0\r\n\r\n",  # a size that does
        b"2;a\n{}\r\n0\r\n\r\n",  # an extension that does
        b"2;a\rb\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}x\r\n0\r\n\r\n",  # longer than it says
        b"2\r\n{}\r\n0\r\nno header\r\n\r\n",
        b"2\r\n{}\r\n0\r\n folded: x\r\n\r\n",
        b"2\r\n{}\r\n0\r\nA : b\r\n\r\n",
        b"2\r\n{}\r\n0\r\nA: b\nC: d\r\n\r\n",
        b"2\r\n{}\r\n0\r\nA: \0\r\n\r\n",
        b"2\r\n{}\r\n0\r\n" + b"A: b\r\n" * (MAX_TRAILERS // 6 + 1) + b"\r\n",
        b"2;" + b"a" * MAX_CHUNK_LINE + b"\r\n{}\r\n0\r\n\r\n",
        (b"1;" + b"a" * 1000 + b"\r\n \r\n") * (SPARE_EXTENSIONS // 980 + 2) + b"0\r\n\r\n",
    ],
)
async def test_an_ambiguous_request_ends_the_connection(services: Services, chunks: bytes) -> None:
    async with place(services) as shared, serving(shared) as one, line(one.url) as kept:
        answer = await kept.ask(request("POST /auth/login", **CHUNKED) + chunks + SMUGGLED)
        assert (answer.status, answer.json["error"], answer.ends) == (400, "invalid_request", True)
        assert await kept.ended() == b"", "a second request was read"


@pytest.mark.gen_test
async def test_many_small_chunks_with_signatures_pass(services: Services) -> None:
    """More bytes of extensions than of data, as few as signing gateways add."""
    spaces = b"400;chunk-signature=" + b"a" * 64 + b"\r\n" + b" " * 0x400 + b"\r\n"
    async with place(services) as shared, serving(shared) as one, line(one.url) as kept:
        last = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n"
        assert (await kept.ask(request("POST /auth/login", **CHUNKED) + spaces * 250 + last)).status == 401
        assert await kept.stays()


@pytest.mark.gen_test
@pytest.mark.parametrize("value", ["100-continue", "100-Continue", "100-CONTINUE"])
async def test_expect_100_is_answered(services: Services, value: str) -> None:
    async with place(services) as shared, serving(shared) as one, line(one.url) as kept:
        head = {"Content_Type": "application/json", "Content_Length": str(len(BODY)), "Expect": value}
        assert (await kept.ask(request("POST /auth/login", **head))).status == 100
        assert (await kept.ask(BODY)).status == 401
        assert await kept.stays()


@pytest.mark.gen_test
async def test_a_whole_url_counts_as_its_path(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, line(one.url) as kept:
        alice = await Account().register(one.url)
        token = {"Authorization": f"Bearer {alice.token}"}
        for start, status in (
            ("GET http://localhost/health/live", 200),
            ("GET HTTP://localhost:8080/health/live?x=1", 200),
            ("GET https://[::1]:443/health/live", 200),
            ("GET http://localhost", 404),
            ("GET http://localhost?x", 404),
            ("OPTIONS http://localhost/health", 204),
            ("GET http://user@localhost/health/live", 404),
            ("GET ftp://localhost/health/live", 404),
            ("GET http:///health/live", 404),
        ):
            assert (await kept.ask(request(start, Host="elsewhere"))).status == status, start
        # Its host counts, and not the header's: links are made of it, and origins are compared with it.
        new = b'{"size": 5, "sha256": "' + b"0" * 64 + b'"}'
        made = await kept.ask(request("POST http://one.example:81/files", new, **token, Host="two.example"))
        assert made.json["upload"]["url"].startswith("http://one.example:81/uploads/")
        # Two hosts are refused as ever, and none in HTTP/1.1.
        for hosts in (b"Host: a\r\nHost: b\r\n", b""):
            async with line(one.url) as other:
                message = b"GET http://localhost/health/live HTTP/1.1\r\n" + hosts + b"\r\n"
                assert (await other.ask(message)).status == 400


@pytest.mark.gen_test
async def test_a_body_that_comes_slowly_in_chunks_is_whole(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, line(one.url) as kept:
        kept.writer.write(request("POST /auth/login", **CHUNKED))
        for byte in f"{len(BODY):x};a=b\r\n".encode() + BODY + b"\r\n0\r\nA: b\r\n\r\n":
            kept.writer.write(bytes((byte,)))
            await asyncio.sleep(0.001)
        assert (await asyncio.wait_for(kept.answer(), WAIT)).status == 401
        assert await kept.stays()
