"""Register two users and let one call the other: ``first_call.py [URL of the server]``."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import sys
from typing import Any
from uuid import uuid4

from nacl.public import PrivateKey
from nacl.signing import SigningKey
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8080"


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


async def register(name: str) -> dict[str, Any]:
    """Register a user with new keys. An app stores the private keys; this example drops them."""
    identity, signing = bytes(PrivateKey.generate().public_key), SigningKey.generate()
    prekeys = [bytes(PrivateKey.generate().public_key) for _ in range(11)]
    body = {
        "public_id": f"{name}_{secrets.token_hex(4)}",
        "password": secrets.token_urlsafe(),
        "identity_key": b64(identity),
        "fingerprint": hashlib.sha256(identity).hexdigest(),
        "signing_public_key": b64(bytes(signing.verify_key)),
        "registration_id": secrets.randbelow(2**14),
        "signed_prekey": {
            "key_id": 1,
            "public_key": b64(prekeys[0]),
            "signature": b64(signing.sign(prekeys[0]).signature),
        },
        "one_time_prekeys": [{"key_id": place, "public_key": b64(key)} for place, key in enumerate(prekeys[1:])],
    }
    headers = {"Content-Type": "application/json"}
    try:
        answer = await AsyncHTTPClient().fetch(
            f"{SERVER}/auth/register", method="POST", headers=headers, body=json.dumps(body), raise_error=False
        )
    except OSError:
        sys.exit(f"There is no server at {SERVER}. Start one in another terminal: make run")
    if answer.code != 201:
        sys.exit(f"The server answered {answer.code}: {answer.body.decode()}")
    signed_in: dict[str, Any] = json.loads(answer.body)
    return signed_in


async def connect(user: dict[str, Any]) -> WebSocketClientConnection:
    address = SERVER.replace("http", "ws", 1) + "/ws"
    return await websocket_connect(HTTPRequest(address, headers={"Authorization": f"Bearer {user['access_token']}"}))


async def main() -> None:
    alice, bob = await register("alice"), await register("bob")
    from_alice, from_bob = await connect(alice), await connect(bob)
    print("alice reads", await from_alice.read_message())  # ready
    print("bob reads  ", await from_bob.read_message())  # ready
    call = {"call_id": str(uuid4()), "encrypted_payload": b64(b"what only the two of them can read")}
    await from_alice.write_message(json.dumps({"type": "call_offer", "id": "1", "to_user_id": bob["user_id"], **call}))
    print("bob reads  ", await from_bob.read_message())  # call_offer: it rings
    print("alice reads", await from_alice.read_message())  # ack
    await from_bob.write_message(json.dumps({"type": "call_answer", **call}))
    print("alice reads", await from_alice.read_message())  # call_answer
    await from_alice.write_message(json.dumps({"type": "call_hangup", "call_id": call["call_id"]}))
    print("bob reads  ", await from_bob.read_message())  # call_hangup
    print(f"Look back: curl -s -H 'Authorization: Bearer {alice['access_token']}' {SERVER}/calls")


if __name__ == "__main__":
    asyncio.run(main())
