"""A line of progress of a long script, on standard error; only if that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

INTERVAL = 0.1  # seconds between two texts; people read no faster


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that replaces the line's text; clear the line at the end."""
    shown_at = 0.0

    def show(text: str) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at > INTERVAL:
            shown_at = now
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        yield show
    finally:
        print(end="\r\033[K", file=sys.stderr, flush=True)
