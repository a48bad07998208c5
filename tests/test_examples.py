"""The examples of the OpenAPI document: a real server still answers so, and they are what the schemas ask for."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from tests import examples
from tests.conformance import closed, contract_of
from tests.running import ROOT, Services, place, serving

FILES = sorted([*(ROOT / "plugins").glob("*/examples.json"), ROOT / "handlers/examples.json"])


def test_each_file_has_a_scenario() -> None:
    assert sorted(examples.FILES.values()) == FILES


@pytest.mark.gen_test
@pytest.mark.parametrize("feature", examples.FEATURES)
async def test_the_examples_are_what_a_server_answers(services: Services, feature: str) -> None:
    played, written = await examples.play(services, feature), examples.FILES[feature].read_text()
    assert json.loads(written) == played, f"python -m tests.examples {feature}"
    assert written == examples.text(played), "not as it would be written"


@pytest.mark.gen_test
async def test_one_more_request_changes_no_other_feature_s_examples(services: Services) -> None:
    """A further request in a scenario changes no ids and times of the requests before it."""
    async with place(services) as home, serving(home) as server:
        recorder = examples.Recorder(server, "files")
        alice, _ = await recorder.people()
        await recorder.ask("GET", "/files/usage", by=alice)
        new = {"size": 1, "sha256": "0" * 64}
        await recorder.ask("POST", "/files", new, {"file_id": "another file"}, by=alice)
    assert recorder.examples.keys() == {"GET /files/usage", "POST /files"}
    async with place(services) as home, serving(home) as server:
        again = examples.Recorder(server, "files")
        alice, bob = await again.people()
        await again.ask("GET", f"/users/{bob.public_id}", by=alice)
        await again.ask("POST", "/chats", {"type": "group"}, by=alice)
        await again.ask("GET", "/files/usage", by=alice)
        await again.ask("POST", "/files", new, {"file_id": "another file"}, by=alice)
    assert again.examples == recorder.examples


@pytest.mark.gen_test
async def test_the_document_shows_them_and_they_fit_its_schemas(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        contract = contract_of(running.url)
        assert contract is not None
        document = contract.document
    shown = 0
    for path in FILES:
        for name, recorded in json.loads(path.read_text()).items():
            method, address = name.split(" ")
            operation = document["paths"][address][method.lower()]
            if "request" in recorded:
                content = operation["requestBody"]["content"]["application/json"]
                assert content["example"] == recorded["request"], name
                _fits(document, content["schema"], recorded["request"], name)
                shown += 1
            for status, answer in recorded.get("answers", {}).items():
                content = operation["responses"][status]["content"]["application/json"]
                assert content["example"] == answer, f"{name} {status}"
                _fits(document, content["schema"], answer, f"{name} {status}")
                shown += 1
    assert shown >= 80


def _fits(document: dict[str, Any], schema: dict[str, Any], value: Any, name: str) -> None:
    whole = {"components": {"schemas": document["components"]["schemas"]}, **schema}
    error = next(jsonschema_rs.Draft202012Validator(closed(whole), validate_formats=True).iter_errors(value), None)
    assert error is None, f"{name}: {error.message if error else ''}"
