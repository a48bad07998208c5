"""The supervisor: systemd, told when the server serves and when it stops (sd_notify(3)), if it is what started us."""

from __future__ import annotations

import os
import socket


def tell(state: str) -> None:
    """Say ``READY=1`` or ``STOPPING=1``. Raises OSError when the supervisor's socket is not there."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address[0] == "@":
        address = "\0" + address[1:]  # in the kernel's own names, not in the file system
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.sendto(state.encode(), address)
