"""PostgreSQL and Valkey for a test run, as a separate process: ``python -m tests.services FOLDER``.

Prints one line of JSON with their addresses when they are up, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from config import embedded, logs


async def main(folder: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(embedded.postgres(folder))
        redis = await stack.enter_async_context(embedded.valkey(folder))
        print(json.dumps({"dsn": dsn, "redis": redis}), flush=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
        await ended.wait()


if __name__ == "__main__":
    logs.configure("warning")
    asyncio.run(main(Path(sys.argv[1])))
