"""The OpenAPI document: all routes with their parameters, bodies and answers, built from declarations in the code.

Shapes become schemas, and an endpoint's declaration (handlers/wire/operations.py) becomes its operation, with its
errors. This file repeats nothing that is declared elsewhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import orjson

from config.values import Rate
from config.version import VERSION
from handlers.http.base import HEADERS, ApiHandler
from handlers.sockets.socket import SocketHandler
from handlers.wire import schemas
from handlers.wire.client_frames import REFUSED, ClientFrame
from handlers.wire.errors import ApiError, UnsupportedMediaType
from handlers.wire.frames import BORNE, Ack, ErrorFrame
from handlers.wire.operations import Answer, Operation, declared
from handlers.wire.schemas import COMMON, ERROR, reference

ABOUT = """The server of an end-to-end encrypted messenger.

Requests and answers are JSON in UTF-8. Ids are UUIDs, times RFC 3339 in UTC with `Z`, binary values base64: the server
accepts it standard or URL-safe, padded or not, and sends it standard and padded. JSON is strict: no NaN, no NUL in a
string, at most 32 levels; a wrong type is an error (5.0 is not an integer), an unknown field is ignored. A body has at
most 256 KiB. A list is an array; if there is a next page, `Link` points to it. An invalid token is answered with 401,
even by routes that need none. Every URL answers `OPTIONS` with its methods, and `HEAD` like `GET` without the body,
except where a `GET` uses something up: `Allow` lists the methods of a URL.

All errors have one form: `error` is a code that never changes, `message` a sentence for people, `request_id` the id in
the log; `details` names all invalid fields. Every request spends from the budgets of its account, or of its address
(`x-budgets`): `RateLimit` shows what remains, and a request above a budget is answered with 429. Any request may have
the headers `X-PrID`, `X-Client-Version`, `X-Platform` and `X-Request-ID`; all are optional."""

HOUSE = "operation"
METHODS = ("get", "put", "post", "delete", "options", "head", "patch")
UNDECLARED = Operation(words="", answers={})
_GROUP = re.compile(r"\((?:[^()]|\([^()]*\))*\)")
DONE = {200: "Done.", 201: "Created.", 204: "Done; no body."}
BEARER = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "JWT",
    "description": "The `access_token` from registration, login or refresh.",
}

Route = tuple[str, type[ApiHandler]]


def operations(handler: type[ApiHandler]) -> Iterable[tuple[str, Operation]]:
    """Yield the methods of a route for the document: all that it supports, and OPTIONS if the route declares it."""
    for method in METHODS:
        operation = declared(handler, method)
        if operation is not None or method.upper() in handler.methods():
            yield method, operation or UNDECLARED


def path_of(pattern: str, handler: type[ApiHandler]) -> str:
    """Return the path of a route's pattern, with the names that its methods use for the groups."""
    names = iter(next((list(operation.parts) for _, operation in operations(handler) if operation.parts), []))
    return _GROUP.sub(lambda _: f"{{{next(names, 'part')}}}", pattern)


def document(
    routes: Sequence[Route],
    events: Mapping[str, ClientFrame],
    sends: Mapping[str, type] | None = None,
    rates: Mapping[str, Rate] | None = None,
) -> dict[str, Any]:
    """Build the OpenAPI 3.1 document. ``events`` are the frames from clients by type, ``sends`` the shapes of frames
    from the server, ``rates`` the rate limits of the settings."""
    return _Writer(routes, events, sends or {}, rates or {}).build()


class _Writer:
    def __init__(
        self,
        routes: Sequence[Route],
        events: Mapping[str, ClientFrame],
        sends: Mapping[str, type],
        rates: Mapping[str, Rate],
    ) -> None:
        self._routes, self._events, self._sends, self._rates = routes, events, sends, rates
        self._responses: dict[str, Any] = {}
        self._keys: dict[str, Any] = {}
        self._tags: dict[str, str] = {}
        self._house: dict[str, str] = {}  # the tag that comes last
        self._schemas, self._named = self._shapes()

    def _shapes(self) -> tuple[dict[tuple[Any, str], Any], dict[str, Any]]:
        """Return the schemas by shape and direction (accepted or sent), and the named schemas to which they refer."""
        declarations = [operation for _, handler in self._routes for _, operation in operations(handler)]
        frames = self._events.values()
        accepted = [*(frame.shape for frame in frames), *(one.body for one in declarations if one.body is not None)]
        answers = [answer.shape for one in declarations for answer in one.answers.values() if answer.shape is not None]
        acks = [frame.ack for frame in frames if frame.ack is not None]
        return schemas.schemas(accepted, [*answers, *dict.fromkeys(self._sends.values()), *acks, Ack, ErrorFrame])

    def build(self) -> dict[str, Any]:
        paths: dict[str, Any] = {}
        for pattern, handler in self._routes:
            common = [reference("parameters", header.name) for header in HEADERS]
            path = path_of(pattern, handler)
            groups = _GROUP.findall(pattern)
            paths[path] = {"parameters": common} | {
                method: self._operation(path, groups, handler, method, said) for method, said in operations(handler)
            }
        answers = [
            answer
            for item in paths.values()
            for method in METHODS
            if method in item
            for answer in item[method]["responses"].values()
        ]
        used = {answer["$ref"].rpartition("/")[2] for answer in answers if "$ref" in answer}
        return {
            "openapi": "3.1.0",
            "info": {"title": "Mimu", "version": VERSION, "description": ABOUT, "license": {"name": "MIT"}},
            "servers": [{"url": "/"}],
            "security": [{"bearer": []}],
            "tags": [{"name": name, "description": words} for name, words in {**self._tags, **self._house}.items()],
            "paths": paths,
            "components": {
                "schemas": {"Error": ERROR, **self._referred(paths)},
                "responses": {name: self._responses[name] for name in sorted(used)},
                "parameters": {header.name: schemas.parameter(header) for header in HEADERS},
                "headers": {header.name: schemas.header(header) for header in COMMON},
                "securitySchemes": {"bearer": BEARER, **self._keys},
            },
        }

    def _referred(self, paths: Mapping[str, Any]) -> dict[str, Any]:
        """Return the named schemas, without those of acks only, which are written inline."""
        acks = {self._schemas[frame.ack, "serialization"].get("$ref") for frame in self._events.values() if frame.ack}
        text = orjson.dumps([paths, self._named]).decode()
        references = {name: reference("schemas", name)["$ref"] for name in self._named}
        return {
            name: schema
            for name, schema in self._named.items()
            if references[name] not in acks or f'"{references[name]}"' in text
        }

    # One operation ------------------------------------------------------------------------------------------------

    def _operation(
        self, path: str, groups: list[str], handler: type[ApiHandler], method: str, said: Operation
    ) -> dict[str, Any]:
        summary, _, words = said.words.partition("\n\n")
        written: dict[str, Any] = {
            "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_"),
            "tags": [self._tag(handler)],
            "summary": _line(summary).removesuffix(".").replace("`", ""),  # a summary is not Markdown
        }
        limits = [self._limit(setting, by) for setting, by in said.limits.items()]
        words = "\n\n".join([_line(part) for part in words.split("\n\n") if part] + [words for words, _ in limits])
        if words:
            written["description"] = words
        if limits:
            written["x-rate-limits"] = [limit for _, limit in limits]
        if said.cost is not None:
            written["x-budgets"] = list(said.cost.kinds)
        keys = [header for header in said.headers if header.key]
        for key in keys:
            self._keys[key.name] = {"type": "apiKey", "in": "header", "name": key.name, "description": key.words}
        if handler.public or method == "options":
            written["security"] = [{key.name: []} for key in keys]
        parameters = [schemas.part(*named, group) for named, group in zip(said.parts.items(), groups, strict=False)]
        parameters += [schemas.parameter(header) for header in said.headers if not header.key]
        parameters += schemas.query(said.query)
        if parameters:
            written["parameters"] = parameters
        if said.body is not None:
            content = {"application/json": {"schema": self._schemas[said.body, "validation"]}}
            written["requestBody"] = {"required": not said.optional, "content": content}
            written["x-max-body-bytes"] = handler.max_body
        elif said.media:
            written["requestBody"] = {"content": {media: {} for media in said.media}}
        if self._events and issubclass(handler, SocketHandler):
            events = sorted(self._events.items())
            written["x-frames"] = {kind: self._schemas[frame.shape, "validation"] for kind, frame in events}
            written["x-replies"] = {kind: self._replies(frame) for kind, frame in events}
            written["x-server-frames"] = {
                kind: self._schemas[frame, "serialization"] for kind, frame in sorted(self._sends.items())
            }
        written["responses"] = self._answers(handler, method, said)
        self._show(written, _examples(_home(handler)).get(f"{method.upper()} {path}", {}))
        return written

    def _show(self, written: dict[str, Any], examples: Mapping[str, Any]) -> None:
        """Put examples where they belong."""
        if "request" in examples:
            written["requestBody"]["content"]["application/json"]["example"] = examples["request"]
        for status, example in examples.get("answers", {}).items():
            response = written["responses"][status]
            if "$ref" in response:
                response = self._responses[response["$ref"].rpartition("/")[2]]
            content = {**response["content"]["application/json"], "example": example}
            written["responses"][status] = {**response, "content": {"application/json": content}}

    def _replies(self, frame: ClientFrame) -> dict[str, Any]:
        """What a frame with an ``id`` is answered with: its ack, or an error with one of its codes."""
        ack, error = (self._resolved(self._schemas[kind, "serialization"]) for kind in (Ack, ErrorFrame))
        if frame.ack is not Ack:
            fields = self._resolved(self._schemas[frame.ack, "serialization"]) if frame.ack else {"properties": {}}
            ack = {
                "type": "object",
                **({"description": fields["description"]} if "description" in fields else {}),
                "properties": {**ack["properties"], **fields["properties"]},
                "required": [*ack["required"], *fields.get("required", ())],
            }
        kinds: tuple[type[ApiError], ...] = (*frame.refuses, *REFUSED)
        borne = {name for kind in kinds for name in kind.body_fields}
        properties = {name: field for name, field in error["properties"].items() if name not in BORNE - borne}
        codes = {"code": {"enum": list(dict.fromkeys(kind.code for kind in kinds))}}
        written = {"ack": ack, "error": {**error, "properties": {**properties, **codes}}}
        limits = [self._limit(setting, by)[1] for setting, by in frame.limits]
        return {**written, "x-rate-limits": limits} if limits else written

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema itself, where there is a reference to it."""
        found: dict[str, Any] = self._named[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        return found

    def _tag(self, handler: type[ApiHandler]) -> str:
        room, _, rest = handler.__module__.partition(".")
        feature = rest.partition(".")[0]
        if room != "plugins":
            self._house = {HOUSE: "What is the same whatever the features: health, metrics, the socket, this page."}
            return HOUSE
        words = (getattr(sys.modules.get(f"plugins.{feature}"), "__doc__", None) or "").partition("\n\n")[0]
        self._tags.setdefault(feature, re.sub(r"\s*\([^()]*\)", "", _line(words)))
        return feature

    def _limit(self, setting: str, by: str) -> tuple[str, dict[str, Any]]:
        rate, name = self._rates.get(setting), setting.upper()
        if rate is None:
            return f"Limited for each {by} (`{name}`).", {"setting": name, "for": by}
        words = f"At most {rate.count} in {_span(rate.seconds)} for each {by} (`{name}`)."
        return words, {"setting": name, "for": by, "count": rate.count, "seconds": rate.seconds}

    # Its answers --------------------------------------------------------------------------------------------------

    def _answers(self, handler: type[ApiHandler], method: str, said: Operation) -> dict[str, Any]:
        bare = method == "head"
        written = {str(status): self._answer(status, answer, bare) for status, answer in said.answers.items()}
        refusals = list(dict.fromkeys((*handler.refuses, *said.refuses)))
        if said.body is not None:
            refusals.append(UnsupportedMediaType)
        for status in sorted({kind.status for kind in refusals} - said.answers.keys()):
            written[str(status)] = self._refusal([kind for kind in refusals if kind.status == status], bare)
        if not said.answers:
            written["default"] = {"description": "What this endpoint answers is not declared."}
        return written

    def _answer(self, status: int, answer: Answer, bare: bool) -> dict[str, Any]:
        written: dict[str, Any] = {"description": answer.words or DONE.get(status, "Done.")}
        if status != 101:
            written["headers"] = schemas.headers(answer.headers)
        if answer.shape is not None and not bare:
            schema = self._schemas[answer.shape, "serialization"]
            written["content"] = {"application/json": {"schema": schema}}
        if answer.media is not None and not bare:
            written.setdefault("content", {})[answer.media] = {}
        return written

    def _refusal(self, kinds: list[type[ApiError]], bare: bool) -> dict[str, Any]:
        """A reference to the response that these refusals of one status make, which is written once."""
        kinds = sorted(kinds, key=lambda kind: kind.code)
        name = ".".join([kind.code for kind in kinds] + (["HEAD"] if bare else []))
        if name not in self._responses:
            sent = dict.fromkeys(header for kind in kinds for header in kind.sends)
            self._responses[name] = {
                "description": "\n\n".join(f"`{kind.code}`: {kind.message}" for kind in kinds),
                "headers": schemas.headers(schemas.SENT[header] for header in sent),
            }
            if not bare:
                self._responses[name]["content"] = {"application/json": {"schema": schemas.error(kinds)}}
        return reference("responses", name)


def _home(handler: type[ApiHandler]) -> str:
    """The package whose examples.json has those of a handler: its feature's, or ``handlers``. A feature that is one
    file has none."""
    room, *rest = (sys.modules[handler.__module__].__package__ or "").split(".")
    return ".".join([room, *rest[:1]]) if room == "plugins" else room


@cache
def _examples(package: str) -> Mapping[str, Any]:
    """What an examples.json shows, by method and address."""
    found = resources.files(package) / "examples.json" if package else None
    return orjson.loads(found.read_bytes()) if found is not None and found.is_file() else {}


def _line(words: str) -> str:
    """Words of a docstring as Markdown: one line a paragraph."""
    return " ".join(words.replace("``", "`").split())


def _span(seconds: int) -> str:
    units = (("hour", 3600), ("minute", 60), ("second", 1))
    unit, length = next((unit, length) for unit, length in units if seconds % length == 0)
    number = seconds // length
    return f"{number} {unit}s" if number > 1 else f"1 {unit}"
