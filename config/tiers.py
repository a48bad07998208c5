"""Tiers: the limits that a subscription raises, for every feature that has such limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import ByteSize, Field
from typing_extensions import TypedDict

from config.settings import Section

TierName = Literal["free", "premium", "ultra"]
FREE: Final = "free"  # users without a subscription
SOLD = ("premium", "ultra")  # the lesser one first, as the database orders them
MIB, GIB = 1 << 20, 1 << 30


class Allowance(TypedDict):
    """The largest size of one file, and of all files of a user, in bytes; as clients receive it."""

    file_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Tier:
    """The largest size of one file, and of all files of a user, in bytes."""

    file_bytes: int
    total_bytes: int

    def allowance(self) -> Allowance:
        return {"file_bytes": self.file_bytes, "total_bytes": self.total_bytes}


class TierSettings(Section):
    """The base of the settings of every feature that needs the tiers. ``models.subscriptions.tier`` reads a user's
    tier; read it each time, since a subscription may have ended a moment ago."""

    tier_free_file_bytes: ByteSize = Field(ByteSize(50 * MIB), ge=1, description="Largest file without a subscription.")
    tier_free_total_bytes: ByteSize = Field(
        ByteSize(1 * GIB), ge=0, description="All files of a user without a subscription, in total."
    )
    tier_premium_file_bytes: ByteSize = Field(ByteSize(500 * MIB), ge=1, description="Largest file with premium.")
    tier_premium_total_bytes: ByteSize = Field(
        ByteSize(20 * GIB), ge=0, description="All files of a user with premium, in total."
    )
    tier_ultra_file_bytes: ByteSize = Field(ByteSize(2 * GIB), ge=1, description="Largest file with ultra.")
    tier_ultra_total_bytes: ByteSize = Field(
        ByteSize(100 * GIB), ge=0, description="All files of a user with ultra, in total."
    )

    @property
    def tiers(self) -> dict[str, Tier]:
        return {
            FREE: Tier(self.tier_free_file_bytes, self.tier_free_total_bytes),
            "premium": Tier(self.tier_premium_file_bytes, self.tier_premium_total_bytes),
            "ultra": Tier(self.tier_ultra_file_bytes, self.tier_ultra_total_bytes),
        }
