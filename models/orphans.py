"""Orphans: bytes in the storage whose row is gone, removed in batches. What can't be removed now is tried again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from models import files
from models.database import Database
from models.storage import Storage, StorageAway

log = structlog.get_logger(__name__)

BATCH = 100
AT_ONCE = 8  # requests to the storage at a time: its answers are waited for, not its speed


async def remove(
    db: Database, storage: Storage, *, seconds: float = float("inf"), tell: Callable[[int], None] = lambda _: None
) -> int:
    """Remove what is due, for about so many seconds at the most; how many files' bytes. Raises StorageAway when a
    whole batch could not be removed. Safe beside others: each batch is told to one of them."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(removal: files.Removal) -> bool:
        async with turns:
            try:
                await storage.remove(removal.storage_key, removal.upload_id)
            except StorageAway as error:
                log.warning("file_not_removed", cause=str(error))
                return False
            return True

    gone = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        batch = await files.removals(db, BATCH)
        if not batch:
            break
        done = await asyncio.gather(*(one(removal) for removal in batch))
        await files.removed(db, [removal.storage_key for removal, good in zip(batch, done, strict=True) if good])
        gone += sum(done)
        tell(gone)
        if not any(done):
            raise StorageAway("nothing could be removed")
    return gone
