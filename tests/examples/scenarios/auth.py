"""Examples of ``/auth``."""

from __future__ import annotations

import hashlib

from tests.client import Account, b64
from tests.examples.recorder import Recorder


async def play(recorder: Recorder) -> None:
    tell = recorder.ask
    await tell("GET", "/auth/available?public_id=alice")
    alice, bob = await recorder.people()
    credentials = {"public_id": "alice", "password": alice.password}
    answer = await tell("POST", "/auth/login", credentials)
    refreshed = await tell("POST", "/auth/refresh", {"refresh_token": answer.json["refresh_token"]})
    await tell("POST", "/auth/login", {**credentials, "password": "a wrong one"})
    app = {"X_Platform": "ios", "X_Client_Version": "1.4.0"}
    reset = {"identity_key": b64(bob.identity_key), "new_password": "a longer password"}
    challenge = (await tell("POST", "/auth/reset-password", reset)).json["challenge"]
    text = f"mimu-reset-v1|{reset['identity_key']}|{challenge}|{hashlib.sha256(b'a longer password').hexdigest()}"
    signature = b64(bob.signing.sign(text.encode()).signature)
    proof = {**reset, "challenge": challenge, "signature": signature}
    bob._keep((await tell("POST", "/auth/reset-password", proof, **app)).json)
    change = {"old_password": "a longer password", "new_password": bob.password}
    await tell("POST", "/auth/change-password", change, by=bob)
    await tell("GET", "/auth/sessions", by=bob)
    alice_elsewhere = Account(url=alice.url, token=refreshed.json["access_token"])
    await tell("POST", "/auth/logout", {"all": False}, by=alice_elsewhere)
