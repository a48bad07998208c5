"""``python -m tests.bench.inserts DSN``: rows of messages inserted by nothing but asyncpg, as a yardstick.

Each of ten connections inserts and commits one row after the other. Prints a line when it is ready, then does what it
reads: ``start``, ``count`` (it prints how many rows there are since the start) and ``stop``. Ends with its input.
"""

from __future__ import annotations

import asyncio
import os
import sys
from uuid import uuid4

import asyncpg
import uvloop

CONNECTIONS = 10  # more gain nothing on one core
_TABLE = """
CREATE TABLE raw_messages (
    id uuid PRIMARY KEY, chat_id uuid NOT NULL, seq bigint NOT NULL, sender_id uuid NOT NULL, client_id uuid NOT NULL,
    encrypted_payload bytea NOT NULL, message_type text NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (chat_id, seq), UNIQUE (sender_id, client_id)
)
"""
_INSERT = """
INSERT INTO raw_messages (id, chat_id, seq, sender_id, client_id, encrypted_payload, message_type)
VALUES ($1, $2, $3, $4, $5, $6, 'text')
"""


class Inserts:
    def __init__(self) -> None:
        self.count = 0

    async def insert(self, connection: asyncpg.Connection) -> None:
        chat, sender, content = uuid4(), uuid4(), os.urandom(300)
        seq = 0
        while True:
            seq += 1
            await connection.execute(_INSERT, uuid4(), chat, seq, sender, uuid4(), content)
            self.count += 1


async def main(dsn: str) -> None:
    connections = [await asyncpg.connect(dsn) for _ in range(CONNECTIONS)]
    await connections[0].execute(_TABLE)
    asked = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    print("ready", flush=True)
    inserts, tasks = Inserts(), []
    async for line in asked:
        match line.strip():
            case b"start":
                inserts = Inserts()
                tasks = [asyncio.ensure_future(inserts.insert(connection)) for connection in connections]
            case b"count":
                print(inserts.count, flush=True)
            case b"stop":
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
