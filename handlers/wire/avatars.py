"""Avatars: the addresses that a user or a chat may show a picture from (contract section 3)."""

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
    """The file of ours that an avatar_url names."""
    match = _FILE.fullmatch(avatar_url)
    return UUID(match[1]) if match else None


def _avatar(value: str) -> str:
    if not value.startswith("/"):
        return plain_https(value)
    file_id = file_of(value)
    if file_id is None:
        raise ValueError("must be an https address, or a file of yours: /files/{file_id}")
    return f"/files/{file_id}/content"


# A file of ours is kept as the path that its bytes are at, for clients to put behind the address of their server.
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
    """The hosts of ``AVATAR_ALLOWED_HOSTS``; none allows every host."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)

    def judge(self, avatar_url: str) -> UUID | None:
        """The file of ours that it names, which the caller has to judge. Raises InvalidRequest for a host that is not
        allowed."""
        file_id = file_of(avatar_url)
        if file_id is None and self._hosts and urlsplit(avatar_url).hostname not in self._hosts:
            raise refused("that host is not allowed")
        return file_id


def refused(issue: str) -> InvalidRequest:
    """What is wrong with an avatar_url, as the fault of its field."""
    return InvalidRequest("Some fields are not valid.", details=[Fault("avatar_url", issue)])
