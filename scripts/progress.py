"""A line of progress on standard error, for who watches a script that takes long; nothing where nobody does."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

OFTEN = 0.1  # seconds between two lines: faster than anybody reads


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """What shows a text in place of the one before; the line is empty again at the end."""
    shown = 0.0

    def tell(text: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > OFTEN:
            shown = now
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        yield tell
    finally:
        print(end="\r\033[K", file=sys.stderr, flush=True)
