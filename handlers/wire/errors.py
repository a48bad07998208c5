"""Errors for clients: one class hierarchy, for HTTP and the socket (contract section 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from pydantic import ValidationError


@dataclass(frozen=True, slots=True)
class Fault:
    """One invalid field: ``field`` is its path (``one_time_prekeys[3].key_id``), ``issue`` describes the error."""

    field: str
    issue: str


class ApiError(Exception):
    """A refusal with its HTTP ``status``, a stable ``code`` and a sentence for people.

    ``body_fields`` are the types of its additional fields over HTTP, ``sends`` the headers that it has.
    """

    status = 400
    code = "invalid_request"
    message = "The request is not valid."
    body_fields: ClassVar[Mapping[str, type]] = MappingProxyType({})
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
        """Return the JSON body, without the request id, which the handler adds."""
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

    status, code, message = 403, "forbidden", "You are not allowed to do this."


class PridMismatch(Forbidden):
    """`X-PrID` does not match the user of the access token."""

    code, message = "prid_mismatch", "X-PrID does not match the user of the access token."


class AccountSuspended(Forbidden):
    """An operator keeps the account from signing in. Only those who have its password, token or keys see this."""

    code, message = "account_suspended", "This account is suspended. Please contact the operator of this server."


class NotFound(ApiError):
    """No such route, user or thing; also a chat in which you take no part, and whatever is in it."""

    status, code, message = 404, "not_found", "Not found."


class MethodNotAllowed(ApiError):
    """The URL does not support this method."""

    status, code, message = 405, "method_not_allowed", "This URL does not support this method."
    sends = ("Allow",)


class Conflict(ApiError):
    """It contradicts what is stored, or exceeds how much of it there may be: each route says by what."""

    status, code, message = 409, "conflict", "This conflicts with the present state."


class TooLarge(ApiError):
    """A body over 256 KiB, or longer than the file was to be."""

    status, code, message = 413, "too_large", "The body is too large for this URL."


class UnsupportedMediaType(ApiError):
    """A body that is not JSON by its ``Content-Type``; a piece of an upload that is not
    ``application/offset+octet-stream``."""

    status, code, message = 415, "unsupported_media_type", "The body must be application/json."


class ClientOutdated(ApiError):
    """`X-Client-Version` is below `MIN_CLIENT_VERSION`."""

    status, code, message = (
        426,
        "client_outdated",
        "This version of the app is too old for this server. Please update the app.",
    )


class ProofRequired(ApiError):
    """A password reset without proof."""

    status, code, message = (
        428,
        "proof_required",
        "Sign the challenge with your identity or signing key, and send the request again.",
    )
    body_fields = MappingProxyType({"challenge": str, "expires_in": int})


class RateLimited(ApiError):
    """A rate limit, a budget, or the account's share of the server's time is used up for now."""

    status, code, message = 429, "rate_limited", "Too many requests; try again later."
    sends = ("Retry-After",)

    def __init__(self, retry_after: float) -> None:
        super().__init__(headers={"Retry-After": str(max(1, -int(-retry_after // 1)))})


class InternalError(ApiError):
    """A bug of the server, which is recorded under the request's id."""

    status, code, message = 500, "internal_error", "Something went wrong on the server. The error has been logged."


class Unavailable(ApiError):
    """PostgreSQL, the storage of files or a payment provider is away; too many passwords wait to be hashed, or messages
    to be stored; or the client has not taken the answers that it asked for before."""

    status, code, message = 503, "unavailable", "The server can't do this right now; try again shortly."
    sends = ("Retry-After",)

    def __init__(self, retry_after: int = 2) -> None:
        super().__init__(headers={"Retry-After": str(retry_after)})


MAX_FAULTS = 1024  # in one answer; as many as the longest list that a client may send has items


def invalid(error: ValidationError) -> InvalidRequest:
    """Return an error with all invalid fields of a body, query or frame. It never contains their values."""
    faults = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False)[:MAX_FAULTS]:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        # Pydantic would name the class of the shape, which means nothing to clients.
        issue = "Input should be an object" if fault["type"] == "model_type" else fault["msg"]
        faults.append(Fault(path or "body", issue.removeprefix("Value error, ")))
    return InvalidRequest("Some fields are not valid.", details=faults)


def refusal(error: BaseException, outages: tuple[type[BaseException], ...]) -> ApiError | None:
    """Return the refusal that a client receives for ``error``. Returns None if it is our own bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return invalid(error)
    if isinstance(error, outages):
        return Unavailable()
    return None
