"""The supervisor: notify systemd that the server serves, that its event loop runs, and that it stops (sd_notify(3))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

# Notifications within the supervisor's timeout: two may be lost.
NOTIFICATIONS_PER_TIMEOUT = 3


def notify(state: str) -> None:
    """Send ``READY=1``, ``STOPPING=1`` or ``WATCHDOG=1``. Raises OSError when the supervisor's socket is not there."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address[0] == "@":
        address = "\0" + address[1:]  # an abstract socket, which has no file
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.sendto(state.encode(), address)


def watchdog_seconds() -> float | None:
    """Return the seconds of silence after which the supervisor kills us (WatchdogSec=), or None if it does not."""
    microseconds, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not microseconds.isdecimal() or not int(microseconds) or process not in (None, "", str(os.getpid())):
        return None
    return int(microseconds) / 1e6


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[None]:
    """Report that the server serves, then regularly that its event loop runs, and after the block that it stops. A loop
    that hangs reports nothing, and the supervisor restarts the server."""
    seconds = watchdog_seconds()
    notify("READY=1")
    watchdog = asyncio.create_task(_notify_watchdog(seconds / NOTIFICATIONS_PER_TIMEOUT)) if seconds else None
    try:
        yield
    finally:
        notify("STOPPING=1")  # from here on systemd counts TimeoutStopSec
        if watchdog is not None:
            watchdog.cancel()


async def _notify_watchdog(every: float) -> None:
    while True:
        with contextlib.suppress(OSError):  # the socket is full or gone; the next notification may succeed
            notify("WATCHDOG=1")
        await asyncio.sleep(every)
