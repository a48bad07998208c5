"""Examples of verifications and blocks."""

from __future__ import annotations

from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    tell = recorder.ask
    alice, bob = await recorder.people()
    compared = {"verified_fingerprint": bob.fingerprint, "method": "qr_code", "notes": "At the station."}
    await tell("POST", "/users/bob/verify", compared, by=alice)
    await tell("POST", "/users/bob/verify", {**compared, "verified_fingerprint": "0" * 64}, by=alice)
    await tell("GET", "/users/me/verifications", by=alice)
    await tell("PUT", "/users/alice/block", by=bob)
    await tell("GET", "/users/me/blocks", by=bob)
    await tell("DELETE", "/users/alice/block", by=bob)
