"""Vouchers as payments: a valid code is the payment."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext

from models import vouchers
from models.database import Database
from models.subscriptions import proof_hash


class Voucher:
    def __init__(self, db: Database) -> None:
        self._db = db

    def form(self, proof: str) -> str | None:
        return vouchers.read(proof)

    def sells(self, tier: str) -> bool:
        return True

    async def days(self, proof: str, tier: str) -> int | None:
        """Return how many days the code buys. The statement that stores the purchase uses it up, not this."""
        return await vouchers.days(self._db, proof_hash("voucher", proof), tier)

    def running(self) -> AbstractAsyncContextManager[object]:
        return nullcontext()
