"""Threads that do the loop's heavy work and give way to it, or wait in its place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def processors() -> int:
    """How many threads can run at a time. More of those that compute would be no faster, and one may run while another,
    with the interpreter's lock, waits for the processor and the loop for both."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def step_back() -> None:
    """What a thread begins with that computes for long without the interpreter's lock: from now on it runs whenever
    the loop does not.

    On Linux each thread has a policy of its own, and an idle one gives way at once; with a nice value alone a frame
    waits for the end of its time slice (p99 28 ms against 4 on one core).
    """
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def lean_back() -> None:
    """What a thread begins with that works in short pieces, and takes the lock in between: the loop comes first, but
    what holds the lock still gets its turn beside other processes.

    A tenth of the loop's weight (sched(7)) is enough for the loop to run at once when it wakes up. With the idle
    policy, or a nice value of 19, such a thread waited for PostgreSQL to be done with the lock in its hands.
    """
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        with contextlib.suppress(OSError):
            tid = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, tid, os.getpriority(os.PRIO_PROCESS, tid) + 10)


async def aside(work: Callable[[], T]) -> T:
    """What comes of work that waits for somebody else, in a thread of its own. Who is cancelled leaves it behind, and
    so does the program at its end: a stranger who answers a byte at a time keeps a thread of ``asyncio.to_thread`` for
    as long as he likes, and ``asyncio.run`` would wait for it."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def tell(come: T | None, error: Exception | None) -> None:
        if found.done():  # nobody waits any more
            return
        if error is None:
            found.set_result(come)  # type: ignore[arg-type]  # None only where T is
        else:
            found.set_exception(error)

    def run() -> None:
        come, error = None, None
        try:
            come = work()
        except Exception as failed:
            error = failed
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(tell, come, error)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await found
