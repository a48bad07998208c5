"""What clients send to ``/users`` (contract section 3)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, StringConstraints, ValidationError

from handlers.shapes import DisplayName, Language, Shape, encode

MAX_SETTINGS = 16 * 1024  # bytes of JSON


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(encode(value)) > MAX_SETTINGS:
        raise ValueError(f"larger than {MAX_SETTINGS} bytes")
    return value


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
    avatar_url: Annotated[str, StringConstraints(max_length=2048)] | None = None
    language: Language | None = None
    settings: Annotated[dict[str, Any], AfterValidator(_small), AfterValidator(_obeyed)] | None = None
