"""The frames of a call that the server sends (seed; contract section 6)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from typing_extensions import TypedDict

from models.calls import Call
from plugins.calls.shapes import CallType


class CallFields(TypedDict):
    """The seed's fields of every frame of a call. An account that is gone is null; a missing payload is an empty text,
    since older clients expect one."""

    call_id: UUID
    from_user_id: UUID | None
    to_user_id: UUID | None
    call_type: CallType
    encrypted_payload: str


class CallOffer(CallFields):
    """A call rings. Stop ringing at ``expires_at``."""

    type: Literal["call_offer"]
    expires_at: datetime


class CallAnswer(CallFields):
    """The callee has answered. To the caller."""

    type: Literal["call_answer"]


class IceCandidate(CallFields):
    type: Literal["ice_candidate"]


class CallHangup(CallFields):
    """The call is over, or, for ``answered_elsewhere``, goes on at another device of the same user. ``from_user_id`` is
    who ended it, or the other side when the server did."""

    type: Literal["call_hangup"]
    reason: str


SENT = (CallOffer, CallAnswer, IceCandidate, CallHangup)


def fields(
    call: Call, from_user_id: UUID | None, to_user_id: UUID | None, encrypted_payload: str | None = None
) -> CallFields:
    """The fields of every frame of a call, for the frame that ``to_user_id`` receives."""
    return {
        "call_id": call.id,
        "from_user_id": from_user_id,
        "to_user_id": to_user_id,
        "call_type": call.call_type,
        "encrypted_payload": encrypted_payload or "",
    }
