"""Examples of prekeys."""

from __future__ import annotations

from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    alice, bob = await recorder.people()
    await recorder.ask("GET", "/users/bob/prekeys", by=alice)
    await recorder.ask("POST", "/users/me/prekeys", {"one_time_prekeys": [bob.prekey(7)]}, by=bob)
    await recorder.ask("GET", "/users/me/prekeys", by=bob)
