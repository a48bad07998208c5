"""Errors in response to call frames (contract section 6)."""

from __future__ import annotations

from uuid import UUID

from handlers.wire.errors import ApiError, Conflict, Forbidden, InvalidRequest, NotFound
from models import calls
from models.database import Database


class NotParticipant(Forbidden):
    code, message = "not_participant", "Only the participants of a call can do this."


class CallNotFound(NotFound):
    code, message = "call_not_found", "There is no such call."


class InvalidState(Conflict):
    code, message = "invalid_state", "The state of the call does not allow this."


class CallIdConflict(Conflict):
    code, message = "call_id_conflict", "This call_id belongs to another call."


class UserNotFound(NotFound):
    code, message = "user_not_found", "There is no such user."


class CannotCallSelf(InvalidRequest):
    code, message = "cannot_call_self", "You can't call yourself."


class Glare(Conflict):
    code, message = "glare", "This user is already calling you."


async def explain_refusal(db: Database, call_id: UUID, user_id: UUID) -> ApiError:
    """The error that explains why a statement about a call changed nothing for this user."""
    call = await calls.get(db, call_id)
    if call is None:
        return CallNotFound()
    if not call.concerns(user_id):
        # A callee who must not see a silent call gets the same error as for a call that does not exist.
        return CallNotFound() if user_id == call.callee_id else NotParticipant()
    return InvalidState(fields={"call_id": str(call_id), "status": call.status})
