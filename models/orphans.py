"""Orphans: bytes in the storage whose row is gone. They are removed in batches, and failures are tried again."""

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
CONCURRENCY = 8  # requests to the storage at a time: they mostly wait for responses


def sweep(db: Database, storage: Storage, removed: Callable[[int], None]) -> Sweep:
    """Return a sweep that removes bytes, and calls ``removed`` with the number of files of each batch. The work raises
    StorageAway if no file of a batch could be removed. Several instances may run it: each batch goes to one of them."""
    turns = asyncio.Semaphore(CONCURRENCY)

    async def one(removal: files.Removal) -> Exception | None:
        async with turns:
            try:
                await storage.remove(removal.storage_key, removal.upload_id)
            except StorageAway as error:
                log.warning("file_not_removed", cause=str(error))
                return error
            except Exception as error:
                return error  # about this file: the others go on
            return None

    async def work(limit: int) -> int:
        batch = await files.removals(db, limit)
        errors = await asyncio.gather(*map(one, batch))
        done = [removal.storage_key for removal, error in zip(batch, errors, strict=True) if error is None]
        await files.removed(db, done)
        removed(len(done))
        # If the storage was away, due_at says when to try again: it concerns all files, so none is blamed.
        failed = {
            removal.sweep_key: error
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
    db: Database, storage: Storage, *, seconds: float = float("inf"), report: Callable[[int], None] = lambda _: None
) -> int:
    """Remove bytes that are due, for about ``seconds`` at most. Returns the number of files. Raises StorageAway if no
    file of a batch could be removed."""
    total = 0

    def removed(files: int) -> None:
        nonlocal total
        total += files
        report(total)

    await Sweeper(db, UNWATCHED, sweep(db, storage, removed)).run(seconds)
    return total
