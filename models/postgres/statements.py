"""Statements: their operation, caller and duration, for metrics and traces; never their values."""

from __future__ import annotations

import functools
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from config.logs import STATEMENT
from models.postgres.outages import cause

PACKAGES = ("models.", "plugins.", "handlers.", "scripts.", "server")
INTERNAL = (__name__, "models.database", "models.batch", "models.postgres.orm")  # never named as a caller
OPERATIONS = frozenset(("SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN", "COMMIT", "ROLLBACK"))

_WORD = re.compile(r"\s*(?:--[^\n]*\s+)*\(?(\w+)")
# Except the UPDATE of a lock and of ON CONFLICT.
_WRITES = re.compile(r"\b(INSERT INTO|(?<!FOR )(?<!KEY )(?<!DO )UPDATE|DELETE FROM)\b")


@functools.lru_cache(maxsize=2048)
def operation(sql: str) -> str:
    """Return a statement's operation, a word of OPERATIONS or ``OTHER``; after WITH that of its first write."""
    match = _WORD.match(sql)
    word = match[1].upper() if match else ""
    if word == "WITH":
        writes = _WRITES.search(sql)
        word = writes[1].partition(" ")[0] if writes else "SELECT"
    return word if word in OPERATIONS else "OTHER"


def caller() -> str:
    """Return the name of our function that runs a statement now, such as ``models.calls.ring``."""
    frame = sys._getframe(1)
    while True:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PACKAGES) and module not in INTERNAL:
            return f"{module}.{frame.f_code.co_qualname}"
        if frame.f_back is None:
            return "unknown"
        frame = frame.f_back


def _nothing(*_: object) -> None:
    """The default callback."""


Span = Callable[[str, str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks for statements: ``acquired`` gets the seconds until there was a connection, ``answered`` a statement's
    operation and its seconds, ``failed`` the cause of an error. ``span`` is a context around each statement, and gets
    its operation and its caller."""

    acquired: Callable[[float], None] = _nothing
    answered: Callable[[str, float], None] = _nothing
    failed: Callable[[str], None] = _nothing
    span: Span | None = None


class Watched:
    """A context that measures one statement. Its exceptions get a note that names the caller, for the log."""

    __slots__ = ("_began", "_span", "_sql", "_watch")

    def __init__(self, watch: Watch, sql: str) -> None:
        self._watch, self._sql = watch, sql
        self._span: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        span = self._watch.span
        if span is not None:
            self._span = span(operation(self._sql), caller())
            self._span.__enter__()
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.answered(operation(self._sql), time.perf_counter() - self._began)
        if isinstance(error, Exception):
            error.add_note(STATEMENT + caller())
            self._watch.failed(cause(error))
        if self._span is not None:
            self._span.__exit__(kind, error, trace)
