"""Schemathesis: a tool that knows nothing of us but the OpenAPI document, and tries whatever that allows and forbids.

``make test-thorough`` looks for five minutes, with chains of requests, and elsewhere each time.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from tests import canaries
from tests.client import Account, b64
from tests.files import tus
from tests.files.transfer import announce
from tests.running import ROOT, Services, json_lines, place, serving
from tests.thorough import THOROUGH

SECONDS = 300

# What the schemas allow and the server refuses all the same, each for a reason that no schema can say.
MORE_THAN_A_SCHEMA_SAYS = {
    "GET /auth/sessions": "a cursor is ours or it isn't",
    "GET /calls": "a cursor",
    "GET /chats": "a cursor",
    "GET /chats/{chat_id}/bans": "a cursor",
    "GET /chats/{chat_id}/participants": "a cursor",
    "GET /files": "a cursor",
    "GET /messages/{message_id}/reads": "a cursor",
    "GET /sync": "a cursor",
    "GET /users/me/blocks": "a cursor",
    "GET /users/me/verifications": "a cursor",
    "POST /auth/register": "keys are points of curves, and signed; names are reserved",
    "POST /auth/reset-password": "keys are points of curves",
    "POST /users/me/prekeys": "keys are points of curves, and signed",
    "POST /chats": "participants exist, and a direct chat has exactly one",
    "POST /chats/requests/decline": "either chat_ids or all",
    "POST /chats/{chat_id}/participants": "they exist",
    "POST /chats/{chat_id}/messages": "what is replied to exists",
    "POST /files": "413: larger than one's tier allows",
    "POST /files/tus": "Upload-Metadata has its own grammar",
    "PATCH /files/tus/{file_id}": "Upload-Checksum has its own grammar, and a file of others cannot be continued",
    "GET /downloads/{file_id}": "an address is signed",
    "HEAD /downloads/{file_id}": "it is signed",
    "PUT /uploads/{file_id}": "a body is as long as it was announced",
    "POST /subscriptions/purchase": "402: it was not paid",
    "POST /subscriptions/webhooks/stripe": "422: this server has no Stripe",
    "POST /users/{public_id}/verify": "users cannot verify themselves",
    "DELETE /users/{public_id}/verify": "nor that",
    "PUT /users/{public_id}/block": "nor block",
    "DELETE /users/{public_id}/block": "nor that",
    "PUT /users/me": "an avatar is an own file",
    "PUT /push/tokens": "each provider wants its own fields; keys are points of curves",
    "PUT /push/settings": "time zones exist",
    "PUT /messages/{message_id}/reactions/{emoji}": "an emoji is what the grammar of UTS 51 says",
    "DELETE /messages/{message_id}/reactions/{emoji}": "an emoji",
    "GET /ws": "an upgrade, which a client of HTTP doesn't make",
}
# What refuses, beside the statuses that Schemathesis knows to.
REFUSING = [400, 401, 402, 403, 404, 405, 409, 410, 412, 413, 415, 416, 422, 423, 426, 428, 429, 460, 507]


def configuration(alice: Account, leaving: Account, known: dict[str, str]) -> str:
    """Its settings, in TOML, of which JSON strings, numbers and lists are a part."""

    def line(name: str, value: Any) -> str:
        return f"{name} = {json.dumps(value)}"

    parts = [
        line("warnings", False),
        line("hooks", str(ROOT / "tests/schemathesis_hooks.py")),
        "[headers]",
        line("Authorization", f"Bearer {alice.token}"),
        "[generation]",
        line("allow-x00", False),
        "[parameters]",
        line('"header.X-PrID"', alice.public_id),
        *(line(f'"path.{name}"', value) for name, value in known.items()),
        "[checks.negative_data_rejection]",
        line("expected-statuses", REFUSING),
        "[checks.missing_required_header]",
        line("expected-statuses", REFUSING),
    ]
    for name in MORE_THAN_A_SCHEMA_SAYS:
        parts += ["[[operations]]", line("include-name", name), line("checks.positive_data_acceptance.enabled", False)]
    # After the logout the token is rejected.
    parts += ["[[operations]]", line("include-name", "POST /auth/logout")]
    parts += [line("headers.Authorization", f"Bearer {leaving.token}")]
    return "\n".join(parts) + "\n"


@pytest.mark.gen_test(timeout=SECONDS + 120)
async def test_nothing_in_the_document_is_found_to_be_wrong(
    services: Services, tmp_path: Path, log: io.StringIO
) -> None:
    async with place(services) as home, serving(home) as server:
        # Not the password of the examples, which it would try.
        alice, bob, leaving = [await Account(password=token_hex(8)).register(server.url) for _ in range(3)]
        group = (await alice.post("/chats", {"type": "group", "participants": [bob.public_id]})).json["id"]
        message = {"client_id": group, "encrypted_payload": b64(b"x"), "message_type": "text"}
        elsewhere = await Account(alice.public_id, alice.password, url=server.url).login()
        known = {
            "session_id": elsewhere.json["session_id"],  # the session it ends, which must not be its own
            "public_id": bob.public_id,
            "chat_id": group,
            "message_id": (await alice.post(f"/chats/{group}/messages", message)).json["id"],
            "file_id": (await announce(alice, b"content")).json["file_id"],
        }
        await tus.created(alice, 7)
        settings = tmp_path / "schemathesis.toml"
        settings.write_text(configuration(alice, leaving, known))
        asked = ["--phases", "examples,coverage,fuzzing", "--max-examples", "2", "--seed", "1"]
        if THOROUGH:
            asked = ["--phases", "examples,coverage,fuzzing,stateful", "--max-time", str(SECONDS)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", str(settings)),
            *("run", f"{server.url}/openapi.json", "--continue-on-failure", *asked),
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
        (tmp_path / "said.txt").write_text(said)
        assert process.returncode == 0, said[-20_000:]
        assert "Tested: 0" not in said
        canaries.clear()  # what it made up is none of ours
        mistakes = [entry for entry in json_lines(log.getvalue()) if entry.get("level") in ("error", "critical")]
        assert mistakes == []
