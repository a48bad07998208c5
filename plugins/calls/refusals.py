"""What is answered to a call frame that can't be done (contract section 6)."""

from __future__ import annotations

from uuid import UUID

from handlers.wire.errors import ApiError, Conflict, Forbidden, InvalidRequest, NotFound
from models import calls
from models.database import Database


class NotParticipant(Forbidden):
    code, message = "not_participant", "Only the two of a call may do this."


class CallNotFound(NotFound):
    code, message = "call_not_found", "There is no such call."


class InvalidState(Conflict):
    code, message = "invalid_state", "The call is in a state that does not allow this."


class CallIdConflict(Conflict):
    code, message = "call_id_conflict", "This call_id belongs to another call."


class UserNotFound(NotFound):
    code, message = "user_not_found", "There is no such user."


class CannotCallSelf(InvalidRequest):
    code, message = "cannot_call_self", "One can't call oneself."


class Glare(Conflict):
    code, message = "glare", "The other side is calling you already."


async def explain_refusal(db: Database, call_id: UUID, user_id: UUID) -> ApiError:
    """Why the database did not let a user do something to a call."""
    call = await calls.get(db, call_id)
    if call is None:
        return CallNotFound()
    if not call.concerns(user_id):
        # Whom a silent call is kept from gets the same answer as about a call that never was.
        return CallNotFound() if user_id == call.callee_id else NotParticipant()
    return InvalidState(fields={"call_id": str(call_id), "status": call.status})
