"""The frames of a call that clients send (seed; contract section 6), and calls in the history. Only the server sets
``from_user_id``, so no shape accepts it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
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
    """A payload that can't be passed on is left out: a hangup must hang up, whatever is in it."""
    try:
        return check(value)
    except ValidationError:
        return None


CallType = Literal["audio", "video"]
CallStatus = Literal["ringing", "accepted", "rejected", "missed", "ended", "failed"]
Reason = Literal["hangup", "declined", "busy", "cancelled", "failed"]


def _known_reason(value: object) -> object:
    return value if isinstance(value, str) and value in get_args(Reason) else "hangup"


class Offer(Shape):
    """Call a user: all their sockets ring, for 60 seconds.

    The offer and your candidates wait for the rest of the ring: a socket that the callee opens in time gets the offer,
    then the candidates in order, each once. An offer with a new id ends your earlier ring with the same callee, and an
    answered call between the two of you, with `superseded`: a phone that crashed must be able to call again.

    With `glare` the other side is calling you already: `call_id` names their call."""

    call_id: Annotated[Id, Field(description="A new one for each call.")]
    to_user_id: Id
    call_type: CallType = "audio"
    encrypted_payload: Payload


class Answer(Shape):
    """Answer a call while it rings, as the callee; the first of your devices wins.

    The answer and your candidates wait for sockets that the caller opens, for 60 seconds or until the caller's first
    `call_heartbeat`."""

    call_id: Id
    encrypted_payload: Payload


class Candidate(Shape):
    """Send an ICE candidate to the other side, while the call lives. Either side may.

    While it rings, the payloads of the offer and of the caller's candidates have at most 256 KiB in all."""

    call_id: Id
    encrypted_payload: CandidatePayload


class Hangup(Shape):
    """End a call. Either side may.

    Only a bad ``call_id`` is refused: any other reason counts as ``hangup``, and a payload that is no base64 of at most
    32 KiB as none."""

    call_id: Id
    reason: Annotated[Reason, BeforeValidator(_known_reason)] = "hangup"
    encrypted_payload: Annotated[Payload | None, WrapValidator(_or_none)] = None


class Heartbeat(Shape):
    """Keep an answered call alive, every `heartbeat_seconds`. Both sides do."""

    call_id: Id


class CallSession(TypedDict):
    """``peer`` is null when that account is gone, ``duration_seconds`` unless the call was answered and has ended."""

    id: UUID
    caller_id: UUID | None
    callee_id: UUID | None
    call_type: CallType
    status: CallStatus
    started_at: datetime
    accepted_at: datetime | None
    ended_at: datetime | None
    end_reason: str | None
    last_heartbeat: datetime | None
    created_at: datetime
    direction: Literal["outgoing", "incoming"]
    peer: Person | None
    duration_seconds: int | None
