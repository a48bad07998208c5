"""The cases of the Autobahn test suite, in our words; the suite itself needs Python 2.

The suite judges a server that echoes. Ours answers each message with a JSON frame, so a case says which messages the
server must have received instead. Compression is not among them: the server declines it. Messages are at most 128 KiB
here, and 16 MiB there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from handlers.sockets.rfc6455 import BINARY, CLOSE, CONTINUATION, NOT_UTF8, PING, PONG, PROTOCOL_ERROR, TEXT, TOO_BIG
from handlers.sockets.socket import MAX_FRAME
from tests.handlers.websocket import frame

NORMAL = 1000
WORDS, HELLO = b"Hello, world!", "Hello, world!"
KOSME = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"  # a Greek word, of characters of two and three bytes


@dataclass(frozen=True)
class Case:
    """What a client sends, and what must become of it."""

    name: str
    pieces: Sequence[bytes]  # each is sent by itself
    messages: Sequence[str | bytes] = ()  # that the server receives
    pongs: Sequence[bytes] = ()
    codes: Sequence[int] = ()  # any of them in the server's Close frame; none: the client closes at last, with 1000


def chopped(wire: bytes, size: int = 1) -> list[bytes]:
    return [wire[at : at + size] for at in range(0, len(wire), size)]


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def fragmented(opcode: int, *parts: bytes) -> list[bytes]:
    """A message as so many frames."""
    last = len(parts) - 1
    return [frame(opcode if n == 0 else CONTINUATION, part, fin=n == last) for n, part in enumerate(parts)]


def framing() -> Iterator[Case]:
    for size in (0, 125, 126, 127, 128, 65_535, 65_536):
        yield Case(f"text of {size}", [frame(TEXT, b"*" * size)], ["*" * size])
        yield Case(f"binary of {size}", [frame(BINARY, b"\xfe" * size)], [b"\xfe" * size])
    yield Case("text in pieces of 997", chopped(frame(TEXT, b"*" * 65_536), 997), ["*" * 65_536])
    yield Case("binary in pieces of 997", chopped(frame(BINARY, b"\xfe" * 65_536), 997), [b"\xfe" * 65_536])


def pings() -> Iterator[Case]:
    for name, payload in (
        ("empty", b""),
        ("text", WORDS),
        ("bytes", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"),
        ("longest", b"\xfe" * 125),
    ):
        yield Case(f"ping, {name}", [frame(PING, payload)], pongs=[payload])
    yield Case("ping in single bytes", chopped(frame(PING, b"\xfe" * 125)), pongs=[b"\xfe" * 125])
    yield Case("ping too long", [frame(PING, b"\xfe" * 126)], codes=[PROTOCOL_ERROR])
    yield Case("unsolicited pong", [frame(PONG)])
    yield Case("pong with a payload", [frame(PONG, b"unsolicited")])
    yield Case("pong, then ping", [frame(PONG, b"unsolicited"), frame(PING, b"ping")], pongs=[b"ping"])
    many = [b"payload-%d" % number for number in range(10)]
    wire = b"".join(frame(PING, payload) for payload in many)
    yield Case("ten pings", [wire], pongs=many)
    yield Case("ten pings in single bytes", chopped(wire), pongs=many)


def reserved_bits() -> Iterator[Case]:
    yield Case("first message", [frame(TEXT, WORDS, reserved=0x10)], codes=[PROTOCOL_ERROR])
    for name, bad in {
        "text": frame(TEXT, WORDS, reserved=0x20),
        "two bits": frame(TEXT, WORDS, reserved=0x30),
        "the bit of compression": frame(TEXT, WORDS, reserved=0x40),
        "binary": frame(BINARY, WORDS, reserved=0x50),
        "ping": frame(PING, WORDS, reserved=0x60),
        "close": frame(CLOSE, reserved=0x70),
    }.items():
        wires = [frame(TEXT, WORDS), bad, frame(PING)]
        yield Case(name, [b"".join(wires)], [HELLO], codes=[PROTOCOL_ERROR])
        yield Case(f"{name}, frame by frame", wires, [HELLO], codes=[PROTOCOL_ERROR])
        yield Case(f"{name}, in single bytes", chopped(b"".join(wires)), [HELLO], codes=[PROTOCOL_ERROR])


def opcodes() -> Iterator[Case]:
    for opcode in (*range(3, 8), *range(11, 16)):
        for payload in (b"", b"reserved"):
            name, bad = f"opcode {opcode}{' with a payload' * bool(payload)}", frame(opcode, payload)
            yield Case(name, [bad], codes=[PROTOCOL_ERROR])
            wire = frame(TEXT, WORDS) + bad + frame(PING)
            yield Case(f"{name} after a text", [wire], [HELLO], codes=[PROTOCOL_ERROR])
            yield Case(f"{name} in single bytes", chopped(wire), [HELLO], codes=[PROTOCOL_ERROR])


def fragmentation() -> Iterator[Case]:
    one, two, three, whole = b"fragment1", b"fragment2", b"fragment3", "fragment1fragment2"
    bad = [PROTOCOL_ERROR]
    for name, opcode in (("ping", PING), ("pong", PONG)):
        yield Case(f"{name} in two", fragmented(opcode, one, two), codes=bad)
    between = [*fragmented(TEXT, one, two)[:1], frame(PING, b"between"), *fragmented(TEXT, one, two)[1:]]
    alone, alone_too = frame(CONTINUATION, one), frame(CONTINUATION, one, fin=False)
    orders: list[tuple[str, list[bytes], list[str | bytes], list[bytes], list[int]]] = [
        ("text in two", fragmented(TEXT, one, two), [whole], [], []),
        ("ping between", between, [whole], [b"between"], []),
        ("end of nothing", [alone, frame(TEXT, WORDS)], [], [], bad),
        ("middle of nothing", [alone_too, frame(TEXT, WORDS)], [], [], bad),
        ("middle of nothing after a message", [*fragmented(TEXT, one, two), alone_too], [whole], [], bad),
        ("middle of nothing, twice", [alone_too, *fragmented(TEXT, two, three)] * 2, [], [], bad),
        ("end of nothing, twice", [alone, *fragmented(TEXT, two, three)] * 2, [], [], bad),
        ("message within a message", [frame(TEXT, one, fin=False), frame(TEXT, two)], [], [], bad),
    ]
    for name, wires, messages, pongs, codes in orders:
        yield Case(name, [b"".join(wires)], messages, pongs, codes)
        yield Case(f"{name}, frame by frame", wires, messages, pongs, codes)
        yield Case(f"{name}, in single bytes", chopped(b"".join(wires)), messages, pongs, codes)
    five = fragmented(TEXT, *(b"fragment%d" % number for number in range(1, 6)))
    wires = [*five[:2], frame(PING, b"1"), *five[2:4], frame(PING, b"2"), five[4]]
    message = "".join(f"fragment{number}" for number in range(1, 6))
    yield Case("five with two pings", wires, [message], [b"1", b"2"])
    yield Case("five with two pings at once", [b"".join(wires)], [message], [b"1", b"2"])


def utf8() -> Iterator[Case]:
    text = "Hello-µ@ßöäüàá-UTF-8!!"
    yield Case("empty", [frame(TEXT)], [""])
    yield Case("three empty fragments", fragmented(TEXT, b"", b"", b""), [""])
    yield Case("empty, something, empty", fragmented(TEXT, b"", b"middle", b""), ["middle"])
    yield Case("whole", [frame(TEXT, text.encode())], [text])
    yield Case("cut between characters", fragmented(TEXT, "Hello-µ@ßöä".encode(), "üàá-UTF-8!!".encode()), [text])
    for valid in (text.encode(), KOSME):
        single = fragmented(TEXT, *chopped(valid))
        yield Case(f"fragments of one byte, {len(valid)}", single, [valid.decode()])
    broken = [NOT_UTF8]
    for surrogate, name in ((b"\xed\xa0\x80", "surrogate"), (b"\xf4\x90\x80\x80", "beyond the last")):
        parts = (KOSME, surrogate, b"edited")
        yield Case(f"{name}, whole", [frame(TEXT, b"".join(parts))], codes=broken)
        yield Case(f"{name}, fragments of one byte", fragmented(TEXT, *chopped(b"".join(parts))), codes=broken)
        yield Case(f"{name}, in a separate fragment", fragmented(TEXT, *parts), codes=broken)
        yield Case(f"{name}, in pieces of a frame", chopped(frame(TEXT, b"".join(parts)), 6), codes=broken)
    for valid in VALID:
        yield Case(f"valid {valid.hex()}", [frame(TEXT, valid)], [valid.decode()])
    for invalid in INVALID:
        yield Case(f"invalid {invalid.hex()}", [frame(TEXT, invalid)], codes=broken)


_NO_CHARACTERS = [chr(plane << 16 | last).encode() for plane in range(17) for last in (0xFFFE, 0xFFFF)]
_INCOMPLETE = [
    *(b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80"),
    *(b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf"),
]
_HIGH = (b"\xa0\x80", b"\xad\xbf", b"\xae\x80", b"\xaf\xbf")  # surrogates, behind the byte ed
_LOW = (b"\xb0\x80", b"\xbf\xbf")
# Of Markus Kuhn's test of UTF-8 decoders, as the suite has them.
VALID = [
    *(b"hello$world", b"hello\xc2\xa2world", b"hello\xe2\x82\xacworld", b"hello\xf0\xa4\xad\xa2world", KOSME),
    *(KOSME[:size] for size in (2, 5, 7, 9)),  # prefixes that end with a character
    *(b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"),  # the first of each length
    *(b"\x7f", b"\xdf\xbf"),  # the last; of the other lengths they are no characters, and below
    *(b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd"),  # beside the surrogates, and the replacement character
    *_NO_CHARACTERS,
]
INVALID = [
    *(KOSME[:size] for size in (1, 3, 4, 6, 8, 10)),
    *(b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"),  # of five and six bytes
    *(b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf", b"\xf4\x90\x80\x80"),
    *((b"\x80\xbf" * 3)[:size] for size in range(1, 7)),  # the rest of nothing
    *(b"\xbf", bytes(range(0x80, 0xBF))),
    *(b"".join(bytes((lead, 0x20)) for lead in range(*leads)) for leads in ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7))),
    *(b"\xf8 \xf9 \xfa ", b"\xfc "),
    *_INCOMPLETE,
    b"".join(_INCOMPLETE),
    *(b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"),
    *(b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf"),
    *(b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf8\x87\xbf\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf\xbf"),
    *(b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80", b"\xfc\x80\x80\x80\x80\x80"),
    *(b"\xed" + rest for rest in (*_HIGH, *_LOW, b"\xbe\x80")),
    *(b"\xed" + high + b"\xed" + low for high in _HIGH for low in _LOW),
]  # fmt: skip


def closes() -> Iterator[Case]:
    end = close(NORMAL)
    yield Case("after a message", [frame(TEXT, WORDS) + end], [HELLO], codes=[NORMAL])
    yield Case("twice", [end + frame(CLOSE)], codes=[NORMAL])
    yield Case("ping behind it", [end + frame(PING)], codes=[NORMAL])
    yield Case("text behind it", [end + frame(TEXT, WORDS)], codes=[NORMAL])
    yield Case("amid a message", [frame(TEXT, b"1", fin=False) + end + frame(CONTINUATION, b"2")], codes=[NORMAL])
    large = frame(TEXT, b"*" * MAX_FRAME)
    yield Case("after a large message", [large + end + frame(PING)], ["*" * MAX_FRAME], codes=[NORMAL])
    yield Case("empty", [frame(CLOSE)], codes=[NORMAL, 0])  # with a code or without
    yield Case("of one byte", [frame(CLOSE, b"a")], codes=[PROTOCOL_ERROR])
    yield Case("with a reason", [close(NORMAL, b"Hello World!")], codes=[NORMAL])
    yield Case("with the longest reason", [close(NORMAL, b"*" * 123)], codes=[NORMAL])
    yield Case("with a reason too long", [close(NORMAL, b"*" * 124)], codes=[PROTOCOL_ERROR])
    yield Case("reason not UTF-8", [close(NORMAL, KOSME + b"\xed\xa0\x80edited")], codes=[NOT_UTF8, PROTOCOL_ERROR])
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield Case(f"code {code}", [close(code)], codes=[NORMAL, code])
    for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999):
        yield Case(f"code {code}", [close(code)], codes=[PROTOCOL_ERROR])
    for code in (5000, 65_535):
        yield Case(f"code {code}, of which the RFC says nothing", [close(code)], codes=[NORMAL, code, PROTOCOL_ERROR])


def limits() -> Iterator[Case]:
    for opcode, byte, name in ((TEXT, b"*", "text"), (BINARY, b"\x00", "binary")):
        whole = byte * MAX_FRAME
        largest = whole.decode() if opcode == TEXT else whole
        yield Case(f"largest {name}", [frame(opcode, whole)], [largest])
        for size in (64, 256, 1024, 4096, 16_384, 65_536, MAX_FRAME):
            wires = fragmented(opcode, *chopped(whole, size))
            yield Case(f"largest {name} in fragments of {size}", [b"".join(wires)], [largest])
        for size in (64, 128, 256, 512, 1024, 2048):
            yield Case(f"largest {name} in pieces of {size}", chopped(frame(opcode, whole), size), [largest])
        yield Case(f"{name} one byte larger", [frame(opcode, whole + byte)], codes=[TOO_BIG])
        yield Case(f"{name} larger in fragments", fragmented(opcode, whole, byte), codes=[TOO_BIG])
        for size in (0, 16, 64, 256, 1024, 4096):
            small = byte * size
            message = small.decode() if opcode == TEXT else small
            yield Case(f"200 {name}s of {size}", [frame(opcode, small) * 200], [message] * 200)
    wires = fragmented(TEXT, *chopped(b"*" * 65_536, 1300))
    yield Case("fragments of 1300", wires, ["*" * 65_536])


GROUPS = (framing, pings, reserved_bits, opcodes, fragmentation, utf8, closes, limits)
