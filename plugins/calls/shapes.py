"""The frames of a call that clients send (seed; contract section 6), and calls in the history. Only the server sets
``from_user_id``, so no shape accepts it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from typing_extensions import TypedDict

from handlers.wire.answers import Person
from handlers.wire.shapes import Id, Shape


def _standard(value: str) -> str:
    """Convert base64 to the standard, padded form of responses (contract section 1). The bytes stay opaque."""
    if "-" in value or "_" in value:
        value = value.replace("-", "+").replace("_", "/")
    value = value.rstrip("=")
    if len(value) % 4 == 1:
        raise ValueError("not valid base64")
    return value + "=" * (-len(value) % 4)


PAYLOAD = 32 * 1024  # characters of base64 in an offer, an answer or a hangup; a session description has 3 to 10 KiB
CANDIDATE_PAYLOAD = 4 * 1024  # a candidate has some 300 bytes; a call may have 300 of these
_BASE64 = r"^[A-Za-z0-9+/_-]+={0,2}$"

Payload = Annotated[str, StringConstraints(pattern=_BASE64, max_length=PAYLOAD), AfterValidator(_standard)]
CandidatePayload = Annotated[
    str, StringConstraints(pattern=_BASE64, max_length=CANDIDATE_PAYLOAD), AfterValidator(_standard)
]


def _or_none(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Drop a payload that is not valid: a hangup must always hang up."""
    try:
        return check(value)
    except ValidationError:
        return None


CallType = Literal["audio", "video"]
Reason = Literal["hangup", "declined", "busy", "cancelled", "failed"]


def _known_reason(value: object) -> object:
    return value if isinstance(value, str) and value in get_args(Reason) else "hangup"


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
    encrypted_payload: CandidatePayload


class Hangup(Shape):
    """Rejected only for its ``call_id``: an unknown reason counts as ``hangup``, an invalid payload as none."""

    call_id: Id
    reason: Annotated[Reason, BeforeValidator(_known_reason)] = "hangup"
    encrypted_payload: Annotated[Payload | None, WrapValidator(_or_none)] = None


class Heartbeat(Shape):
    call_id: Id


class CallSession(TypedDict):
    """``peer`` is null if that account is gone, ``duration_seconds`` unless the call was answered and has ended."""

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
