"""The OpenAPI document: it has every route and nothing else, it is well-formed, and it is served as it should be.

That what it says is true is shown by every other test: tests/conformance.py holds each answer against it.
"""

from __future__ import annotations

import ast
import configparser
import gzip
import json
import re
from typing import Any

import pytest

import plugins
from config.settings import Budgets, Core
from config.values import Rate
from handlers.http.base import ApiHandler
from handlers.reference import openapi
from handlers.reference.page import RENDERER
from handlers.sockets.socket import SocketHandler
from handlers.wire.client_frames import REFUSED
from handlers.wire.frames import Ack
from handlers.wire.operations import declared
from server import Server
from tests.client import ask
from tests.conformance import Contract
from tests.running import ROOT, Services, document_of, place, serving

METHODS = {"get", "put", "post", "delete", "patch", "head", "options"}


def served(running: Server) -> set[tuple[str, str]]:
    """Each method of each route, by the pattern of its address; OPTIONS only where an endpoint answers it itself."""
    found = set()
    for rule in running.site.wildcard_router.rules:
        for method in (*rule.target.methods(), "OPTIONS"):
            if method != "OPTIONS" or rule.target.options is not ApiHandler.options:
                found.add((method.lower(), rule.matcher.regex.pattern.removesuffix("$")))
    return found


def written(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(method, path) for path, item in document["paths"].items() for method in item.keys() & METHODS]


@pytest.mark.gen_test
async def test_the_document_has_every_route_and_no_other(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        document = (await ask(running.url, "GET", "/openapi.json")).json
        patterns = set()
        for method, path in written(document):
            address = path.replace("{public_id}", "Alice_1").replace("{emoji}", "x").replace("{name}", "page.js")
            address = re.sub(r"\{\w+\}", "0f268f7d-b420-4c41-922d-8995ce3c4b1b", address)
            # The first route that takes it, as the server itself looks for one.
            rule = next(rule for rule in running.site.wildcard_router.rules if rule.matcher.regex.fullmatch(address))
            patterns.add((method, rule.matcher.regex.pattern.removesuffix("$")))
        assert len(patterns) == len(written(document)), "two of its addresses are one route"
        assert patterns == served(running)


@pytest.mark.gen_test
async def test_the_api_page_calls_addresses_as_the_document_does(services: Services) -> None:
    page = (ROOT / "docs/api.md").read_text()
    headings = set(re.findall(r"^### `([A-Z]+ /\S*)`$", page, re.MULTILINE))
    async with place(services) as shared, serving(shared) as running:
        document = json.loads(document_of(running))
    # OPTIONS of tus stands there under POST.
    assert headings == {f"{method.upper()} {path}" for method, path in written(document) if method != "options"}


@pytest.mark.gen_test
async def test_statuses_that_the_api_page_lists_for_a_route_are_declared(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        document = json.loads(document_of(running))
    _, *parts = re.split(r"^### `([A-Z]+ /\S*)`$", (ROOT / "docs/api.md").read_text(), flags=re.MULTILINE)
    found = 0
    for name, words in zip(parts[::2], parts[1::2], strict=True):
        method, path = name.split(" ")
        section = re.split(r"^#+ ", words, flags=re.MULTILINE)[0]
        statuses = set(re.findall(r"^\| (\d{3}) \|", section, re.MULTILINE))
        assert statuses <= document["paths"][path][method.lower()]["responses"].keys(), name
        found += len(statuses)
    assert found > 200


@pytest.mark.gen_test
async def test_every_endpoint_declares_what_it_takes_and_answers(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        for rule in running.site.wildcard_router.rules:
            names = []
            for method in (*rule.target.methods(), "OPTIONS"):
                if method == "OPTIONS" and rule.target.options is ApiHandler.options:
                    continue
                said = declared(rule.target, method)
                assert said is not None, f"{rule.target.__qualname__} does not declare its {method}"
                assert said.words.partition("\n\n")[0].strip(), f"{rule.target.__qualname__} {method} has no words"
                assert not re.search(r"\b[2-5]\d\d [A-Z`]", said.words.partition("\n\n")[0]), "a status is declared"
                names.append(list(said.parts))
            assert all(one == names[0] for one in names), "the methods of one address name its parts alike"
            assert len(names[0]) == rule.matcher.regex.groups or issubclass(rule.target, SocketHandler)


@pytest.mark.gen_test
async def test_disabled_features_are_not_in_the_document(services: Services) -> None:
    less = {"PLUGINS_DISABLED": "calls,chats"}
    async with place(services) as shared, serving(shared) as whole, serving(shared, **less) as rest:
        full, partly = (json.loads(document_of(one)) for one in (whole, rest))
    gone = full["paths"].keys() - partly["paths"].keys()
    assert {"/calls", "/chats", "/chats/join"} <= gone
    assert not [path for path in partly["paths"] if re.fullmatch("/calls(/{.*)?|/chats(/{chat_id})?", path)]
    assert not {"ChatInFull", "CallSession", "Offer"} & partly["components"]["schemas"].keys()
    assert "call_offer" in full["paths"]["/ws"]["get"]["x-frames"]
    assert "call_offer" not in partly["paths"]["/ws"]["get"]["x-frames"]
    assert {"calls", "chats"} == {tag["name"] for tag in full["tags"]} - {tag["name"] for tag in partly["tags"]}


@pytest.mark.gen_test
async def test_the_document_is_well_formed(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        document = json.loads(document_of(running))
    assert document["openapi"].startswith("3.1.")
    names = [document["paths"][path][method]["operationId"] for method, path in written(document)]
    assert len(set(names)) == len(names)
    for name in document["components"]["schemas"]:
        assert re.fullmatch(r"[A-Za-z]+", name), f"two shapes have the name of {name}"
    references = set(re.findall(r'"\$ref":\s*"#/components/([^"]+)"', json.dumps(document)))
    there = {f"{room}/{name}" for room, named in document["components"].items() for name in named}
    assert references <= there
    unused = {name for name in there if not name.startswith("securitySchemes/")} - references
    assert unused == set()
    for path in document["paths"]:
        Contract(document)._pattern(path, document["paths"][path])  # each part of an address is described


def test_the_version_is_the_package_s() -> None:
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg")
    assert package["metadata"]["version"] == openapi.VERSION


@pytest.mark.gen_test
async def test_the_document_has_the_configured_rate_limits(services: Services) -> None:
    rates = {
        name
        for section in (Core, *(module.Settings for module in plugins.discover().values()))
        for name, field in section.model_fields.items()
        if isinstance(field.default, Rate) and name not in Budgets.model_fields
    }
    async with place(services) as shared:
        async with serving(shared, RATE_LIMITS="on", RATE_LIMIT_LOGIN="7/2 minutes") as running:
            document = (await ask(running.url, "GET", "/openapi.json")).json
        async with serving(shared) as unlimited:
            without = json.loads(document_of(unlimited))
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for method, path in written(document):
        operation = document["paths"][path][method]
        assert "429" in operation["responses"], path
        assert ("x-budgets" in operation) == (method != "options" or "tus" in path), path
        for limit in operation.get("x-rate-limits", ()):
            by_setting.setdefault(limit["setting"].lower(), []).append(limit)
    for reply in document["paths"]["/ws"]["get"]["x-replies"].values():
        for limit in reply.get("x-rate-limits", ()):
            by_setting.setdefault(limit["setting"].lower(), []).append(limit)
    assert by_setting.keys() == rates
    assert all("count" in limit for limits in by_setting.values() for limit in limits)
    login = document["paths"]["/auth/login"]["post"]
    assert login["x-rate-limits"] == [{"setting": "RATE_LIMIT_LOGIN", "for": "address", "count": 7, "seconds": 120}]
    assert "At most 7 in 2 minutes" in login["description"]
    assert "count" not in without["paths"]["/auth/login"]["post"]["x-rate-limits"][0]


@pytest.mark.gen_test
async def test_every_frame_from_clients_says_what_it_is_answered_with(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        events = {kind: event for feature in running.features for kind, event in feature.events.items()}
        socket = json.loads(document_of(running))["paths"]["/ws"]["get"]
    assert socket["x-replies"].keys() == socket["x-frames"].keys() == {*events, "auth"}
    for kind, event in events.items():
        assert event.declared().ack is not Ack, f"{kind}: annotate what its function returns"
        reply = socket["x-replies"][kind]
        assert {"type", "id"} <= set(reply["ack"]["required"])
        own = {refusal.code for refusal in event.refuses}
        assert set(reply["error"]["properties"]["code"]["enum"]) == own | {refusal.code for refusal in REFUSED}
    assert set(socket["x-replies"]["typing"]["ack"]["properties"]) == {"type", "id"}
    rings = socket["x-replies"]["call_offer"]["ack"]
    assert {"call_id", "status", "expires_at"} <= set(rings["required"])
    assert {"delivered", "repeated"} == rings["properties"].keys() - set(rings["required"])


def test_docstrings_of_endpoints_are_no_second_list_of_statuses() -> None:
    """What is answered is declared; a docstring that lists it as well would be believed after it has become wrong."""
    for path in sorted((ROOT / "plugins").rglob("http.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
                words = ast.get_docstring(node) or ""
                assert not re.match(r"\d{3}\b", words), f"{path.name}: {words}"


@pytest.mark.gen_test
async def test_a_page_of_an_allowed_origin_may_send_what_a_route_reads(services: Services) -> None:
    origin = "https://app.example"
    # Of a socket the browser itself makes the handshake, and Stripe is no page.
    others = {"/ws", "/subscriptions/webhooks/stripe"}
    async with place(services) as shared, serving(shared, CORS_ALLOW_ORIGINS=origin) as running:
        document = json.loads(document_of(running))
        for path, item in document["paths"].items():
            read = set()
            for method in item.keys() & METHODS:
                parameters = item[method].get("parameters", ())
                read |= {parameter["name"] for parameter in parameters if parameter["in"] == "header"}
                read |= {name for scheme in item[method].get("security", ()) for name in scheme}
            if not read or path in others:
                continue
            asked = re.sub(r"\{\w+\}", "0f268f7d-b420-4c41-922d-8995ce3c4b1b", path.replace("{name}", "page.js"))
            preflight = await ask(running.url, "OPTIONS", asked, headers={"Origin": origin})
            allowed = set(preflight.headers["Access-Control-Allow-Headers"].split(", "))
            assert read <= allowed, path


# How it is served -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_the_document_may_be_kept_and_asked_for_again(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        first = await ask(running.url, "GET", "/openapi.json")
        assert first.headers["Content-Type"] == "application/json"
        assert first.headers["Cache-Control"] == "public, max-age=300"
        again = await ask(running.url, "GET", "/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status, again.text) == (304, "")
        assert again.headers["ETag"] == first.headers["ETag"]
        other = await ask(running.url, "GET", "/openapi.json", headers={"If-None-Match": '"another"'})
        assert other.status == 200
        assert first.json == json.loads(document_of(running))


@pytest.mark.gen_test
async def test_the_document_is_compressed_for_clients_that_accept_it(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        plain = await ask(running.url, "GET", "/openapi.json")
        packed = await ask(running.url, "GET", "/openapi.json", headers={"Accept-Encoding": "br, gzip"})
        assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
        assert packed.headers["ETag"] != plain.headers["ETag"]
        assert "Content-Encoding" not in plain.headers
        assert gzip.decompress(packed.raw) == plain.raw
        refused = await ask(running.url, "GET", "/openapi.json", headers={"Accept-Encoding": "gzip;q=0"})
        assert "Content-Encoding" not in refused.headers


@pytest.mark.gen_test
async def test_the_page_lets_nothing_in_from_elsewhere(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        page = await ask(running.url, "GET", "/docs")
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert not re.search(r"unsafe|https?:|\*", page.headers["Content-Security-Policy"])
        assert not re.search(r"<script>|<style|\son\w+=|style=|https?://", page.text)
        named = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
        assert len(named) == len(RENDERER) + 2
        for address in named:
            asset = await ask(running.url, "GET", f"/{address}")
            assert asset.status == 200
            assert asset.headers["Cache-Control"] == "public, max-age=31536000"
            assert re.search(r"\?[0-9a-f]{8}$", address), "what is kept for a year has another name when it changes"
        missing = await ask(running.url, "GET", "/docs/index.html")
        assert (missing.status, missing.code) == (404, "not_found")
        for trick in ("..%2Fpage.js", "%2e%2e", "page.js%00", "swagger-ui.js"):
            assert (await ask(running.url, "GET", f"/docs/{trick}")).status in (400, 404)
