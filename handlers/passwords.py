"""Passwords: Argon2id in two background threads, so that no login stalls the loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Annotated, Any, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from pydantic import AfterValidator, Field

from config.threads import processors, step_back
from config.values import Rate
from handlers.limits.fair_queue import FairQueue
from handlers.limits.rates import CLIENT_KEY, Limits
from handlers.wire.errors import RateLimited, Unavailable

T = TypeVar("T")

THREADS = 2  # more would take the loop's processor: p99 of frames 0.9-4 ms with two, 16-85 ms unbounded
FAILURES = Rate(10, 900)  # failed tries an account, before the next ones are delayed
DELAY = 2.0  # seconds that they are
QUEUE = 32  # beyond it a login waits longer than a client does
EACH = 4  # of them for one address, or the /64 of an IPv6 one: it can't keep all others out
# OWASP's second choice of parameters: 19 MiB, two passes, one lane.
ARGON2: dict[str, Any] = {"time_cost": 2, "memory_cost": 19 * 1024, "parallelism": 1}
# A client that is refused at once asks again at once. So a refusal waits for so many seconds, of so many at a time.
REFUSE_AFTER, REFUSED = 1.0, 500
SHORTEST, LONGEST = 8, 256  # characters of a password, in NFC


def normalized(password: str) -> str:
    """The form of a password that is hashed: NFC, so that every keyboard types the same one (NIST SP 800-63B)."""
    return unicodedata.normalize("NFC", password)


def _length(password: str) -> int:
    # NFC makes a text at most three times as short: of a longer one the length need not be known.
    return len(normalized(password)) if len(password) <= LONGEST * 3 else len(password)


def _new(password: str) -> str:
    if not SHORTEST <= _length(password) <= LONGEST:
        raise ValueError(f"must have {SHORTEST} to {LONGEST} characters")
    return password


def _check_length(password: str) -> str:
    if _length(password) > LONGEST:
        raise ValueError(f"must have at most {LONGEST} characters")
    return password


# Both keep the text as it was sent: older hashes, and the proof of a reset, are of that.
NewPassword = Annotated[
    str,
    AfterValidator(_new),
    Field(
        description="Counted in NFC, the form that is hashed: composed and decomposed letters are the same password.",
        json_schema_extra={"minLength": SHORTEST, "maxLength": LONGEST},
    ),
]
KnownPassword = Annotated[str, AfterValidator(_check_length), Field(json_schema_extra={"maxLength": LONGEST})]


class Match(Enum):
    """The form of a password that a hash is of."""

    NORMALIZED = "nfc"
    AS_SENT = "as_sent"  # hashed before passwords were normalized


class Passwords:
    """Hashes and checks passwords; raises Unavailable when more wait than can be served soon, of all or of this client.
    Client addresses are served in turn.

    Tries on an account that many failed on are delayed, never refused: a lock would let anyone lock anyone out.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._hasher = PasswordHasher(**ARGON2)
        self._free = min(THREADS, processors())
        self._threads = ThreadPoolExecutor(self._free, "argon2", initializer=step_back)
        self._queue: FairQueue[object, asyncio.Future[None]] = FairQueue(1, QUEUE, QUEUE, EACH)
        self._running = 0
        self._refused = 0  # that wait for their refusal
        # What an unknown account's password is checked against, so that it takes as long as a known one's.
        self._nobody = self._hasher.hash(os.urandom(16).hex())

    @property
    def waiting(self) -> int:
        """Hashes that wait or are being made."""
        return len(self._queue) + self._running

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._hasher.hash(normalized(password)))

    async def check(self, account: str, password_hash: str | None, password: str) -> Match | None:
        """Compare a password with a hash: in NFC, then as it was sent. None if neither is the hash's.

        A hash of None stands for an account that doesn't exist. ``account`` is what failures are counted under. Which
        forms are tried depends on the password alone, so that the time doesn't tell whether there is an account.
        """
        try:
            await self._limits.spend("password-failures", account, FAILURES, cost=0)
        except RateLimited:
            await asyncio.sleep(DELAY)
        stored = password_hash or self._nobody

        forms = {normalized(password): Match.NORMALIZED}
        forms.setdefault(password, Match.AS_SENT)

        def verify() -> Match | None:
            return next((match for form, match in forms.items() if self._verify(stored, form)), None)

        match = await self._run(verify)
        if password_hash is None:
            match = None
        if match is None:
            with contextlib.suppress(RateLimited):  # it is delayed already
                await self._limits.spend("password-failures", account, FAILURES)
        return match

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    def outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(password_hash)

    async def _run(self, work: Callable[[], T]) -> T:
        await self._turn()
        self._running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._running -= 1
            self._pass_on()

    async def _turn(self) -> None:
        """Wait for a free thread. Raises Unavailable."""
        if self._free:
            self._free -= 1
            return
        # With limits off, everybody counts for themselves.
        client = CLIENT_KEY.get()() if self._limits.on else object()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._queue.put(client, 1, turn):
            if self._refused < REFUSED:
                self._refused += 1
                try:
                    await asyncio.sleep(REFUSE_AFTER)
                finally:
                    self._refused -= 1
            raise Unavailable
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was ours already
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give a thread to the next in turn."""
        while self._queue:
            [turn] = self._queue.take()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
