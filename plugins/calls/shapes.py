"""The frames of a call (seed; contract section 6). ``from_user_id`` is the server's to set, so no shape takes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints

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


class Offer(Shape):
    call_id: Id
    to_user_id: Id
    call_type: Literal["audio", "video"] = "audio"
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
