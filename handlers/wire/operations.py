"""Operations: what a method of an endpoint takes and answers, said once beside it, for the code and for the document.

    @operation(
        {201: Posted, 200: Posted}, refuses=(Forbidden, NotFound), limits={"rate_limit_messages": "user"}, cost=POSTS
    )
    async def post(self, chat_id: UUID, body: Post) -> None:
        \"\"\"Post a message. ...\"\"\"

A parameter called ``body`` or ``query`` is what the request bears, read as the shape that it is annotated with; one
that has a default keeps it where there is no body. All others are the parts of the path; one annotated UUID is given as
one. The docstring is what the document says of it. What the house itself refuses stands at ``ApiHandler.refuses``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints
from uuid import UUID

from handlers.wire.costs import Cost
from handlers.wire.errors import ApiError, NotFound
from handlers.wire.shapes import PartOfPath, Shape

M = TypeVar("M", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Header:
    """A header of a request or an answer; ``kind`` is the type of its value, ``key`` says that it proves who may."""

    name: str
    words: str
    kind: Any = str
    required: bool = False
    key: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes with a status: JSON of the type ``shape``, or of another ``media`` type bytes; or no body."""

    shape: Any = None
    words: str = ""
    headers: tuple[Header, ...] = ()
    media: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one endpoint. ``limits`` are settings of rates, each with what it is counted by; ``cost`` is what
    it spends from the budgets of the account (handlers/limits/ledger.py)."""

    words: str
    answers: Mapping[int, Answer]
    refuses: tuple[type[ApiError], ...] = ()
    limits: Mapping[str, str] = field(default_factory=dict)
    cost: Cost | None = None
    headers: tuple[Header, ...] = ()
    parts: Mapping[str, Any] = field(default_factory=dict)
    query: type[Shape] | None = None
    body: type[Shape] | None = None
    optional: bool = False  # the body
    media: tuple[str, ...] = ()  # of a body that is no JSON


def operation(
    answers: Mapping[int, Any],
    *,
    refuses: tuple[type[ApiError], ...] = (),
    limits: Mapping[str, str] | None = None,
    cost: Cost | None = None,
    headers: tuple[Header, ...] = (),
    query: type[Shape] | None = None,
    media: tuple[str, ...] = (),
) -> Callable[[M], M]:
    """Declare a method of an endpoint, and let it have what it takes. ``query`` is for who reads it before the method
    runs, ``media`` for a body that has no shape."""

    def declare(method: M) -> M:
        hints = get_type_hints(method, include_extras=True)
        names = [
            name
            for name, parameter in list(inspect.signature(method).parameters.items())[1:]
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        body, asked = hints.get("body"), hints.get("query")
        optional = NoneType in get_args(body)
        if optional:
            [body] = [kind for kind in get_args(body) if kind is not NoneType]
        parts = {name: hints[name] for name in names if name not in ("body", "query")}
        declared = Operation(
            words=inspect.cleandoc(method.__doc__ or ""),
            answers={s: given if isinstance(given, Answer) else Answer(given) for s, given in answers.items()},
            refuses=refuses,
            limits=dict(limits or {}),
            cost=cost,
            headers=headers,
            parts=parts,
            query=asked or query,
            body=body,
            optional=optional,
            media=media,
        )
        kinds = tuple(parts.values())

        @functools.wraps(method)
        def handle(self: Any, *path: str, **_: Any) -> Any:
            given: dict[str, Any] = {}
            if asked is not None:
                given["query"] = self.query(asked)
            if body is not None and (self.has_body or not optional):
                given["body"] = self.body(body)
            return method(self, *map(_part, path, kinds), **given)

        simple = body is None and asked is None and not any(kind is UUID or _reader(kind) for kind in kinds)
        run = method if simple else handle

        @functools.wraps(method)
        def answer(self: Any, *path: str, **named: Any) -> Any:
            return self.in_turn(functools.partial(run, self, *path, **named))

        answer.operation = declared  # type: ignore[attr-defined]
        return answer  # type: ignore[return-value]

    return declare


def declared(handler: type[Any], method: str) -> Operation | None:
    """What an endpoint says of one of its methods, if it does."""
    found: Operation | None = getattr(getattr(handler, method.lower(), None), "operation", None)
    return found


def _reader(kind: Any) -> Callable[[str], Any] | None:
    """How a part of a path is read, if its type says so."""
    return next((part.read for part in get_args(kind)[1:] if isinstance(part, PartOfPath)), None)


def _part(text: str, kind: Any) -> Any:
    read = _reader(kind)
    if read is not None:
        return read(text)
    if kind is not UUID:
        return text
    try:
        return UUID(text)
    except ValueError:
        raise NotFound from None
