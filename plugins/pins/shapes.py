"""What clients send and get of pins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field
from typing_extensions import TypedDict

from handlers.wire.answers import Message
from handlers.wire.shapes import Shape

MAX_PINS = 50  # of a chat


class PinsQuery(Shape):
    before_seq: Annotated[int, Field(ge=1, le=2**62, description="Only pins whose `seq` is smaller.")] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PINS)] = MAX_PINS


class Pin(TypedDict):
    """A pinned message. ``seq`` is that of its event `message_pinned`. ``pinned_by`` is null for a deleted account."""

    seq: int
    pinned_by: UUID | None
    pinned_at: datetime
    message: Message
