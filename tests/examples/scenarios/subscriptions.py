"""Examples of ``/subscriptions``."""

from __future__ import annotations

from tests.client import b64
from tests.examples.recorder import Recorder
from tests.plugins.paying import purchase, voucher


async def play(recorder: Recorder) -> None:
    tell = recorder.ask
    alice, _ = await recorder.people()
    await tell("GET", "/subscriptions/tiers")
    prid = recorder.made("a prid")
    await tell("POST", "/subscriptions/purchase", purchase(alice, prid, "voucher", "no such code"))
    await tell("POST", "/subscriptions/purchase", purchase(alice, prid, "voucher", await voucher(recorder.server)))
    await tell("GET", "/subscriptions/restore", by=alice)
    asked = alice.signing.sign(f"mimu-sub-validate-v1|{prid}".encode()).signature
    await tell("POST", "/subscriptions/validate", {"prid": prid, "signature": b64(asked)})
