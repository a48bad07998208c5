"""Quiet hours: when they are, over midnight and over a change of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from plugins.push.preferences import quiet_until
from plugins.push.providers.outcomes import retry_after

BERLIN = {"start": "22:00", "end": "07:00", "time_zone": "Europe/Berlin"}
SIESTA = {"start": "13:00", "end": "15:30", "time_zone": "America/Mexico_City"}
NEVER = {"start": "08:00", "end": "08:00", "time_zone": "UTC"}
ELSEWHERE = {"start": "00:00", "end": "23:59", "time_zone": "Middle_Earth/Shire"}


@pytest.mark.parametrize(
    ("hours", "now", "until"),
    [
        (BERLIN, "2026-01-10T20:59:59", None),
        (BERLIN, "2026-01-10T21:00:00", "2026-01-11T06:00:00"),
        (BERLIN, "2026-01-10T23:30:00", "2026-01-11T06:00:00"),
        (BERLIN, "2026-01-11T05:59:59", "2026-01-11T06:00:00"),
        (BERLIN, "2026-01-11T06:00:00", None),
        (BERLIN, "2026-03-28T22:00:00", "2026-03-29T05:00:00"),  # a night that is an hour shorter
        (BERLIN, "2026-10-24T21:00:00", "2026-10-25T06:00:00"),  # and one that is longer
        (SIESTA, "2026-01-10T19:00:00", "2026-01-10T21:30:00"),
        (SIESTA, "2026-01-10T21:30:00", None),
        (NEVER, "2026-01-10T08:00:00", None),
        (ELSEWHERE, "2026-01-10T08:00:00", None),
    ],
)
def test_quiet_hours(hours: dict[str, str], now: str, until: str | None) -> None:
    found = quiet_until(hours, datetime.fromisoformat(now).replace(tzinfo=UTC))
    expected = datetime.fromisoformat(until).replace(tzinfo=UTC) if until else None
    assert (found and found.astimezone(UTC)) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("120", 120), ("999999999", 86_400), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("-1", None), ("", None)]
    + [(rubbish, None) for rubbish in ("soon", "1e9", "²", "9" * 5000, "\xff")],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}) == seconds
