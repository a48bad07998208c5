"""Make a running server send one push, and explain the provider's answer: ``python -m scripts.push_test PUBLIC_ID``.

It goes to the device that was registered last; ``--token`` names another one of the account. The app receives
``{"type": "test"}``. Settings: DATABASE_URL, REDIS_URL; without them the embedded services of the server that runs in
MIMU_DATA_DIR. Exit codes: 0 the provider accepted it, 1 it did not, or no server sent it, 2 wrong usage, 78 wrong
settings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from redis.asyncio import Redis

if not __package__:  # python scripts/push_test.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import channels, settings
from config.settings import Core
from models import accounts, push
from models.database import Database, Row
from scripts import command

REPLY_TIMEOUT = 20  # seconds; a server gives a provider 12
OLDER_SERVER = "The server that sent it has an older version, and does not explain the answer."


async def run(options: argparse.Namespace, core: Core) -> int:
    redis_url = command.redis(core)
    async with Database(await command.cluster(core), max_connections=2).open() as db:
        possible = re.fullmatch("[A-Za-z0-9_]{3,32}", options.public_id)
        account = await accounts.find(db, options.public_id) if possible else None
        if account is None:
            return command.fail("there is no such user")
        rows = await push.tokens(db, account["id"])
    if options.list:
        _print_tokens(options, rows)
        return 0
    chosen = next((row for row in rows if options.token in (None, row["id"])), None)
    if chosen is None:
        return command.fail("the user has no such token" if options.token else "the user has no registered device")
    async with Redis.from_url(redis_url, socket_connect_timeout=2, socket_timeout=REPLY_TIMEOUT + 5) as redis:
        verdict = await _send(redis, account["id"], chosen["id"])
    if verdict is None:
        return command.fail(
            f"not sent within {REPLY_TIMEOUT} s: no server runs, or none has a key for {chosen['provider']}"
        )
    if options.json:
        print(json.dumps({"token_id": str(chosen["id"]), **verdict}))
    else:
        answer = f"{verdict['status']} {verdict['reason']}".strip() if verdict["status"] else verdict["reason"]
        print(f"{verdict['provider']}, after {verdict['milliseconds']} ms: {answer} ({verdict['outcome']})")
        print(verdict["explanation"])
    return 0 if verdict["outcome"] == "sent" else command.FAILED


async def _send(redis: Redis, user_id: UUID, token_id: UUID) -> dict[str, Any] | None:
    """Queue a push, and wait for the verdict with its explanation. Returns None if no server has sent it."""
    seconds, micros = await redis.time()
    reply = f"push:test:{uuid4()}"
    job = channels.push_test(user_id, token_id, seconds * 1000 + micros // 1000, REPLY_TIMEOUT, reply)
    # If no server has created the stream, none reads it.
    if await redis.xadd(channels.PUSH_NOW, {"job": job}, nomkstream=True) is None:
        return None
    answer: Any = await redis.blpop([reply], timeout=REPLY_TIMEOUT)
    return {"explanation": OLDER_SERVER, **json.loads(answer[1])} if answer else None


def _print_tokens(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    tokens = [
        {"id": str(row["id"]), "provider": row["provider"], "registered_at": row["registered_at"].isoformat()}
        for row in rows
    ]
    if options.json:
        print(json.dumps(tokens))
        return
    for token in tokens:
        print(f"{token['id']}  {token['provider']:9}  registered {token['registered_at']}")


def main() -> int:
    parser = command.parser("push_test", __doc__)
    parser.add_argument("public_id", metavar="PUBLIC_ID", help="the user; upper and lower case are the same")
    parser.add_argument("--token", type=UUID, help="the id of the device's token")
    parser.add_argument("--list", action="store_true", help="send nothing; show the account's tokens")
    command.common(parser)
    options = parser.parse_args()
    return command.run(lambda: run(options, settings.core(command.read_settings(options.env_file))), failed="failed")


if __name__ == "__main__":
    sys.exit(main())
