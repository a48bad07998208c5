"""Threads that do the loop's heavy work, and give way to it."""

from __future__ import annotations

import contextlib
import os
import threading


def processors() -> int:
    """How many threads can run at a time. More of those that compute would be no faster, and one may run while another,
    with the interpreter's lock, waits for the processor and the loop for both."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def step_back() -> None:
    """What such a thread begins with: from now on it runs whenever the loop does not.

    On Linux each thread has a policy of its own, and an idle one gives way at once; with a nice value alone a frame
    waits for the end of its time slice (p99 28 ms against 4 on one core).
    """
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
