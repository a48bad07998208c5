"""Examples of ``/files``."""

from __future__ import annotations

import hashlib

from tests.examples.recorder import Recorder
from tests.files.transfer import send


async def play(recorder: Recorder) -> None:
    tell = recorder.ask
    alice, _ = await recorder.people()
    content = b"ciphertext of a picture"
    announced = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "media_type": "image/jpeg"}
    answer = (await tell("POST", "/files", announced, {"file_id": "a picture"}, by=alice)).json
    await tell("POST", f"/files/{answer['file_id']}/complete", by=alice)
    upload = answer["upload"]
    assert (await send(upload["method"], upload["url"], content, upload["headers"])).code == 204
    await tell("POST", f"/files/{answer['file_id']}/complete", by=alice)
    for path in (f"/files/{answer['file_id']}", "/files", "/files/usage"):
        await tell("GET", path, by=alice)
