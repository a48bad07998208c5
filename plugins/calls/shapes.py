"""The frames of a call (seed; contract section 6), and what is told of it afterwards. ``from_user_id`` is the server's
to set, so no shape takes it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, StringConstraints
from typing_extensions import TypedDict

from handlers.answers import Person
from handlers.shapes import Id, Shape


def _standard(value: str) -> str:
    """Standard, padded base64: what answers bear (contract section 1). The bytes stay opaque."""
    if "-" in value or "_" in value:
        value = value.replace("-", "+").replace("_", "/")
    value = value.rstrip("=")
    if len(value) % 4 == 1:
        raise ValueError("not valid base64")
    return value + "=" * (-len(value) % 4)


# A frame is at most 128 KiB, so its payload needs no bound of its own.
Payload = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/_-]+={0,2}$"), AfterValidator(_standard)]


CallType = Literal["audio", "video"]


class Offer(Shape):
    call_id: Id
    to_user_id: Id
    call_type: CallType = "audio"
    encrypted_payload: Payload


class Answer(Shape):
    call_id: Id
    encrypted_payload: Payload


class Candidate(Shape):
    call_id: Id
    encrypted_payload: Payload


class Hangup(Shape):
    call_id: Id
    reason: Literal["hangup", "declined", "busy", "cancelled", "failed"] = "hangup"
    encrypted_payload: Payload | None = None


class Heartbeat(Shape):
    call_id: Id


class CallSession(TypedDict):
    """``peer`` is null when that account is gone, ``duration_seconds`` unless the call was answered and has ended."""

    id: UUID
    caller_id: UUID | None
    callee_id: UUID | None
    call_type: CallType
    status: Literal["ringing", "accepted", "rejected", "missed", "ended", "failed"]
    started_at: datetime
    accepted_at: datetime | None
    ended_at: datetime | None
    end_reason: str | None
    last_heartbeat: datetime | None
    created_at: datetime
    direction: Literal["outgoing", "incoming"]
    peer: Person | None
    duration_seconds: int | None
