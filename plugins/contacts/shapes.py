"""What clients send to the endpoints of contacts (contract section 3)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from handlers.shapes import Hex256, Shape


class Verification(Shape):
    verified_fingerprint: Hex256
    method: Literal["qr_code", "voice", "manual"]
    notes: Annotated[str, StringConstraints(max_length=500)] | None = None
