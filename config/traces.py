"""Traces: what a request, a frame or a commit consisted of. This class records nothing; config/spans.py exports it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, TypeVar

H = TypeVar("H", bound=Callable[..., Any])
EndRequest = Callable[[int], None]  # gets the status of an answer; 0 when nobody was left to take it
ReportOutcome = Callable[[str, int], None]  # gets the outcome of a push, and the provider's status


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


class Traces:
    """Tells nobody, and costs nothing; what it is asked by the house is in ``config/spans.py``."""

    on = False

    def request(self, method: str, route: str | None, request_id: str, carrier: Mapping[str, str]) -> EndRequest | None:
        """A request begins, and is what goes on in this task from now on; Tornado has refused methods that a client
        made up. ``carrier`` are the headers of a proxy that is trusted, else nothing. What is returned is to be called
        at the end."""
        return None

    def trace_frames(self, kind: str, handle: H) -> H:
        """The function that handles frames of a type, with whatever must be around it."""
        return handle

    def statement(self, operation: str, function: str) -> AbstractContextManager[None]:
        """A statement that a function of ours runs."""
        return contextlib.nullcontext()

    def batch(self, contexts: Sequence[Context]) -> AbstractContextManager[None]:
        """A commit for all that was put in these contexts."""
        return contextlib.nullcontext()

    def push(self, provider: str, kind: str) -> AbstractContextManager[ReportOutcome]:
        """A push on its way to a provider, which is told its outcome."""
        return contextlib.nullcontext(_ignore)
