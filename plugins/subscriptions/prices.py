"""Prices: an amount of money for a number of days, also in the units of the payment providers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator

MAX_DAYS = 3660
_FORM = re.compile(r"(\d{1,9}(?:\.\d{1,3})?) ([A-Z]{3}) ?/ ?(?:(\d{1,4}) )?days?", re.ASCII)

# https://docs.stripe.com/currencies: an amount is in the currency's smallest unit, which for most is a hundredth.
# Stripe counts ISK and UGX in hundredths, too.
_WHOLE = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF"
_THOUSANDTHS = "BHD JOD KWD OMR TND"


@dataclass(frozen=True, slots=True)
class Price:
    """The form in settings is ``4.99 EUR/30 days``."""

    amount: Decimal
    currency: str
    days: int

    @classmethod
    def parse(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        match = _FORM.fullmatch(value.strip())
        if not match:
            raise ValueError("expected a price such as 4.99 EUR/30 days")
        price = cls(Decimal(match[1]), match[2], int(match[3] or 1))
        if price.amount <= 0 or not 1 <= price.days <= MAX_DAYS:
            raise ValueError(f"a price must be more than 0, for 1 to {MAX_DAYS} days")
        if price.amount != price.amount.quantize(Decimal(1).scaleb(-price.digits)):
            raise ValueError(f"{price.currency} has {price.digits} digits after the decimal point")
        return price

    @property
    def digits(self) -> int:
        """How many digits the currency has after the decimal point."""
        return 0 if self.currency in _WHOLE else 3 if self.currency in _THOUSANDTHS else 2

    @property
    def units(self) -> int:
        """The amount in the currency's smallest unit."""
        return int(self.amount.scaleb(self.digits))

    def shown(self) -> dict[str, Any]:
        return {"amount": f"{self.amount:.{self.digits}f}", "currency": self.currency, "days": self.days}


PriceTag = Annotated[Price, BeforeValidator(Price.parse)]
