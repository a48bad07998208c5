"""Examples of ``/calls``."""

from __future__ import annotations

from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    alice, bob = await recorder.people()
    call = recorder.made("a call")
    async with alice.socket() as at_alice, bob.socket() as at_bob:
        offer = {"call_id": call, "to_user_id": bob.user_id, "encrypted_payload": "AAAA"}
        assert (await at_alice.send("call_offer", **offer))["type"] == "ack"
        await at_bob.expect("call_offer")
        assert (await at_bob.send("call_hangup", call_id=call, reason="busy"))["type"] == "ack"
        await at_alice.expect("call_hangup")
    await recorder.ask("GET", "/calls", by=alice)
    await recorder.ask("GET", f"/calls/{call}", by=alice)
