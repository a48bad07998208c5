"""RFC 6455: the parser accepts valid frames however they are split, and closes invalid ones with their code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections import Counter
from collections.abc import Awaitable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.sockets.rfc6455 import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Parser, Protocol, Violation
from tests.handlers.websocket import frame, line, received
from tests.running import Services

LIMIT = 1000


def fed(wire: bytes, sizes: list[int]) -> list[tuple[int, bytes]]:
    """Parse the bytes in pieces of these sizes, repeated. Returns the messages."""
    parser, found, at, turn = Parser(LIMIT), [], 0, 0
    while at < len(wire):
        piece = wire[at : at + sizes[turn % len(sizes)]]
        at, turn = at + len(piece), turn + 1
        found += [(opcode, payload) for opcode, payload in parser.feed(piece) if opcode != CONTINUATION]
    return found


messages = st.tuples(
    st.sampled_from([TEXT, BINARY]), st.lists(st.binary(max_size=300), min_size=1, max_size=3).filter(any)
)
controls = st.tuples(st.sampled_from([CLOSE, PING, PONG]), st.binary(max_size=125))


@given(
    st.lists(st.tuples(messages, st.lists(controls, max_size=2)), max_size=6),
    st.lists(st.integers(1, 700), min_size=1, max_size=5),
)
def test_well_formed_messages_are_read_whole_however_they_are_fragmented(
    said: list[tuple[tuple[int, list[bytes]], list[tuple[int, bytes]]]], sizes: list[int]
) -> None:
    wire, expected = b"", []
    for (opcode, fragments), between in said:
        for number, fragment in enumerate(fragments):
            last = number == len(fragments) - 1
            if last:  # control frames may come between the fragments of a message
                wire += b"".join(frame(*control) for control in between)
                expected += between
            wire += frame(opcode if number == 0 else CONTINUATION, fragment, fin=last)
        expected.append((opcode, b"".join(fragments)))
    assert fed(wire, sizes) == expected


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), min_size=1, max_size=3))
def test_rubbish_is_a_violation_or_the_beginning_of_something(wire: bytes, sizes: list[int]) -> None:
    with contextlib.suppress(Violation):
        for _, payload in fed(wire, sizes):
            assert len(payload) <= LIMIT


def test_a_large_message_in_single_bytes_costs_no_square() -> None:
    parser = Parser(1 << 20)
    wire = frame(TEXT, b"x" * (1 << 18))
    found = [entry for at in range(len(wire)) for entry in parser.feed(wire[at : at + 1])]
    assert found == [(TEXT, b"x" * (1 << 18))]  # a parser that looks each time would take minutes


NOPE = b'{"type": "nope", "id": "1"}'


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frame(TEXT, NOPE, masked=False), 1002),
        (frame(TEXT, NOPE, reserved=0x40), 1002),  # compression that was not negotiated
        (frame(0x3, NOPE), 1002),
        (frame(0xB, b""), 1002),
        (frame(PING, b"", fin=False), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(CONTINUATION, NOPE), 1002),
        (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), 1002),
        (frame(CLOSE, b"x"), 1002),
        (frame(CLOSE, struct.pack("!H", 1005)), 1002),
        (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), 1007),
        (frame(TEXT, b'{"type": "\xff"}'), 1007),
        (frame(TEXT, b'{"type": "\xed\xa0\x80"}'), 1007),  # a surrogate
        (frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b""), 1007),
        (frame(TEXT, b"x" * (128 * 1024 + 1)), 1009),
        (frame(TEXT, b"x" * 100_000, fin=False) + frame(CONTINUATION, b"x" * 100_000), 1009),
        (b"\x81\xff" + b"\x7f" + b"\xff" * 7 + b"mask", 1009),  # only the head of 2^63 bytes
    ],
    ids=[
        "unmasked",
        "reserved bit",
        "unknown opcode",
        "unknown control opcode",
        "control in fragments",
        "long control",
        "nothing to continue",
        "message within a message",
        "short close",
        "close with an unassigned code",
        "close reason not UTF-8",
        "not UTF-8",
        "surrogate",
        "half a character",
        "large",
        "large in fragments",
        "head of a huge one",
    ],
)
async def test_a_protocol_error_closes_the_socket_with_its_code(services: Services, wire: bytes, code: int) -> None:
    async with line(services) as (reader, writer):
        writer.write(wire)
        opcode, payload = await received(reader)
        assert (opcode, int.from_bytes(payload[:2])) == (CLOSE, code)
        assert await reader.read() == b""  # and then the connection ends


@pytest.mark.gen_test
async def test_fragments_pings_and_closes_as_the_rfc_says(services: Services) -> None:
    async with line(services) as (reader, writer):
        writer.write(frame(TEXT, NOPE[:5], fin=False) + frame(PING, b"between") + frame(CONTINUATION, b"", fin=False))
        assert await received(reader) == (PONG, b"between")
        writer.write(frame(CONTINUATION, NOPE[5:]))
        opcode, payload = await received(reader)
        assert (opcode, json.loads(payload)["id"]) == (TEXT, "1")
        # A character may be cut in two by fragments, but not by the message's end.
        text = '{"type": "неизвестно", "id": "2"}'.encode()
        writer.write(frame(TEXT, text[:11], fin=False) + frame(CONTINUATION, text[11:]))
        assert json.loads((await received(reader))[1])["id"] == "2"
        writer.write(frame(PONG, b"unsolicited"))
        writer.write(frame(CLOSE, struct.pack("!H", 4000) + b"bye") + frame(TEXT, NOPE))
        assert await received(reader) == (CLOSE, struct.pack("!H", 4000))
        assert await reader.read() == b""


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "wire",
    [frame(TEXT, b'{"type": "nope"}'), frame(PING, b""), frame(PONG, b""), frame(TEXT, b"", fin=False)],
    ids=["messages", "pings", "pongs", "fragments"],
)
async def test_frames_of_every_kind_count_as_a_flood(services: Services, wire: bytes) -> None:
    async with line(services, RATE_LIMITS="on") as (reader, writer):
        if not wire[0] & 0x80:
            writer.write(wire)
            wire = frame(CONTINUATION, b"", fin=False)
        writer.write(wire * 2000)
        while True:
            opcode, payload = await received(reader)
            if opcode == CLOSE:
                break
        assert int.from_bytes(payload[:2]) == 4429


@pytest.mark.gen_test
async def test_a_flood_lets_others_have_their_turn(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, handled = 0, Counter[int]()
    take = Protocol._take

    def counting(protocol: Protocol, opcode: int, payload: bytes) -> Awaitable[None] | None:
        handled[turns] += 1
        return take(protocol, opcode, payload)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(Protocol, "_take", counting)
    async with line(services) as (reader, writer):  # without limits, or the flood would soon be over
        quiet = asyncio.ensure_future(others())
        try:
            writer.write(frame(PING, b"") * 10_000)
            for _ in range(10_000):
                assert await received(reader) == (PONG, b"")
        finally:
            quiet.cancel()
        assert max(handled.values()) <= 32
