"""Passwords: Argon2id in two background threads, so that logins do not block the event loop."""

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

from config.threads import processors, run_only_when_idle
from config.values import Rate
from handlers.limits.fair_queue import FairQueue
from handlers.limits.rates import CLIENT_KEY, Limits
from handlers.wire.errors import RateLimited, Unavailable

T = TypeVar("T")

THREADS = 2  # more would take processor time from the loop: p99 of frames 0.9-4 ms with two, 16-85 ms unbounded
FAILURE_RATE = Rate(10, 900)  # failed attempts on one account before further ones are delayed
DELAY_SECONDS = 2.0  # of an attempt after too many failures
MAX_QUEUED = 32  # beyond this a login would wait longer than clients do
MAX_QUEUED_EACH = 4  # for one address (IPv6: one /64), so that no client can fill the queue
# OWASP's second choice of parameters: 19 MiB, two passes, one lane.
ARGON2: dict[str, Any] = {"time_cost": 2, "memory_cost": 19 * 1024, "parallelism": 1}
# A client that is rejected at once retries at once. So up to MAX_REJECTIONS rejections wait REJECT_AFTER seconds each.
REJECT_AFTER, MAX_REJECTIONS = 1.0, 500
MIN_LENGTH, MAX_LENGTH = 8, 256  # characters of a password, in NFC


def normalize(password: str) -> str:
    """Return a password in NFC, the form that is hashed, so that all keyboards give the same one (NIST SP 800-63B)."""
    return unicodedata.normalize("NFC", password)


def _length(password: str) -> int:
    # NFC makes a text at most three times shorter, so longer texts need no normalizing.
    return len(normalize(password)) if len(password) <= MAX_LENGTH * 3 else len(password)


def _check_new(password: str) -> str:
    if not MIN_LENGTH <= _length(password) <= MAX_LENGTH:
        raise ValueError(f"must have {MIN_LENGTH} to {MAX_LENGTH} characters")
    return password


def _check_length(password: str) -> str:
    if _length(password) > MAX_LENGTH:
        raise ValueError(f"must have at most {MAX_LENGTH} characters")
    return password


# Both keep the text as sent: older hashes, and the proof of a reset, were made from that form.
NewPassword = Annotated[
    str,
    AfterValidator(_check_new),
    Field(
        description="Counted in NFC, the form that is hashed: composed and decomposed letters are the same password.",
        json_schema_extra={"minLength": MIN_LENGTH, "maxLength": MAX_LENGTH},
    ),
]
CurrentPassword = Annotated[str, AfterValidator(_check_length), Field(json_schema_extra={"maxLength": MAX_LENGTH})]


class Match(Enum):
    """The form of a password that a hash was made from."""

    NORMALIZED = "nfc"
    AS_SENT = "as_sent"  # hashed before passwords were normalized


class Passwords:
    """Hashes and checks passwords. Raises Unavailable when too many are queued, in all or for this client address.
    Client addresses are served in turn.

    After many failures, attempts on an account are delayed and never rejected: with a lock, anyone could lock
    others out.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._hasher = PasswordHasher(**ARGON2)
        self._free = min(THREADS, processors())
        self._threads = ThreadPoolExecutor(self._free, "argon2", initializer=run_only_when_idle)
        self._queue: FairQueue[object, asyncio.Future[None]] = FairQueue(1, MAX_QUEUED, MAX_QUEUED, MAX_QUEUED_EACH)
        self._running = 0
        self._rejections = 0  # requests whose rejection is delayed now
        # Unknown accounts are checked against this hash, so that they take as long as existing ones.
        self._dummy_hash = self._hasher.hash(os.urandom(16).hex())

    @property
    def waiting(self) -> int:
        """The number of hashes that are queued or computed now."""
        return len(self._queue) + self._running

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def hash(self, password: str) -> str:
        return await self._run(lambda: self._hasher.hash(normalize(password)))

    async def check(self, account: str, password_hash: str | None, password: str) -> Match | None:
        """Compare a password with a hash, in NFC and then as sent. Returns None if neither form matches.

        A ``password_hash`` of None stands for an account that doesn't exist. Failures are counted by ``account``.
        Which forms are tried depends only on the password, so that the time does not reveal whether the account
        exists.
        """
        try:
            await self._limits.spend("password-failures", account, FAILURE_RATE, cost=0)
        except RateLimited:
            await asyncio.sleep(DELAY_SECONDS)
        stored = password_hash or self._dummy_hash

        forms = {normalize(password): Match.NORMALIZED}
        forms.setdefault(password, Match.AS_SENT)

        def verify() -> Match | None:
            return next((match for form, match in forms.items() if self._verify(stored, form)), None)

        match = await self._run(verify)
        if password_hash is None:
            match = None
        if match is None:
            with contextlib.suppress(RateLimited):  # attempts are already delayed
                await self._limits.spend("password-failures", account, FAILURE_RATE)
        return match

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    def needs_rehash(self, password_hash: str) -> bool:
        """True if the hash was made with parameters other than the present ones."""
        return self._hasher.check_needs_rehash(password_hash)

    async def _run(self, work: Callable[[], T]) -> T:
        await self._wait_for_thread()
        self._running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._running -= 1
            self._release_thread()

    async def _wait_for_thread(self) -> None:
        """Wait for a free thread. Raises Unavailable."""
        if self._free:
            self._free -= 1
            return
        # With limits off, each request counts as a client.
        client = CLIENT_KEY.get()() if self._limits.on else object()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._queue.put(client, 1, turn):
            if self._rejections < MAX_REJECTIONS:
                self._rejections += 1
                try:
                    await asyncio.sleep(REJECT_AFTER)
                finally:
                    self._rejections -= 1
            raise Unavailable
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the thread was already ours
                self._release_thread()
            raise

    def _release_thread(self) -> None:
        """Pass a thread to the next in the queue."""
        while self._queue:
            [turn] = self._queue.take()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
