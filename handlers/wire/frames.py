"""Server frames: what the server sends over ``/ws``, each a type that a feature declares in its ``Plugin``.

A frame is built as a value of its type, so mypy checks its fields. The same types make the reference for clients, and
the tests check every frame that any socket receives against them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NotRequired, get_args, get_type_hints
from uuid import UUID

from pydantic import ConfigDict
from typing_extensions import TypedDict

from handlers.wire.shapes import IdText

Frame = Mapping[str, Any]  # what goes out: a server frame, or an event of a chat
AckFields = Mapping[str, object] | None  # what the ack of a client's frame has beside its id


class Ready(TypedDict):
    """The first frame on a socket. ``heartbeat_seconds`` is the interval of `call_heartbeat`. Another ``epoch`` than
    before means that the server went back in time."""

    type: Literal["ready"]
    user_id: IdText
    session_id: IdText
    server_time: str
    heartbeat_seconds: int
    epoch: str


class Ack(TypedDict):
    """The answer to a frame with that ``id``. Which fields it has beside that depends on the frame (`x-replies`)."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    type: Literal["ack"]
    id: str


class TokenExpiring(TypedDict):
    """The token ends in ``seconds``, 60 when this is sent. Send `auth`, or the socket is closed with 4401."""

    type: Literal["token_expiring"]
    seconds: int


class BadField(TypedDict):
    """A field of a frame, by its path (``user_ids[3]``), and what is wrong with it."""

    field: str
    issue: str


class ErrorFrame(TypedDict):
    """The refusal of a frame. ``id`` is that of the frame, if it had one; ``retry_after`` is in seconds, for
    `rate_limited` and `unavailable`."""

    type: Literal["error"]
    id: NotRequired[str]
    code: str
    message: str
    details: NotRequired[list[BadField]]
    retry_after: NotRequired[int]
    call_id: NotRequired[str]
    status: NotRequired[str]


BORNE = frozenset(("call_id", "status"))  # what only some refusals of frames have; listed in their ``body_fields``


class AccountChanged(TypedDict):
    """One of the user's own devices changed how the user sees a chat, or deleted a direct chat. Fetch the chat again;
    404 means that it is gone. More values of ``what`` will come; a client ignores those that it doesn't know."""

    type: Literal["account_changed"]
    what: Literal["chat"]
    chat_id: UUID


def chat_changed(chat_id: UUID) -> AccountChanged:
    """The frame for a user's sockets after one of their devices changed their view of a chat."""
    return {"type": "account_changed", "what": "chat", "chat_id": chat_id}


@functools.cache
def kinds(frame: type) -> tuple[str, ...]:
    """The values of ``type`` that a frame may have."""
    return get_args(get_type_hints(frame)["type"])


def by_kind(frames: Iterable[type]) -> dict[str, type]:
    """Frames by the values of their ``type``."""
    return {kind: frame for frame in frames for kind in kinds(frame)}


SENT = (Ready, Ack, ErrorFrame, TokenExpiring, AccountChanged)  # by the server, whatever its features
