"""What clients send to ``/users`` (contract section 3)."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

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


def _plain_https(value: str) -> str:
    """An address that a client may load without betraying anything but that it does."""
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("not an address") from None
    if parts.scheme != "https" or not host or not value.isascii() or any(c.isspace() for c in value):
        raise ValueError("must be an https address")
    if "@" in parts.netloc:
        raise ValueError("must not bear user information")
    if _is_address(host):
        raise ValueError("must name a host, not an address")
    return value


def _is_address(host: str) -> bool:
    """Whether browsers would take the host for an IP literal; also ``127.1`` and ``0x7f000001``."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        return last.isdecimal() or last.startswith("0x")
    return True


class SearchQuery(Shape):
    q: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{2,32}$")]


class DeleteMe(Shape):
    password: Annotated[str, StringConstraints(max_length=256)]


class ChangeMe(Shape):
    columns: ClassVar[frozenset[str]] = frozenset(("display_name", "bio", "avatar_url", "language", "settings"))

    display_name: DisplayName | None = None
    bio: Annotated[str, StringConstraints(max_length=500)] | None = None
    avatar_url: Annotated[str, StringConstraints(max_length=2048), AfterValidator(_plain_https)] | None = None
    language: Language | None = None
    settings: Annotated[dict[str, Any], AfterValidator(_small), AfterValidator(_obeyed)] | None = None
