"""Client frames: what a type of frame that clients send is answered with, declared beside its function.

The fields of the ack are the type that the function returns, so mypy checks what it makes. The document shows them as
`x-replies`, and the tests check every ack and every error that any socket receives by the frame that it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

from handlers.wire import errors
from handlers.wire.errors import ApiError
from handlers.wire.frames import Ack
from handlers.wire.shapes import Shape

# What every frame may be refused with, for any reason that the house knows.
REFUSED = (errors.InvalidRequest, errors.RateLimited, errors.InternalError, errors.Unavailable)


@dataclass(frozen=True, slots=True)
class ClientFrame:
    """A type of frame from clients. ``ack`` are the fields of its ack beside the id: a TypedDict, None for no more, or
    `Ack` where the function doesn't say. ``refuses`` are its refusals beside those of every frame, ``limits`` settings
    of rates with what they are counted by."""

    shape: type[Shape]
    ack: type | None
    refuses: tuple[type[ApiError], ...] = ()
    limits: tuple[tuple[str, str], ...] = ()


def ack_fields(handle: Callable[..., Any]) -> type | None:
    """The type of an ack's fields, from what a function returns, at once or later."""
    found = set(_returned(get_type_hints(handle).get("return", Any)))
    if found == {NoneType}:
        return None
    [kind, *more] = found
    return kind if is_typeddict(kind) and not more else Ack


def _returned(kind: Any) -> list[type]:
    """The types that remain of an annotation without unions and what is awaited."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return [inner for part in get_args(kind) for inner in _returned(part)]
    if origin is not None and not issubclass(origin, Mapping):  # Awaitable, Future
        return _returned(get_args(kind)[-1])
    return [NoneType if kind is None else kind]
