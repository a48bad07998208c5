"""Breakers: what has failed several times in a row is left alone for a while, longer each time."""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from dataclasses import dataclass

CALM = 5  # failures in a row that may be chance
LONGEST = 60.0  # seconds that a place is left alone, unless it asks for more
ASKED = 600.0  # seconds that it may ask for; after them one push tries whether it is so still
PLACES = 10_000  # remembered; there are a few providers, and as many push services as users care to name
_RANDOM = random.SystemRandom()  # peers see these delays: Python's own generator would give its state away


@dataclass(slots=True)
class _Place:
    failures: int = 0
    until: float = 0.0  # monotonic


class Breaker:
    """Knows which places fail. A job for one that is left alone waits without having been tried."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, _Place] = OrderedDict()

    def closed(self, place: str) -> float:
        """The seconds for which nothing is to be sent there; 0 when it may be tried. Spread, for all that waits would
        else come back at once."""
        known = self._places.get(place)
        left = known.until - time.monotonic() if known else 0.0
        return left * _RANDOM.uniform(1.0, 1.5) if left > 0 else 0.0

    def worked(self, place: str) -> None:
        self._places.pop(place, None)

    def failed(self, place: str, after: float | None) -> None:
        """It serves nobody just now; ``after`` are the seconds it asked for."""
        known = self._places.setdefault(place, _Place())
        self._places.move_to_end(place)
        known.failures += 1
        alone = min(after or 0.0, ASKED)
        if known.failures >= CALM:
            alone = max(alone, min(2.0 ** (known.failures - CALM), LONGEST))
        known.until = max(known.until, time.monotonic() + alone)
        if len(self._places) > PLACES:
            self._places.popitem(last=False)
