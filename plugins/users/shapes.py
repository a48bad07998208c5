"""What clients send to ``/users`` (contract section 3)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, StringConstraints

from handlers.shapes import DisplayName, Language, Shape, encode

MAX_SETTINGS = 16 * 1024  # bytes of JSON


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(encode(value)) > MAX_SETTINGS:
        raise ValueError(f"larger than {MAX_SETTINGS} bytes")
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
    settings: Annotated[dict[str, Any], AfterValidator(_small)] | None = None
