"""Schemas: how shapes, headers, parameters and refusals are written down in JSON Schema and OpenAPI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from handlers.wire.errors import ApiError
from handlers.wire.operations import Header
from handlers.wire.shapes import Shape

REFERENCE = "#/components/{}/{}"
REQUEST_ID = Header("X-Request-ID", "On every answer, and on every line of the log about it.", required=True)
# How the limits and budgets stand that a request was counted against; not where RATE_LIMITS is off.
QUOTAS = (
    Header("RateLimit-Policy", "The limits and budgets that this request counted against: `q` in `w` seconds."),
    Header(
        "RateLimit", "What is left of each: `r`; `t` is in how many seconds it is full, or something is left again."
    ),
)
# What refusals come with.
SENT = {
    header.name: header
    for header in (
        Header("Allow", "The methods of this address.", required=True),
        Header("Content-Range", "How many bytes there are.", required=True),
        Header("Retry-After", "Seconds after which it may go.", int, required=True),
        Header("Tus-Version", "The versions that are spoken.", required=True),
        Header("WWW-Authenticate", "`Bearer`", required=True),
    )
}
COMMON = (REQUEST_ID, *QUOTAS)
ERROR = {
    "type": "object",
    "description": "What every refusal says. `details` names the bad fields of a body or query, all at once.",
    "required": ["error", "message", "request_id"],
    "properties": {
        "error": {"type": "string", "description": "A code that stays."},
        "message": {"type": "string", "description": "A sentence for people."},
        "request_id": {"type": "string"},
        "details": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "issue"],
                "properties": {"field": {"type": "string"}, "issue": {"type": "string"}},
            },
        },
    },
}


class _Untitled(GenerateJsonSchema):
    """Schemas without a title for each field, which would say its name once more."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def reference(room: str, name: str) -> dict[str, str]:
    """A reference to what ``components`` has in a room under a name."""
    return {"$ref": REFERENCE.format(room, name)}


def schemas(taken: Iterable[Any], given: Iterable[Any]) -> tuple[dict[tuple[Any, str], Any], dict[str, Any]]:
    """The schemas of shapes, by shape and ``validation`` for those that are taken, ``serialization`` for those that are
    given; and, by their names, of all that these refer to."""
    wanted = {(shape, "validation"): None for shape in taken} | {(shape, "serialization"): None for shape in given}
    made, named = TypeAdapter.json_schemas(
        [(shape, mode, TypeAdapter(shape)) for shape, mode in wanted],  # type: ignore[misc]
        ref_template=REFERENCE.format("schemas", "{model}"),
        schema_generator=_Untitled,
    )
    return dict(made), named.get("$defs", {})


def error(kinds: Sequence[type[ApiError]]) -> dict[str, Any]:
    """The body of refusals of one status."""
    properties: dict[str, Any] = {"error": {"enum": [kind.code for kind in kinds]}}
    required = [name for kind in kinds for name in kind.body_fields]
    for kind in kinds:
        properties |= {name: TypeAdapter(type_).json_schema() for name, type_ in kind.body_fields.items()}
    narrowed = {"properties": properties, **({"required": required} if required else {})}
    return {"allOf": [reference("schemas", "Error"), narrowed]}


def part(name: str, kind: Any, group: str) -> dict[str, Any]:
    """A part of the path, of which a text has the pattern of its group."""
    schema = {"type": "string", "pattern": f"^{group}$"} if kind is str else TypeAdapter(kind).json_schema()
    return {"name": name, "in": "path", "required": True, "schema": schema}


def header(named: Header) -> dict[str, Any]:
    written = {"schema": TypeAdapter(named.kind).json_schema(), "description": named.words}
    return {**written, "required": True} if named.required else written


def headers(named: Iterable[Header]) -> dict[str, Any]:
    """The headers of an answer; every one but that of an upgrade bears the request's id and its quotas."""
    written = {one.name: header(one) for one in named if one is not REQUEST_ID}
    common = {one.name: reference("headers", one.name) for one in COMMON}
    return {**common, **written}


def parameter(named: Header) -> dict[str, Any]:
    return {"name": named.name, "in": "header", **header(named)}


def query(shape: type[Shape] | None) -> list[dict[str, Any]]:
    """The parameters of a query string."""
    if shape is None:
        return []
    schema = shape.model_json_schema(schema_generator=_Untitled)
    written = []
    for name, field in schema["properties"].items():
        # A parameter is there or not; there is no null.
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        told = kinds[0] if kinds else dict(field)
        words = told.pop("description", field.get("description"))
        parameter = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": told}
        written.append({**parameter, "description": words} if words else parameter)
    return written
