"""Findings of an examination of an installation: for each part, what it found and what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

# weak: it works now but will cause trouble. skipped: it could not be checked, or does not apply.
State = Literal["good", "weak", "wrong", "skipped"]

# Seconds by which clocks may differ. Beyond the first the machine does not synchronize its clock; beyond the second
# tokens seem to come from the future, and S3 and Apple will soon reject our signatures.
CLOCK_WEAK, CLOCK_WRONG = 3.0, 60.0


class Finding(NamedTuple):
    """The result for one part. Its texts must not contain a secret: operators send them to others for help."""

    part: str
    state: State
    says: str
    do: str = ""


def good(part: str, says: str) -> Finding:
    return Finding(part, "good", says)


def weak(part: str, says: str, do: str) -> Finding:
    return Finding(part, "weak", says, do)


def wrong(part: str, says: str, do: str) -> Finding:
    return Finding(part, "wrong", says, do)


def skipped(part: str, because: str) -> Finding:
    return Finding(part, "skipped", because)


class StopExamination(Exception):
    """Raised when an examination can't go on; the text is the reason, to be shown after "because"."""


@dataclass(frozen=True, slots=True)
class Examination:
    """A set of checks. ``look`` yields findings one by one, any number for each part. It may raise StopExamination; the
    parts without a finding are then skipped."""

    name: str
    title: str
    parts: tuple[str, ...]
    look: Callable[[], AsyncIterator[Finding]]


def clock(part: str, ahead: float, whose: str) -> Finding:
    """Judge a clock that is ``ahead`` of ours by so many seconds (negative: behind)."""
    off = abs(ahead)
    if off < CLOCK_WEAK:
        return good(part, f"The clocks of {whose} and of this machine agree.")
    says = f"The clock of {whose} is {off:.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's."
    return (weak if off < CLOCK_WRONG else wrong)(part, says, "Synchronize both machines with NTP (chrony, timesyncd).")
