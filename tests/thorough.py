"""How long the tests look for what only chance finds: ``make test`` looks briefly, ``make test-thorough`` at length."""

from __future__ import annotations

import os
from datetime import timedelta

from hypothesis import settings

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def rounds(short: int, *, thorough: int) -> int:
    """How often something is tried."""
    return thorough if THOROUGH else short


def configure_hypothesis() -> None:
    """Set what holds for each property that says nothing else. Its deadline is for regular expressions that never end,
    and not for a machine that runs other tests as well."""
    settings.register_profile("mimu", max_examples=rounds(100, thorough=2_000), deadline=timedelta(seconds=2))
    settings.load_profile("mimu")
