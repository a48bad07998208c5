"""Tiers: one group of settings that several features read."""

from __future__ import annotations

import pytest

import server
from config.settings import SettingsError
from config.tiers import Tier, TierSettings
from tests.running import Place

PLACE = Place("postgresql://nowhere/mimu", "redis://nowhere")


def test_the_contract_s_limits_unless_set_otherwise() -> None:
    mib, gib = 1 << 20, 1 << 30
    assert TierSettings().tiers == {
        "free": Tier(50 * mib, gib),
        "premium": Tier(500 * mib, 20 * gib),
        "ultra": Tier(2 * gib, 100 * gib),
    }
    given = server.configure({**PLACE.environment, "TIER_FREE_FILE_BYTES": "3 MiB", "TIER_FREE_TOTAL_BYTES": "7"})
    for section in given.sections.values():
        if isinstance(section, TierSettings):
            assert section.tiers["free"] == Tier(3 * mib, 7)


def test_a_fault_is_reported_once_though_two_sections_read_the_setting() -> None:
    with pytest.raises(SettingsError) as refused:
        server.configure({**PLACE.environment, "TIER_ULTRA_FILE_BYTES": "much"})
    [fault] = refused.value.faults
    assert fault.startswith("TIER_ULTRA_FILE_BYTES: ")
