"""Operations: the parameters and answers of a method of an endpoint, declared once, for the code and for OpenAPI.

    @operation(
        {201: Posted, 200: Posted}, refuses=(Forbidden, NotFound), limits={"rate_limit_messages": "user"}, cost=POSTS
    )
    async def post(self, chat_id: UUID, body: Post) -> None:
        \"\"\"Post a message. ...\"\"\"

The parameters ``body`` and ``query`` receive the request's body and query string, parsed as the annotated shape; a
default is used if there is no body. All others are parts of the path; one annotated UUID is converted. The docstring is
the description in OpenAPI. Errors that every endpoint may return are in ``ApiHandler.refuses``.
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
    """A header of a request or an answer; ``kind`` is the type of its value, ``key`` is True for a credential."""

    name: str
    words: str
    kind: Any = str
    required: bool = False
    key: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer with one status: JSON of the type ``shape``, bytes of another ``media`` type, or no body."""

    shape: Any = None
    words: str = ""
    headers: tuple[Header, ...] = ()
    media: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one endpoint. ``limits`` maps settings of rates to what each is counted by; ``cost`` is spent from
    the budgets of the account (handlers/limits/ledger.py)."""

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
    media: tuple[str, ...] = ()  # of a body that is not JSON


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
    """Declare a method of an endpoint, and pass it its parameters. ``query`` is for endpoints that read the query
    before the method runs, ``media`` for a body without a shape."""

    def declare(method: M) -> M:
        hints = get_type_hints(method, include_extras=True)
        names = [
            name
            for name, parameter in list(inspect.signature(method).parameters.items())[1:]
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        body, query_shape = hints.get("body"), hints.get("query")
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
            query=query_shape or query,
            body=body,
            optional=optional,
            media=media,
        )
        kinds = tuple(parts.values())

        @functools.wraps(method)
        def handle(self: Any, *path: str, **_: Any) -> Any:
            parameters: dict[str, Any] = {}
            if query_shape is not None:
                parameters["query"] = self.query(query_shape)
            if body is not None and (self.has_body or not optional):
                parameters["body"] = self.body(body)
            return method(self, *map(_part, path, kinds), **parameters)

        simple = body is None and query_shape is None and not any(kind is UUID or _reader(kind) for kind in kinds)
        run = method if simple else handle

        @functools.wraps(method)
        def answer(self: Any, *path: str, **named: Any) -> Any:
            return self.in_turn(functools.partial(run, self, *path, **named))

        answer.operation = declared  # type: ignore[attr-defined]
        return answer  # type: ignore[return-value]

    return declare


def declared(handler: type[Any], method: str) -> Operation | None:
    """Return the operation of an endpoint's method, if it is declared."""
    operation: Operation | None = getattr(getattr(handler, method.lower(), None), "operation", None)
    return operation


def _reader(kind: Any) -> Callable[[str], Any] | None:
    """Return the parser of a part of a path, if its type has one."""
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
