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


@pytest.mark.gen_test
async def test_the_examples_are_what_a_server_answers(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        played = await examples.play(running)
    assert {f"{folder}/examples.json" for folder in played} == {str(path.relative_to(ROOT)) for path in FILES}
    for folder, told in played.items():
        written = (ROOT / folder / "examples.json").read_text()
        assert json.loads(written) == told, f"{folder}: python -m tests.examples"
        assert written == examples.text(told), "not as it would be written"


@pytest.mark.gen_test
async def test_the_document_shows_them_and_they_fit_its_schemas(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        contract = contract_of(running.url)
        assert contract is not None
        document = contract.document
    shown = 0
    for path in FILES:
        for name, told in json.loads(path.read_text()).items():
            method, address = name.split(" ")
            operation = document["paths"][address][method.lower()]
            if "request" in told:
                content = operation["requestBody"]["content"]["application/json"]
                assert content["example"] == told["request"], name
                _fits(document, content["schema"], told["request"], name)
                shown += 1
            for status, answer in told.get("answers", {}).items():
                content = operation["responses"][status]["content"]["application/json"]
                assert content["example"] == answer, f"{name} {status}"
                _fits(document, content["schema"], answer, f"{name} {status}")
                shown += 1
    assert shown >= 80


def _fits(document: dict[str, Any], schema: dict[str, Any], value: Any, name: str) -> None:
    whole = {"components": {"schemas": document["components"]["schemas"]}, **schema}
    error = next(jsonschema_rs.Draft202012Validator(closed(whole), validate_formats=True).iter_errors(value), None)
    assert error is None, f"{name}: {error.message if error else ''}"
