"""Hooks for Schemathesis, which runs in its own process."""

from typing import Any

import schemathesis

schemathesis.serializer.alias(["application/offset+octet-stream"], "application/octet-stream")


@schemathesis.hook
def map_body(_: Any, body: Any) -> Any:
    """JSON Schema takes 5.0 for an integer. This server wants one to be written as one, and says so in words."""
    return _written(body)


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _written(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_written(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
