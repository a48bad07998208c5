"""What clients send to ``/users`` (contract section 3)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from handlers.shapes import Base64, DisplayName, HttpsUrl, Language, Shape, bounded

MAX_SETTINGS = 16 * 1024  # bytes of JSON


class Privacy(Shape):
    last_seen: Literal["everyone", "contacts", "nobody"] = "everyone"


class KnownSettings(Shape):
    """The settings that the server itself obeys; all others are the client's own."""

    privacy: Privacy = Privacy()


def _obeyed(value: dict[str, Any]) -> dict[str, Any]:
    try:
        KnownSettings.model_validate(value)
    except ValidationError as error:
        [fault, *_] = error.errors()
        raise ValueError(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}") from None
    return value


class SearchQuery(Shape):
    q: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{2,32}$")]


class DeleteMe(Shape):
    password: Annotated[str, StringConstraints(max_length=256)]


class ChangeMe(Shape):
    columns: ClassVar[frozenset[str]] = frozenset(("display_name", "bio", "avatar_url", "language", "settings"))

    display_name: DisplayName | None = None
    bio: Annotated[str, StringConstraints(max_length=500)] | None = None
    avatar_url: HttpsUrl | None = None
    language: Language | None = None
    settings: Annotated[dict[str, Any], bounded(MAX_SETTINGS), AfterValidator(_obeyed)] | None = None
    # Contract section 7: who knows it may write to the user's sealed inbox. Signal's is 16 bytes.
    sealed_access_key: Annotated[Base64, Field(min_length=16, max_length=32)] | None = None
