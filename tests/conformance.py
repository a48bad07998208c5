"""Conformance: every answer that any test gets is held against the OpenAPI document of the server that gave it.

So the whole suite proves the document: that the route and the status are in it, with the code of an error, the headers
that are promised, and a body that has the fields of its schema and no others.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema_rs
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.simple_httpclient import SimpleAsyncHTTPClient

UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
# What is answered before it is known, or asked, whether there is such a route or method.
BEFORE = {"unauthorized", "token_expired", "prid_mismatch", "client_outdated", "too_large", "invalid_request"}

faults: list[str] = []  # of frames, until the test that received them ends
_contracts: dict[str, Contract] = {}
_servers: dict[str, Contract] = {}


class Contract:
    """A document, ready to judge by."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._paths: list[tuple[re.Pattern[str], str]] = []
        # The more of an address is written out, the earlier it is tried.
        for path, item in sorted(document["paths"].items(), key=lambda entry: entry[0].count("{")):
            self._paths.append((re.compile(self._pattern(path, item)), path))
        self._validators: dict[int, Callable[[Any], None]] = {}

    def _pattern(self, path: str, item: Mapping[str, Any]) -> str:
        schemas = {
            parameter["name"]: parameter["schema"]
            for operation in item.values()
            if isinstance(operation, dict)
            for parameter in operation.get("parameters", ())
            if parameter.get("in") == "path"
        }

        def part(match: re.Match[str]) -> str:
            schema = schemas[match[1]]
            if schema.get("format") == "uuid":
                return UUID
            return "(?:" + schema.get("pattern", "[^/]+").removeprefix("^").removesuffix("$") + ")"

        return "".join(
            part(re.match(r"\{(\w+)\}", piece)) if piece.startswith("{") else re.escape(piece)  # type: ignore[arg-type]
            for piece in re.split(r"(\{\w+\})", path)
        )

    def address(self, path: str) -> str | None:
        """The address that the document has for a path, with the names of its parts."""
        asked = unquote(path.partition("?")[0])
        return next((address for pattern, address in self._paths if pattern.fullmatch(asked)), None)

    def judge(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Hold an answer against the document. Raises AssertionError."""
        request = f"{method} {path} answered {status}: {body[:500]!r}"
        method = method.lower() if method.isupper() else ""  # get is not GET
        item = self.document["paths"].get(self.address(path))
        if item is not None and method == "head" and "head" not in item and "get" in item:
            method, bare = "get", True  # as GET, without the body
        else:
            bare = False
        if item is None or method not in item or (bare and status == 405):
            code = json.loads(body)["error"] if body and status >= 400 else ""
            if item is not None and method == "options":
                assert status == 204, request
            elif code not in BEFORE and not (method == "head" and status == 401):  # which has no body
                assert status == (404 if item is None else 405), f"the document has no such route: {request}"
            return
        responses = item[method]["responses"]
        if "default" in responses:
            return
        assert str(status) in responses, f"the document has no such status: {request}"
        response = self._resolved(responses[str(status)])
        for name, header in response.get("headers", {}).items():
            header = self._resolved(header)
            assert name in headers or not header.get("required"), f"no {name}: {request}"
        content = response.get("content")
        if not content or bare:
            assert not body, f"the document has no body there: {request}"
            return
        media = headers.get("Content-Type", "").partition(";")[0]
        assert media in content or "*/*" in content, f"{media} is not in the document: {request}"
        if media == "application/json" and content[media]:
            self._validator(content[media]["schema"], request)(json.loads(body))

    def judge_frame(self, frame: dict[str, Any], answered: str | None = None) -> None:
        """Check a frame from the server against the document; one that answers a frame of the type ``answered`` against
        what that may be answered with. Raises AssertionError."""
        socket = self.document["paths"]["/ws"]["get"]
        declared = socket["x-server-frames"]
        shown = f"a frame {json.dumps(frame)[:500]}"
        assert frame["type"] in declared, f"the document has no such frame: {shown}"
        self._validator(declared[frame["type"]], shown)(frame)
        if answered is not None:
            replies = socket["x-replies"].get(answered)
            if replies is not None:
                self._validator(replies[frame["type"]], f"answered to {answered}: {shown}")(frame)
            else:
                assert frame["type"] == "error", f"the document has no frame {answered}: {shown}"

    def _resolved(self, value: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in value:
            room, name = value["$ref"].removeprefix("#/components/").split("/")
            value = self.document["components"][room][name]
        return value

    def _validator(self, schema: dict[str, Any], request: str) -> Callable[[Any], None]:
        found = self._validators.get(id(schema))
        if found is None:
            whole = {"components": {"schemas": self.document["components"]["schemas"]}, **schema}
            compiled = jsonschema_rs.Draft202012Validator(closed(whole), validate_formats=True)

            def found(value: Any) -> None:
                error = next(compiled.iter_errors(value), None)
                assert error is None, f"{error.message} at {list(error.instance_path)}: {request}"

            self._validators[id(schema)] = found
        return found


def closed(schema: Any) -> Any:
    """The schema with no room for fields that it doesn't name, unless it says that there is."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: part if name == "Error" else closed(part) for name, part in schema.items()}
    if "allOf" in inner:  # of Error, which is left open for that, and what narrows it
        inner.setdefault("unevaluatedProperties", False)
    elif inner.get("type") == "object" and "properties" in inner:
        inner.setdefault("additionalProperties", False)
    return inner


def contract(document: bytes) -> Contract:
    """The document's contract, made once for all servers that serve it."""
    key = hashlib.sha256(document).hexdigest()
    if key not in _contracts:
        _contracts[key] = Contract(json.loads(document))
    return _contracts[key]


@contextlib.contextmanager
def knowing(url: str, document: bytes) -> Iterator[None]:
    """While the block runs, what comes from there is judged by that document."""
    own = _servers[url] = contract(document)
    try:
        yield
    finally:
        if _servers.get(url) is own:  # a server that took its place may have the same address
            del _servers[url]


async def fetched(url: str) -> bytes:
    """The document of a server in another process."""
    client: AsyncHTTPClient = SimpleAsyncHTTPClient(force_instance=True)
    try:
        return (await client.fetch(f"{url}/openapi.json")).body
    finally:
        client.close()


def contract_of(url: str) -> Contract | None:
    """The contract of a server that runs just now."""
    parts = urlsplit(url)
    return _servers.get(f"{parts.scheme}://{parts.netloc}")


def judge_frame(url: str, frame: dict[str, Any], answered: str | None = None) -> None:
    """Check a frame from a socket that was opened at this address. Faults are kept, since its reader has no caller."""
    found = contract_of(url.replace("ws", "http", 1))
    if found is not None:
        try:
            found.judge_frame(frame, answered)
        except AssertionError as error:
            faults.append(str(error))


def judge(response: HTTPResponse) -> None:
    """Hold an answer against the document of who gave it, if that is one of our servers."""
    request = response.request
    parts, found = urlsplit(request.url), contract_of(request.url)
    if found is not None and response.headers.get("Server") == "Mimu":
        method = request.headers.get("X-HTTP-Method-Override", request.method)
        body = response.body or b""
        if response.headers.get("Content-Encoding") == "gzip" and body:
            body = gzip.decompress(body)
        found.judge(method, parts.path, response.code, response.headers, body)
