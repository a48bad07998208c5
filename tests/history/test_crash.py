"""Cursors and a crash of PostgreSQL, which gives the ids of transactions that were rolled back once more."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.bench import users
from tests.client import Answer, ask, b64
from tests.history.stage import stage


@pytest.mark.gen_test(timeout=120)
async def test_a_cursor_from_before_a_crash_skips_nothing() -> None:
    folder = Path(tempfile.mkdtemp(prefix="mimu-crash-"))
    folder.chmod(0o755)  # PostgreSQL runs as an ordinary user when we are root
    try:
        async with stage(folder, 1) as theatre:
            alice, bob = await users.create(theatre.place, 2, "crash")
            url = theatre.instances[0].url

            async def surely(method: str, path: str, body: Any = None, token: str = alice.token) -> Answer:
                while (answer := await ask(url, method, path, body, token)).status == 503:
                    pass
                return answer

            direct = {"type": "direct", "participants": [bob.public_id]}
            chat = (await surely("POST", "/chats", direct)).json["id"]

            async def post() -> int:
                body = {"client_id": str(uuid4()), "encrypted_payload": b64(b"hi"), "message_type": "text"}
                return int((await surely("POST", f"/chats/{chat}/messages", body)).json["seq"])

            await post()
            connection = await asyncpg.connect(theatre.postgres.dsn)
            for _ in range(50):  # as requests do that are refused half-way
                rolled_back = connection.transaction()
                await rolled_back.start()
                await connection.execute("SELECT pg_current_xact_id()")
                await rolled_back.rollback()
            cursor = (await surely("GET", "/sync", token=bob.token)).json["cursor"]
            # Before the WAL writer has flushed them to the disk, 0.2 s at most.
            await theatre.postgres.kill()
            await theatre.whole()
            sent = [await post() for _ in range(60)]
            answer = await surely("GET", f"/sync?cursor={cursor}", token=bob.token)
            assert answer.status == 200, answer.text
            assert [event["seq"] for event in answer.json["events"]] == sent
            connection.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
