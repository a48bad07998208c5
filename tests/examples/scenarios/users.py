"""Examples of ``/users``."""

from __future__ import annotations

from tests.client import b64
from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    tell = recorder.ask
    alice, bob = await recorder.people()
    await tell("GET", "/users/search?q=bob", by=alice)
    await tell("GET", "/users/bob", by=alice)
    await tell("GET", "/users/nobody", by=alice)
    await tell("PUT", "/users/me", {"bio": "Only here to call.", "sealed_access_key": b64(b"k" * 16)}, by=bob)
    await tell("GET", "/users/me", by=bob)
