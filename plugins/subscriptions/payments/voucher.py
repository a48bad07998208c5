"""Vouchers as payments: whoever types a good code has paid."""

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
        """What the code is good for. It is used up by the statement that enters the purchase, not here."""
        return await vouchers.days(self._db, proof_hash("voucher", proof), tier)

    def running(self) -> AbstractAsyncContextManager[object]:
        return nullcontext()
