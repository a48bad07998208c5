"""The frames of a call that the server sends, and what it acknowledges those of clients with (seed; contract
section 6)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NotRequired
from uuid import UUID

from typing_extensions import TypedDict

from models.calls import Call
from plugins.calls.shapes import CallStatus, CallType


class CallFields(TypedDict):
    """The seed's fields of every frame of a call. An account that is gone is null; a missing payload is an empty text,
    since older clients expect one."""

    call_id: UUID
    from_user_id: UUID | None
    to_user_id: UUID | None
    call_type: CallType
    encrypted_payload: str


class Rings(TypedDict):
    """``delivered`` tells whether the callee has a socket anywhere; it is null when their presence is hidden from you.
    For an offer that the server has taken before, ``repeated`` stands instead, and the offer is not sent again."""

    call_id: UUID
    status: CallStatus
    expires_at: datetime
    delivered: NotRequired[bool | None]
    repeated: NotRequired[Literal[True]]


class Answered(TypedDict):
    """``delivered`` tells whether the caller has a socket anywhere; it is null when their presence is hidden from you.
    For the same answer again ``repeated`` is true, and the answer is not sent again."""

    call_id: UUID
    status: CallStatus
    delivered: bool | None
    repeated: NotRequired[Literal[True]]


class HungUp(TypedDict):
    """How the call ended. If it was over already, nothing changes."""

    call_id: UUID
    status: CallStatus
    end_reason: str | None


class Beaten(TypedDict):
    """The call is alive."""

    call_id: UUID


class CallOffer(CallFields):
    """A call rings. Stop ringing at ``expires_at``."""

    type: Literal["call_offer"]
    expires_at: datetime


class CallAnswer(CallFields):
    """The callee has answered. The caller gets it."""

    type: Literal["call_answer"]


class IceCandidate(CallFields):
    """An ICE candidate of the other side."""

    type: Literal["ice_candidate"]


class CallHangup(CallFields):
    """The call is over, or, for ``answered_elsewhere``, goes on at another device of the same user. Every socket of
    both users gets it, but the one that ended the call.

    ``from_user_id`` is the user who ended it, or the other side if the server did; null if that account is deleted.
    ``reason`` is the call's ``end_reason``, but ``answered_elsewhere`` and ``declined_elsewhere`` for the callee's
    other sockets after one of them answered or declined, and ``connection_lost`` instead of ``heartbeat_lost``."""

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
