"""Circuit breakers: pause pushes to a destination that failed several times in a row, for longer each time."""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from dataclasses import dataclass

MIN_FAILURES = 5  # failures in a row before a pause; fewer may be chance
MAX_PAUSE = 60.0  # seconds of a pause, unless the destination asks for more
MAX_RETRY_AFTER = 600.0  # seconds that it may ask for; then one push checks if it still fails
MAX_PLACES = 10_000  # destinations remembered: a few providers, and any number of push services that users name
_RANDOM = random.SystemRandom()  # peers see these delays: Python's own generator would give its state away


@dataclass(slots=True)
class _Failures:
    count: int = 0
    until: float = 0.0  # monotonic


class Breaker:
    """Counts failures by destination. A job for a paused one waits without being tried."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, _Failures] = OrderedDict()

    def pause(self, place: str) -> float:
        """Return the seconds to wait before sending there; 0 when it may be tried now. Random up to half more, so that
        the waiting jobs don't all come back at once."""
        failures = self._places.get(place)
        left = failures.until - time.monotonic() if failures else 0.0
        return left * _RANDOM.uniform(1.0, 1.5) if left > 0 else 0.0

    def succeeded(self, place: str) -> None:
        self._places.pop(place, None)

    def failed(self, place: str, after: float | None) -> None:
        """Count a failure of the destination as a whole; ``after`` is the pause in seconds that it asked for."""
        failures = self._places.setdefault(place, _Failures())
        self._places.move_to_end(place)
        failures.count += 1
        pause = min(after or 0.0, MAX_RETRY_AFTER)
        if failures.count >= MIN_FAILURES:
            pause = max(pause, min(2.0 ** (failures.count - MIN_FAILURES), MAX_PAUSE))
        failures.until = max(failures.until, time.monotonic() + pause)
        if len(self._places) > MAX_PLACES:
            self._places.popitem(last=False)
