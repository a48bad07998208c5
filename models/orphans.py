"""Orphans: bytes in the storage whose row is gone, removed in batches. What can't be removed now is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from models import files
from models.database import Database
from models.storage import Storage, StorageAway
from models.sweeps import UNWATCHED, RowsFailed, Sweep, Sweeper

log = structlog.get_logger(__name__)

BATCH = 100
AT_ONCE = 8  # requests to the storage at a time: its answers are waited for, not its speed


def sweep(db: Database, storage: Storage, gone: Callable[[int], None]) -> Sweep:
    """Remove bytes; ``gone`` is called with the number of files of each batch. The work raises StorageAway when a whole
    batch could not be removed. Safe beside others: each batch is given to one of them."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(removal: files.Removal) -> Exception | None:
        async with turns:
            try:
                await storage.remove(removal.storage_key, removal.upload_id)
            except StorageAway as error:
                log.warning("file_not_removed", cause=str(error))
                return error
            except Exception as error:
                return error  # of this file: the others go on
            return None

    async def work(limit: int) -> int:
        batch = await files.removals(db, limit)
        errors = await asyncio.gather(*map(one, batch))
        done = [removal.storage_key for removal, error in zip(batch, errors, strict=True) if error is None]
        await files.removed(db, done)
        gone(len(done))
        # Where the storage was away the row says when to try again: it would be for all of them.
        failed = {
            removal.noted: error
            for removal, error in zip(batch, errors, strict=True)
            if error is not None and not isinstance(error, StorageAway)
        }
        if failed:
            raise RowsFailed(list(failed), next(iter(failed.values())))
        if batch and not done:
            raise StorageAway("nothing could be removed")
        return len(batch)

    return Sweep(files.REMOVALS, work, BATCH)


async def remove(
    db: Database, storage: Storage, *, seconds: float = float("inf"), tell: Callable[[int], None] = lambda _: None
) -> int:
    """Remove what is due, for about so many seconds at the most; how many files' bytes. Raises StorageAway when a
    whole batch could not be removed."""
    total = 0

    def gone(files: int) -> None:
        nonlocal total
        total += files
        tell(total)

    await Sweeper(db, UNWATCHED, sweep(db, storage, gone)).run(seconds)
    return total
