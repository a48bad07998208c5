"""What clients send to the endpoints of contacts (contract section 3), and what they get."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import StringConstraints
from typing_extensions import TypedDict

from handlers.wire.shapes import Hex256, Shape

Method = Literal["qr_code", "voice", "manual"]


class Verification(Shape):
    verified_fingerprint: Hex256
    method: Method
    notes: Annotated[str, StringConstraints(max_length=500)] | None = None


class Verified(TypedDict):
    """``trust_level`` is ``verified`` for ``manual``, ``trusted`` for the other methods."""

    id: UUID
    verified_user_id: UUID
    public_id: str
    method: Method
    verified_fingerprint: Hex256
    trust_level: Literal["verified", "trusted"]
    notes: str | None
    verified_at: datetime


class Blocked(TypedDict):
    user_id: UUID
    public_id: str
    display_name: str | None
    blocked_at: datetime
