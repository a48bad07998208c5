"""Cryptocurrencies: a settled invoice of a BTCPay Server (Greenfield API)."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from typing import Any

import httpx
import structlog
from pydantic import ValidationError

from handlers.wire.errors import Unavailable
from handlers.wire.shapes import Shape
from plugins.subscriptions.payments import PAUSE, TIER_NAME, TRIES
from plugins.subscriptions.prices import Price

log = structlog.get_logger(__name__)

UNKNOWN_INVOICE = "0000MimuDoctor0000"  # no invoice has this id
MAX_RESPONSE = 1 << 20  # bytes; an invoice has some kilobytes


class _Invoice(Shape):
    """The fields of InvoiceData that are read."""

    id: str
    storeId: str  # as BTCPay spells it
    amount: str
    currency: str
    status: str
    metadata: dict[str, Any] | None = None


class BTCPay:
    def __init__(self, url: str, store: str, key: str, prices: Mapping[str, Price], seconds: float) -> None:
        self._url, self._store, self._key = url, store, key
        self._prices, self._seconds = prices, seconds
        self._client: httpx.AsyncClient | None = None

    def form(self, proof: str) -> str | None:
        return proof if re.fullmatch(r"[A-Za-z0-9]{8,64}", proof) else None

    def sells(self, tier: str) -> bool:
        return tier in self._prices

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        headers = {"Authorization": f"token {self._key}", "Accept": "application/json"}
        async with httpx.AsyncClient(headers=headers, timeout=self._seconds / TRIES) as client:
            self._client = client
            yield
        self._client = None

    async def days(self, proof: str, tier: str) -> int | None:
        """Accept a settled invoice of our store with the tier's price. An invoice that was paid too little or too late,
        or marked as invalid, is not settled; an overpaid one still has the price as its amount."""
        price = self._prices[tier]
        answer = await self._invoice(proof)
        if answer is None:
            return None
        try:
            invoice = _Invoice.model_validate_json(answer)
            amount = Decimal(invoice.amount)
        except (ValidationError, ArithmeticError) as error:
            log.error("payment_answer_odd", method="crypto", cause=type(error).__name__)
            raise Unavailable from None
        paid = (
            (invoice.id, invoice.storeId) == (proof, self._store)
            and invoice.status == "Settled"
            and (amount, invoice.currency.upper()) == (price.amount, price.currency)
            and (invoice.metadata or {}).get(TIER_NAME, tier) == tier
        )
        return price.days if paid else None

    async def probe(self) -> int:
        """Request an invoice that does not exist. Returns the status: 404 if our key is accepted. Raises
        Unavailable."""
        try:
            async with asyncio.timeout(self._seconds):
                return (await self._get(UNKNOWN_INVOICE))[0]
        except (httpx.HTTPError, TimeoutError):
            raise Unavailable from None

    async def _invoice(self, proof: str) -> bytes | None:
        cause = ""
        try:
            async with asyncio.timeout(self._seconds):
                for attempt in range(TRIES):
                    await asyncio.sleep(PAUSE * attempt)
                    try:
                        status, answer = await self._get(proof)
                    except httpx.HTTPError as error:
                        cause = type(error).__name__
                        continue
                    if status == 200:
                        return answer
                    if status == 404:
                        return None
                    if status < 500 and status != 429:
                        log.error("payment_provider_refused", method="crypto", status=status)
                        raise Unavailable
                    cause = str(status)
        except TimeoutError:
            cause = "TimeoutError"
        log.warning("payment_provider_away", method="crypto", cause=cause)
        raise Unavailable

    async def _get(self, proof: str) -> tuple[int, bytes]:
        assert self._client is not None, "it is not running"
        url = f"{self._url}/api/v1/stores/{self._store}/invoices/{proof}"
        answer = bytearray()
        async with self._client.stream("GET", url) as response:
            async for part in response.aiter_bytes():
                answer += part
                if len(answer) > MAX_RESPONSE:
                    raise httpx.DecodingError("the response is too large", request=response.request)
        return response.status_code, bytes(answer)
