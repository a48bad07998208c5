"""Refusals: the one family of errors that HTTP and the socket translate for clients (contract section 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from pydantic import ValidationError


@dataclass(frozen=True, slots=True)
class Fault:
    """One bad field: ``field`` is its path (``one_time_prekeys[3].key_id``), ``issue`` says what is wrong."""

    field: str
    issue: str


class ApiError(Exception):
    """A refusal with its HTTP ``status``, stable ``code`` and a sentence for people.

    ``bears`` are the types of fields that its body has over HTTP beside those of all, ``sends`` the headers that come
    with it.
    """

    status = 400
    code = "invalid_request"
    message = "The request is not valid."
    bears: ClassVar[Mapping[str, type]] = MappingProxyType({})
    sends: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> None:
        self.message = message or self.message
        self.details = tuple(details)
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})
        super().__init__(self.code)

    def body(self) -> dict[str, object]:
        """The JSON body, without the request id that only the handler knows."""
        body: dict[str, object] = {"error": self.code, "message": self.message, **self.fields}
        if self.details:
            body["details"] = [{"field": fault.field, "issue": fault.issue} for fault in self.details]
        return body


class InvalidRequest(ApiError):
    """Malformed JSON; a field that is missing, of a wrong type or out of range, all of them named in ``details``; an
    unknown type of frame."""


class Unauthorized(ApiError):
    """No token, none of this server's, or of a session that has ended; an unknown refresh token; a key that opens no
    sealed inbox of that user."""

    status, code, message = 401, "unauthorized", "A valid access token is needed."
    sends = ("WWW-Authenticate",)

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class TokenExpired(Unauthorized):
    """An access token that was good: refresh it."""

    code, message = "token_expired", "The access token has expired."


class InvalidCredentials(Unauthorized):
    """No such user, or not their password: one answer for both."""

    code, message = "invalid_credentials", "The public id or the password is wrong."


class Forbidden(ApiError):
    """Your role in a chat, or a block, does not allow it; a file that you may only read; a signed address that is not
    valid or has expired; a WebSocket from a foreign origin; `auth` with another user's token."""

    status, code, message = 403, "forbidden", "You may not do this."


class PridMismatch(Forbidden):
    """`X-PrID` names another user than the token."""

    code, message = "prid_mismatch", "X-PrID names another user than the token."


class AccountSuspended(Forbidden):
    """An operator keeps the account from signing in. Only those who have its password, token or keys see this."""

    code, message = "account_suspended", "This account is suspended; ask whoever runs this server."


class NotFound(ApiError):
    """No such route, user or thing; also a chat in which you take no part, and whatever is in it."""

    status, code, message = 404, "not_found", "There is no such thing."


class MethodNotAllowed(ApiError):
    """The address does not take that method."""

    status, code, message = 405, "method_not_allowed", "This address does not take that method."
    sends = ("Allow",)


class Conflict(ApiError):
    """It contradicts what is stored, or exceeds how much of it there may be: each route says by what."""

    status, code, message = 409, "conflict", "This conflicts with what is already there."


class TooLarge(ApiError):
    """A body over 256 KiB, or longer than the file was to be."""

    status, code, message = 413, "too_large", "The body is larger than this address takes."


class UnsupportedMediaType(ApiError):
    """A body that is not JSON by its ``Content-Type``; a piece of an upload that is not
    ``application/offset+octet-stream``."""

    status, code, message = 415, "unsupported_media_type", "The body must be application/json."


class ClientOutdated(ApiError):
    """`X-Client-Version` is below `MIN_CLIENT_VERSION`."""

    status, code, message = 426, "client_outdated", "This version of the app is too old for the server."


class ProofRequired(ApiError):
    """A password reset without proof."""

    status, code, message = 428, "proof_required", "Sign the challenge with your identity or signing key and repeat."
    bears = MappingProxyType({"challenge": str, "expires_in": int})


class RateLimited(ApiError):
    """A rate limit, a budget, or the account's share of the server's time is used up for now."""

    status, code, message = 429, "rate_limited", "Too many requests; try again later."
    sends = ("Retry-After",)

    def __init__(self, retry_after: float) -> None:
        super().__init__(headers={"Retry-After": str(max(1, -int(-retry_after // 1)))})


class InternalError(ApiError):
    """A bug of the server, which is recorded under the request's id."""

    status, code, message = 500, "internal_error", "The server made a mistake; it has been recorded."


class Unavailable(ApiError):
    """PostgreSQL, the storage of files or a payment provider is away; too many passwords wait to be hashed, or messages
    to be stored; or the client has not taken the answers that it asked for before."""

    status, code, message = 503, "unavailable", "The server can't do this just now; try again shortly."
    sends = ("Retry-After",)

    def __init__(self, retry_after: int = 2) -> None:
        super().__init__(headers={"Retry-After": str(retry_after)})


MAX_FAULTS = 1024  # that an answer names; as many as the longest list that a client may send


def invalid(error: ValidationError) -> InvalidRequest:
    """All the bad fields of one body, query or frame at once; their values are never repeated."""
    faults = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False)[:MAX_FAULTS]:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        # Pydantic would name the class of the shape, which is no client's affair.
        issue = "Input should be an object" if fault["type"] == "model_type" else fault["msg"]
        faults.append(Fault(path or "body", issue.removeprefix("Value error, ")))
    return InvalidRequest("Some fields are not valid.", details=faults)


def refusal(error: BaseException, outages: tuple[type[BaseException], ...]) -> ApiError | None:
    """The refusal that ``error`` means to a client; None when it is our own mistake."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return invalid(error)
    if isinstance(error, outages):
        return Unavailable()
    return None
