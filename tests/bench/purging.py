"""``python -m tests.bench.purging``: how long a purge takes when very many chats were deleted.

Fills a new database with ``--chats`` deleted chats of four messages and two events each, and as many that were
purged long ago, and prints how long the batches took and what is left. Exits with 1 when more than one of a hundred
took longer than a tenth of a second, or anything stays.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time

import asyncpg

from models.chats import purge
from models.database import Database
from tests.bench import machine
from tests.running import place

MOST = 0.1  # seconds a batch


async def measure(chats: int) -> int:
    """Fill, purge, print; the exit code."""
    async with machine.services() as (services, _), place(services) as shared, Database(shared.dsn, 2).open() as db:
        connection = await asyncpg.connect(shared.dsn)
        for statement in (
            f"""INSERT INTO chat_threads (id, type, deleted_at, last_seq)
                SELECT md5(n::text)::uuid, 'group', now() - n * interval '1 ms', 6
                FROM generate_series(1, 2 * {chats}) AS n""",
            "INSERT INTO chat_events SELECT id, 6, 1, 'chat_deleted' FROM chat_threads",
            f"INSERT INTO chat_purges SELECT id, deleted_at FROM chat_threads LIMIT {chats}",
            "INSERT INTO chat_events SELECT chat_id, 1, 1, 'chat_created' FROM chat_purges",
            """INSERT INTO messages (chat_id, encrypted_payload, message_type, seq, number, position, client_id,
                                     payload_hash)
               SELECT chat_id, decode(repeat('00', 200), 'hex'), 'x', n + 1, n, 1, gen_random_uuid(), 0
               FROM chat_purges, generate_series(1, 4) AS n""",
            "ANALYZE",
        ):
            await connection.execute(statement, timeout=600)
        took: list[float] = []
        while True:
            started = time.perf_counter()
            if not await purge.purge(db, purge.BATCH):
                break
            took.append(time.perf_counter() - started)
        idle = time.perf_counter() - started
        left = await connection.fetchval("SELECT count(*) FROM messages")
        left += await connection.fetchval("SELECT count(*) FROM chat_events") - 2 * chats
        left += await connection.fetchval("SELECT count(*) FROM chat_purges")
        await connection.close()
    slow = sorted(took)[int(len(took) * 0.99)]
    print(f"{chats} chats purged in {sum(took):.1f} s, {len(took)} batches")
    print(f"a batch: median {statistics.median(took) * 1000:.0f} ms, 99th percentile {slow * 1000:.0f} ms")
    print(f"with nothing to do: {idle * 1000:.1f} ms; rows left: {left}")
    return int(slow > MOST or left > 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.purging", description=__doc__)
    parser.add_argument("--chats", type=int, default=400_000, help="deleted chats to purge (400000)")
    return asyncio.run(measure(parser.parse_args().chats))


if __name__ == "__main__":
    sys.exit(main())
