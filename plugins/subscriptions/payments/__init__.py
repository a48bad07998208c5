"""Payments: ways to prove that a tier was paid for, each behind the same three questions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

TRIES = 2  # the second one is for a connection that the provider closed meanwhile, or a server of theirs that died
PAUSE = 0.2  # seconds between them

# In a payment's own metadata, by whoever makes it: which tier was meant. It may be absent: then the amount tells.
TIER_NAME = "mimu_tier"


class Provider(Protocol):
    """Somebody who knows whether a payment was made. A proof is what names a payment to them."""

    def form(self, proof: str) -> str | None:
        """The one form of a proof, by which it is known again; None for what can be none."""

    def sells(self, tier: str) -> bool: ...

    async def days(self, proof: str, tier: str) -> int | None:
        """How many days of a tier the payment buys; None when it was not made, or not for that. Raises Unavailable when
        nobody can tell just now."""

    def running(self) -> AbstractAsyncContextManager[object]:
        """Around the time in which it is asked."""


Providers = Mapping[str, Provider]  # by payment_method
