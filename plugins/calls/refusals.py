"""Errors in response to call frames (contract section 6)."""

from __future__ import annotations

from types import MappingProxyType
from uuid import UUID

from handlers.wire.errors import ApiError, Conflict, Forbidden, InvalidRequest, NotFound
from models import calls
from models.database import Database


class NotParticipant(Forbidden):
    """A call of others."""

    code, message = "not_participant", "Only the participants of a call can do this."


class CallNotFound(NotFound):
    """No call has that ``call_id``."""

    code, message = "call_not_found", "There is no such call."


class InvalidState(Conflict):
    """The call is in a state that does not allow this; ``call_id`` and ``status`` say which."""

    code, message = "invalid_state", "The state of the call does not allow this."
    body_fields = MappingProxyType({"call_id": str, "status": str})


class CallIdConflict(Conflict):
    """The ``call_id`` belongs to another call."""

    code, message = "call_id_conflict", "This call_id belongs to another call."


class UserNotFound(NotFound):
    """An offer to a user who does not exist."""

    code, message = "user_not_found", "There is no such user."


class CannotCallSelf(InvalidRequest):
    """An offer to yourself."""

    code, message = "cannot_call_self", "You can't call yourself."


class Glare(Conflict):
    """The other side is calling already; ``call_id`` says by which call."""

    code, message = "glare", "This user is already calling you."
    body_fields = MappingProxyType({"call_id": str})


OF_A_CALL = (CallNotFound, NotParticipant, InvalidState)  # what explain_refusal returns


async def explain_refusal(db: Database, call_id: UUID, user_id: UUID) -> ApiError:
    """The error that explains why a statement about a call changed nothing for this user."""
    call = await calls.get(db, call_id)
    if call is None:
        return CallNotFound()
    if not call.concerns(user_id):
        # A callee who must not see a silent call gets the same error as for a call that does not exist.
        return CallNotFound() if user_id == call.callee_id else NotParticipant()
    return InvalidState(fields={"call_id": str(call_id), "status": call.status})
