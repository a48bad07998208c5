"""Findings: what an examination of an installation says, part by part, and what is to be done about it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

# weak: it works, and something will go wrong with it some day. skipped: it could not be asked, or there is nothing.
State = Literal["good", "weak", "wrong", "skipped"]

# Seconds by which clocks may differ. More than the first is a machine that nobody keeps in time; by the second tokens
# look as if they came from the future, and S3 and Apple are not far from refusing what we sign.
CLOCK_WEAK, CLOCK_WRONG = 3.0, 60.0


class Finding(NamedTuple):
    """What became of one part. Neither sentence may bear a secret: both are shown, and sent to who helps."""

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
    """Raised where an examination can find no more; the text says why, after the word "because"."""


@dataclass(frozen=True, slots=True)
class Examination:
    """One thing that is looked at. ``look`` yields findings as they come, any number for a part. It may raise
    StopExamination: then the parts without a finding are shown as skipped."""

    name: str
    title: str
    parts: tuple[str, ...]
    look: Callable[[], AsyncIterator[Finding]]


def clock(part: str, ahead: float, whose: str) -> Finding:
    """What it means that another clock is ``ahead`` of ours, in seconds, or behind it."""
    off = abs(ahead)
    if off < CLOCK_WEAK:
        return good(part, f"The clocks of {whose} and of this machine agree.")
    says = f"The clock of {whose} is {off:.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's."
    return (weak if off < CLOCK_WRONG else wrong)(
        part, says, "Keep both machines in time with NTP (chrony, timesyncd)."
    )
