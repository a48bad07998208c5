"""Examples of TURN."""

from __future__ import annotations

from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    alice, _ = await recorder.people()
    await recorder.ask("GET", "/calls/turn-credentials", by=alice)
