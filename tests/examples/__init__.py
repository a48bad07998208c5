"""Examples: the requests and answers that the OpenAPI document shows, taken from runs of a real server.

``python -m tests.examples`` plays the scenario of each feature (tests/examples/scenarios) on a new server, and
writes plugins/*/examples.json and handlers/examples.json; tests/test_examples.py plays them again and compares. Keys
are the same in every run; ids, times and tokens are replaced by made-up ones.
"""

from __future__ import annotations

import importlib
import json
import pkgutil

from handlers.reference.openapi import HOUSE
from tests.examples import scenarios
from tests.examples.recorder import Json, Recorder
from tests.running import ROOT, Services, place, serving

FEATURES = sorted(module.name for module in pkgutil.iter_modules(scenarios.__path__))
FILES = {
    feature: ROOT / (feature if feature == "handlers" else f"plugins/{feature}") / "examples.json"
    for feature in FEATURES
}


async def play(services: Services, feature: str) -> dict[str, Json]:
    """The examples of a feature, by operation."""
    scenario = importlib.import_module(f"{scenarios.__name__}.{feature}")
    async with place(services) as home, serving(home) as server:
        recorder = Recorder(server, HOUSE if feature == "handlers" else feature)
        await scenario.play(recorder)
    return recorder.examples


def text(examples: dict[str, Json]) -> str:
    """As the files have it."""
    return json.dumps(examples, indent=1, ensure_ascii=False) + "\n"
