"""Have a running server send one push, and show what the provider said: ``python -m scripts.push_test PUBLIC_ID``.

It goes to the device that was registered last, unless ``--token`` names another one of the account's. The app gets
``{"type": "test"}``. Settings: DATABASE_URL, REDIS_URL; without them the embedded services of the server that runs in
MIMU_DATA_DIR. Exit codes: 0 the provider took it, 1 it did not, or nobody sent it, 2 wrong usage, 78 wrong settings.
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
OLDER_SERVER = "The server that sent it has an older version, and does not explain this."


async def run(options: argparse.Namespace, core: Core) -> int:
    redis_url = command.redis(core)
    async with Database(await command.cluster(core), max_connections=2).open() as db:
        possible = re.fullmatch("[A-Za-z0-9_]{3,32}", options.public_id)
        found = await accounts.find(db, options.public_id) if possible else None
        if found is None:
            return command.fail("there is no such user")
        rows = await push.tokens(db, found["id"])
    if options.list:
        _show(options, rows)
        return 0
    chosen = next((row for row in rows if options.token in (None, row["id"])), None)
    if chosen is None:
        return command.fail("they have no such token" if options.token else "they have no device registered")
    async with Redis.from_url(redis_url, socket_connect_timeout=2, socket_timeout=REPLY_TIMEOUT + 5) as redis:
        verdict = await _sent(redis, found["id"], chosen["id"])
    if verdict is None:
        return command.fail(
            f"nobody sent it within {REPLY_TIMEOUT} s: no server runs, or none has a key for {chosen['provider']}"
        )
    if options.json:
        print(json.dumps({"token_id": str(chosen["id"]), **verdict}))
    else:
        said = f"{verdict['status']} {verdict['reason']}".strip() if verdict["status"] else verdict["reason"]
        print(f"{verdict['provider']}, after {verdict['milliseconds']} ms: {said} ({verdict['outcome']})")
        print(verdict["explanation"])
    return 0 if verdict["outcome"] == "sent" else command.FAILED


async def _sent(redis: Redis, user_id: UUID, token_id: UUID) -> dict[str, Any] | None:
    """The verdict on a push, with what it means; None when no server has taken it."""
    seconds, micros = await redis.time()
    reply = f"push:test:{uuid4()}"
    job = channels.push_test(user_id, token_id, seconds * 1000 + micros // 1000, REPLY_TIMEOUT, reply)
    # Where no server has made the stream there is none to read it.
    if await redis.xadd(channels.PUSH_NOW, {"job": job}, nomkstream=True) is None:
        return None
    answer: Any = await redis.blpop([reply], timeout=REPLY_TIMEOUT)
    return {"explanation": OLDER_SERVER, **json.loads(answer[1])} if answer else None


def _show(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    shown = [
        {"id": str(row["id"]), "provider": row["provider"], "registered_at": row["registered_at"].isoformat()}
        for row in rows
    ]
    if options.json:
        print(json.dumps(shown))
        return
    for row in shown:
        print(f"{row['id']}  {row['provider']:9}  registered {row['registered_at']}")


def main() -> int:
    parser = command.parser("push_test", __doc__)
    parser.add_argument("public_id", metavar="PUBLIC_ID", help="whose device, without regard to case")
    parser.add_argument("--token", type=UUID, help="the id of the device's token")
    parser.add_argument("--list", action="store_true", help="send nothing; show the account's tokens")
    command.common(parser)
    options = parser.parse_args()
    return command.run(lambda: run(options, settings.core(command.read_settings(options.env_file))), failed="failed")


if __name__ == "__main__":
    sys.exit(main())
