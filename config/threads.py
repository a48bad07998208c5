"""Threads for heavy or blocking work; they must not delay the event loop."""

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
    """Return how many threads can run at a time. More threads that compute would not be faster: one could run while
    another, which holds the interpreter's lock, waits for the processor, and the loop waits for both."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_only_when_idle() -> None:
    """Thread initializer: run only while the event loop is idle. For long computations without the interpreter's lock.

    On Linux the scheduling policy is per thread, and an idle thread yields at once; with a nice value alone a frame
    waits for the end of its time slice (p99 28 ms against 4 on one core).
    """
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))


def lower_priority() -> None:
    """Thread initializer: lower the priority. For short pieces of work that take the interpreter's lock in between: the
    loop runs first, but a thread that holds the lock still gets its turn beside other processes.

    A tenth of the loop's weight (sched(7)) is enough for the loop to run at once when it wakes up. With the idle
    policy, or a nice value of 19, such a thread waited for PostgreSQL to be done with the lock in its hands.
    """
    if sys.platform == "linux":  # elsewhere the priority is per process
        with contextlib.suppress(OSError):
            tid = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, tid, os.getpriority(os.PRIO_PROCESS, tid) + 10)


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a daemon thread and return its result. A cancelled caller does not wait for the thread, nor
    does the program when it exits: a peer that sends one byte at a time can block a thread of ``asyncio.to_thread`` for
    any time, and ``asyncio.run`` would wait for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def set_outcome(result: T | None, error: Exception | None) -> None:
        if future.done():  # the caller was cancelled
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # None only where T is
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has been closed in the meantime
            loop.call_soon_threadsafe(set_outcome, result, error)

    threading.Thread(target=run, name="in_daemon_thread", daemon=True).start()
    return await future
