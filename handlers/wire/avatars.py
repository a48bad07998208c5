"""Avatars: the URLs that a user or a chat may use as a picture (contract section 3)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints

from handlers.wire.errors import Fault, InvalidRequest
from handlers.wire.shapes import HTTPS, plain_https

_HEX = "[0-9a-fA-F]"
_FILE = re.compile(rf"/files/({_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}})(?:/content)?")


def file_of(avatar_url: str) -> UUID | None:
    """Return the id of the file on this server that an avatar_url names, if it does."""
    match = _FILE.fullmatch(avatar_url)
    return UUID(match[1]) if match else None


def _avatar(value: str) -> str:
    if not value.startswith("/"):
        return plain_https(value)
    file_id = file_of(value)
    if file_id is None:
        raise ValueError("must be an https URL, or one of your files: /files/{file_id}")
    return f"/files/{file_id}/content"


# A file on this server is stored as the path of its content, which clients append to the URL of their server.
AvatarUrl = Annotated[
    str,
    StringConstraints(max_length=2048),
    AfterValidator(_avatar),
    Field(
        description="https, a host that is a name (`AVATAR_ALLOWED_HOSTS` may narrow it), no user information; or"
        " `/files/{file_id}`, complete and your own, which is shown as `/files/{file_id}/content`.",
        json_schema_extra={"pattern": f"{HTTPS}|^{_FILE.pattern}$"},
    ),
]


class AvatarHosts:
    """The hosts of ``AVATAR_ALLOWED_HOSTS``; an empty list allows every host."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)

    def check(self, avatar_url: str) -> UUID | None:
        """Return the id of the file on this server that it names, which the caller must check. Raises InvalidRequest
        if the host is not allowed."""
        file_id = file_of(avatar_url)
        if file_id is None and self._hosts and urlsplit(avatar_url).hostname not in self._hosts:
            raise avatar_fault("this host is not allowed")
        return file_id


def avatar_fault(issue: str) -> InvalidRequest:
    """Return the error for an invalid avatar_url."""
    return InvalidRequest("Some fields are not valid.", details=[Fault("avatar_url", issue)])
