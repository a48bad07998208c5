"""The frames of a call that the server sends (seed; contract section 6)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from typing_extensions import TypedDict

from models.calls import Call
from plugins.calls.shapes import CallType


class CallFields(TypedDict):
    """The seed's fields of every frame of a call. The id of an erased account is null; a missing payload is an empty
    string, which older clients expect."""

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
    """The callee has answered. Sent to the caller."""

    type: Literal["call_answer"]


class IceCandidate(CallFields):
    type: Literal["ice_candidate"]


class CallHangup(CallFields):
    """The call has ended, or, for ``answered_elsewhere``, goes on at another device of the same user. ``from_user_id``
    is the user who ended it, or the other participant if the server did."""

    type: Literal["call_hangup"]
    reason: str


SENT = (CallOffer, CallAnswer, IceCandidate, CallHangup)


def fields(
    call: Call, from_user_id: UUID | None, to_user_id: UUID | None, encrypted_payload: str | None = None
) -> CallFields:
    """The fields of every frame of a call, for a frame to ``to_user_id``."""
    return {
        "call_id": call.id,
        "from_user_id": from_user_id,
        "to_user_id": to_user_id,
        "call_type": call.call_type,
        "encrypted_payload": encrypted_payload or "",
    }
