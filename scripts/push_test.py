"""Have a running server send one push, and explain what the provider said: ``python -m scripts.push_test PUBLIC_ID``.

It goes to the device that was registered last, unless ``--token`` names another one of the account's. The app gets
``{"type": "test"}``. Settings: DATABASE_URL, REDIS_URL; without them the embedded services of the server that runs in
MIMU_DATA_DIR. Exit codes: 0 the provider took it, 1 it did not, or nobody sent it, 2 wrong usage, 78 wrong settings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
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

# By the provider's word, else by its status.
EXPLAINED = {
    "BadDeviceToken": "The token is none of this environment: a development build registers with environment sandbox.",
    "DeviceTokenNotForTopic": "The token belongs to another app than APNS_TOPIC names.",
    "TopicDisallowed": "The key may not be used for the app that APNS_TOPIC names.",
    "BadTopic": "APNS_TOPIC is not a bundle id.",
    "InvalidProviderToken": "Apple does not take the key: see APNS_KEY_FILE, APNS_KEY_ID and APNS_TEAM_ID.",
    "ExpiredProviderToken": "Apple says that our token is too old: is this machine's clock right?",
    "Unregistered": "The app was removed from the device, or the token was renewed.",
    "TooManyProviderTokenUpdates": "The key is used by too many servers at once, each with tokens of its own.",
    "TooManyRequests": "Too many pushes to this one device.",
    "UNREGISTERED": "The app was removed from the device, or the token was renewed.",
    "SENDER_ID_MISMATCH": "The token belongs to another Firebase project than the service account.",
    "INVALID_ARGUMENT": "The token is no FCM token.",
    "PERMISSION_DENIED": "The service account may not send messages in this project.",
    "THIRD_PARTY_AUTH_ERROR": "Firebase has no valid key of Apple's for this app.",
    "TokenEndpointRefused": "Google gives no access token: is the service account's key deleted, or the clock wrong?",
    "TokenEndpointUnreachable": "Google's token endpoint can't be reached from the server.",
    "PrivateAddress": "The endpoint's name leads to a private address, and nothing is sent there.",
    "Subscription": "The subscription can't be encrypted to, or its address can't be signed for.",
    "ConnectError": "The provider can't be reached: is there a firewall, or a certificate of an unknown authority?",
    "ConnectTimeout": "The provider can't be reached in time.",
    "TimeoutError": "The provider did not answer in time.",
}
BY_STATUS = {
    200: "Taken. If nothing arrives, look at the app, and at whether the device may show it.",
    201: "Taken. If nothing arrives, look at the distributor or browser.",
    400: "The provider finds the push malformed.",
    401: "The provider does not take our signature or token.",
    403: "The push service does not take our key: did the app subscribe with the one of GET /push/vapid?",
    404: "The provider does not know the token any more.",
    410: "The provider does not know the token any more.",
    413: "The provider finds the push too large.",
    429: "The provider receives too many requests.",
    500: "The provider made a mistake.",
    503: "The provider is overloaded or being repaired.",
}


def explained(verdict: Mapping[str, Any]) -> str:
    """What a verdict means, in a sentence."""
    words = EXPLAINED.get(verdict["reason"]) or BY_STATUS.get(verdict["status"])
    return words or "That is not an answer that its documentation explains."


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
        print(json.dumps({"token_id": str(chosen["id"]), **verdict, "explanation": explained(verdict)}))
    else:
        said = f"{verdict['status']} {verdict['reason']}".strip() if verdict["status"] else verdict["reason"]
        print(f"{verdict['provider']}, after {verdict['milliseconds']} ms: {said} ({verdict['outcome']})")
        print(explained(verdict))
    return 0 if verdict["outcome"] == "sent" else command.FAILED


async def _sent(redis: Redis, user_id: UUID, token_id: UUID) -> dict[str, Any] | None:
    """The verdict on a push; None when no server has taken it."""
    seconds, micros = await redis.time()
    reply = f"push:test:{uuid4()}"
    job = channels.push_test(user_id, token_id, seconds * 1000 + micros // 1000, REPLY_TIMEOUT, reply)
    # Where no server has made the stream there is none to read it.
    if await redis.xadd(channels.PUSH_NOW, {"job": job}, nomkstream=True) is None:
        return None
    answer: Any = await redis.blpop([reply], timeout=REPLY_TIMEOUT)
    return json.loads(answer[1]) if answer else None


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
