"""A fair queue: one line for each key (a sender, an address), served in turn, so that no key can fill it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class _Line(Generic[K, T]):
    """The items of one key with their weights; ``credit`` is the weight that the key may still take in its turn."""

    __slots__ = ("credit", "items", "key", "weight")

    def __init__(self, key: K) -> None:
        self.key = key
        self.items: deque[tuple[int, T]] = deque()
        self.weight = 0
        self.credit = 0


class FairQueue(Generic[K, T]):
    """Serves keys by deficit round robin (Shreedhar and Varghese, 1995): in each turn a key may take ``quantum`` more
    weight, so a key with large items gets no larger share than one with small ones. Items of one key keep their order.

    The queue holds at most ``most`` items and the weight ``most_weight``. One key holds at most ``each`` items, and at
    most half of the free space (Choudhury and Hahne, 1998): the more keys are busy, the less each may hold, and there
    is always space for another key. A key without items may use all the free space.
    """

    def __init__(self, quantum: int, most: int, most_weight: int, each: int | None = None) -> None:
        self._quantum, self._most, self._most_weight = quantum, most, most_weight
        self._each = most if each is None else each
        # While no key has two items, which is the usual case and on the hot path, there are no lines.
        self._lone: dict[K, tuple[int, T]] = {}
        self._lines: dict[K, _Line[K, T]] = {}
        self._turns: deque[_Line[K, T]] = deque()
        self._begun = False  # the first line has received its quantum
        self._count = 0
        self.weight = 0

    def __len__(self) -> int:
        return self._count

    def put(self, key: K, weight: int, item: T) -> bool:
        """Append an item under its key. Returns False if there is no space for it."""
        if not self._lines:
            if key not in self._lone:
                if self._count >= self._most or self.weight + weight > self._most_weight:
                    return False
                self._lone[key] = (weight, item)
                self._count += 1
                self.weight += weight
                return True
            self._line_up()
        line = self._lines.get(key)
        if line is None:
            if self._count >= self._most or self.weight + weight > self._most_weight:
                return False
            line = self._lines[key] = _Line(key)
            self._turns.append(line)
        else:
            held = len(line.items) + 1
            if (
                held > self._each
                or held > (self._most - self._count) >> 1
                or line.weight + weight > (self._most_weight - self.weight) >> 1
            ):
                return False
        line.items.append((weight, item))
        line.weight += weight
        self._count += 1
        self.weight += weight
        return True

    def put_back(self, key: K, weight: int, item: T) -> None:
        """Append an item that was taken before, also beyond the limits."""
        self._line_up()
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(key)
            self._turns.append(line)
        line.items.append((weight, item))
        line.weight += weight
        self._count += 1
        self.weight += weight

    def take(
        self, most: int = 1, most_weight: int | None = None, identity: Callable[[T], Hashable] | None = None
    ) -> list[T]:
        """Remove and return the next items: at most ``most``, and no more weight than ``most_weight`` unless it is a
        single item. Two items of one key with the same ``identity`` are never returned together: the second one, and
        the items behind it, stay for the next call."""
        limit = self.weight if most_weight is None else most_weight
        if self._lone:
            if self._count <= most and self.weight <= limit:
                return self._take_lone()
            self._line_up()
        taken: list[T] = []
        repeated: list[_Line[K, T]] = []
        seen: set[tuple[K, Hashable]] = set()
        turns, weight, full = self._turns, 0, False
        everything = self._count <= most and self.weight <= limit  # then no key takes from another's share
        while turns and not full:
            line = turns[0]
            items = line.items
            if not self._begun:
                line.credit += self._quantum
                self._begun = True
            again = False
            while items:
                size, item = items[0]
                if size > line.credit and not everything:
                    break
                full = len(taken) >= most or (weight + size > limit and bool(taken))
                if full:
                    break
                if identity is not None:
                    number = len(seen)
                    seen.add((line.key, identity(item)))
                    again = len(seen) == number
                    if again:
                        break
                items.popleft()
                line.credit -= size
                line.weight -= size
                weight += size
                taken.append(item)
            if full:
                break  # in the middle of a turn, which continues at the next call
            turns.popleft()
            self._begun = False
            if not items:
                del self._lines[line.key]
            elif again:
                line.credit = 0
                repeated.append(line)
            else:
                turns.append(line)
        turns.extend(repeated)
        self._count -= len(taken)
        self.weight -= weight
        return taken

    def _take_lone(self) -> list[T]:
        """Remove and return all items, where no key has two."""
        taken = [item for _, item in self._lone.values()]
        self._lone.clear()
        self._count = self.weight = 0
        return taken

    def _line_up(self) -> None:
        """Give each key its line, in the order in which they came."""
        for key, (weight, item) in self._lone.items():
            line = self._lines[key] = _Line(key)
            line.items.append((weight, item))
            line.weight = weight
            self._turns.append(line)
        self._lone.clear()
