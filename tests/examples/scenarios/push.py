"""Examples of ``/push``."""

from __future__ import annotations

from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    tell = recorder.ask
    _, bob = await recorder.people()
    await tell("PUT", "/push/tokens", {"provider": "apns", "token": "0a" * 32}, by=bob)
    await tell("GET", "/push/tokens", by=bob)
    hours = {"start": "22:00", "end": "07:00", "time_zone": "Europe/Berlin", "calls": False}
    await tell("PUT", "/push/settings", {"kinds": ["message_new", "call_offer"], "quiet_hours": hours}, by=bob)
    await tell("GET", "/push/settings", by=bob)
