"""Traces: what a request, a frame or a commit consisted of. This class records nothing; config/spans.py exports it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, TypeVar

H = TypeVar("H", bound=Callable[..., Any])
EndRequest = Callable[[int], None]  # takes the status of an answer; 0 if the client had closed the connection
ReportOutcome = Callable[[str, int], None]  # takes the outcome of a push, and the provider's status


def _ignore(*_: object) -> None:
    """Record no outcome."""


class Traces:
    """The interface, which records nothing and costs nothing; ``config/spans.py`` implements it."""

    on = False

    def request(self, method: str, route: str | None, request_id: str, carrier: Mapping[str, str]) -> EndRequest | None:
        """Begin a request, to which everything in this task belongs from now on. Returns a function to call at its end.

        ``carrier`` has the headers of a trusted proxy, else nothing. Tornado has rejected unknown methods before.
        """
        return None

    def trace_frames(self, kind: str, handle: H) -> H:
        """Return the function that handles frames of a type, wrapped so that each call is recorded."""
        return handle

    def statement(self, operation: str, function: str) -> AbstractContextManager[None]:
        """Record a statement that one of our functions runs."""
        return contextlib.nullcontext()

    def batch(self, contexts: Sequence[Context]) -> AbstractContextManager[None]:
        """Record a commit of messages that were sent in these contexts."""
        return contextlib.nullcontext()

    def push(self, provider: str, kind: str) -> AbstractContextManager[ReportOutcome]:
        """Record a push to a provider; yields a function that takes its outcome."""
        return contextlib.nullcontext(_ignore)
