"""Examples of the routes that belong to no feature."""

from __future__ import annotations

from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    for path in ("/health", "/health/ready", "/health/live"):
        await recorder.ask("GET", path)
