"""Payments: the ways to pay for a tier, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

TRIES = 2  # the second for a connection that the provider has closed, or a server of theirs that died
PAUSE = 0.2  # seconds between them

# Key in a payment's metadata, set by its creator: the tier that is paid for. If absent, the amount decides.
TIER_NAME = "mimu_tier"


class Provider(Protocol):
    """A service that confirms payments. A proof identifies a payment there."""

    def form(self, proof: str) -> str | None:
        """Return the canonical form of a proof; None if it is malformed."""

    def sells(self, tier: str) -> bool: ...

    async def days(self, proof: str, tier: str) -> int | None:
        """Return how many days of a tier the payment buys; None if it was not made, or not for that tier. Raises
        Unavailable if the provider does not respond."""

    def running(self) -> AbstractAsyncContextManager[object]:
        """Keep the provider open until the block ends."""


Providers = Mapping[str, Provider]  # by payment_method
