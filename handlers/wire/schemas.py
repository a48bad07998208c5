"""Schemas: shapes, headers, parameters and errors in JSON Schema and OpenAPI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from handlers.wire.errors import ApiError
from handlers.wire.operations import Header
from handlers.wire.shapes import Shape

REFERENCE = "#/components/{}/{}"
REQUEST_ID = Header("X-Request-ID", "On every answer, and in every line of the log about the request.", required=True)
# The state of the limits and budgets that a request counts against; absent if RATE_LIMITS is off.
QUOTAS = (
    Header("RateLimit-Policy", "The limits and budgets that this request counted against: `q` in `w` seconds."),
    Header(
        "RateLimit",
        "What is left of each: `r`. After `t` seconds it is full; if nothing is left, after `t` seconds something is.",
    ),
)
# The headers of errors.
SENT = {
    header.name: header
    for header in (
        Header("Allow", "The methods of this URL.", required=True),
        Header("Content-Range", "The size of the file.", required=True),
        Header("Retry-After", "Seconds after which you may retry.", int, required=True),
        Header("Tus-Version", "The supported versions.", required=True),
        Header("WWW-Authenticate", "`Bearer`", required=True),
    )
}
COMMON = (REQUEST_ID, *QUOTAS)
ERROR = {
    "type": "object",
    "description": "The body of every error. `details` lists all invalid fields of a body or query.",
    "required": ["error", "message", "request_id"],
    "properties": {
        "error": {"type": "string", "description": "A stable code."},
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
    """Generates schemas without titles of fields, which would repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def reference(room: str, name: str) -> dict[str, str]:
    """Return a reference to an entry of ``components``."""
    return {"$ref": REFERENCE.format(room, name)}


def schemas(inputs: Iterable[Any], outputs: Iterable[Any]) -> tuple[dict[tuple[Any, str], Any], dict[str, Any]]:
    """Return two mappings: the schemas of shapes by shape and mode (``validation`` for inputs, ``serialization`` for
    outputs), and the schemas that these refer to by name."""
    wanted = {(shape, "validation"): None for shape in inputs} | {(shape, "serialization"): None for shape in outputs}
    made, named = TypeAdapter.json_schemas(
        [(shape, mode, TypeAdapter(shape)) for shape, mode in wanted],  # type: ignore[misc]
        ref_template=REFERENCE.format("schemas", "{model}"),
        schema_generator=_Untitled,
    )
    return dict(made), named.get("$defs", {})


def error(kinds: Sequence[type[ApiError]]) -> dict[str, Any]:
    """Return the schema of the body of errors with one status."""
    properties: dict[str, Any] = {"error": {"enum": [kind.code for kind in kinds]}}
    required = [name for kind in kinds for name in kind.body_fields]
    for kind in kinds:
        properties |= {name: TypeAdapter(type_).json_schema() for name, type_ in kind.body_fields.items()}
    narrowed = {"properties": properties, **({"required": required} if required else {})}
    return {"allOf": [reference("schemas", "Error"), narrowed]}


def part(name: str, kind: Any, group: str) -> dict[str, Any]:
    """Return the parameter for a part of the path; a text has the pattern of its group."""
    schema = {"type": "string", "pattern": f"^{group}$"} if kind is str else TypeAdapter(kind).json_schema()
    return {"name": name, "in": "path", "required": True, "schema": schema}


def header(named: Header) -> dict[str, Any]:
    written = {"schema": TypeAdapter(named.kind).json_schema(), "description": named.words}
    return {**written, "required": True} if named.required else written


def headers(named: Iterable[Header]) -> dict[str, Any]:
    """Return the headers of an answer; every answer except an upgrade has the request id and the quotas."""
    written = {one.name: header(one) for one in named if one is not REQUEST_ID}
    common = {one.name: reference("headers", one.name) for one in COMMON}
    return {**common, **written}


def parameter(named: Header) -> dict[str, Any]:
    return {"name": named.name, "in": "header", **header(named)}


def query(shape: type[Shape] | None) -> list[dict[str, Any]]:
    """Return the parameters of a query string."""
    if shape is None:
        return []
    schema = shape.model_json_schema(schema_generator=_Untitled)
    written = []
    for name, field in schema["properties"].items():
        # A parameter may be absent, but not null.
        kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
        type_ = kinds[0] if kinds else dict(field)
        words = type_.pop("description", field.get("description"))
        parameter = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": type_}
        written.append({**parameter, "description": words} if words else parameter)
    return written
