"""Disks: free space, in bytes and in files."""

from __future__ import annotations

import os
from pathlib import Path

from config.findings import Finding, good, weak, wrong

# The server keeps 5 % of the disk free, at most 1 GiB, and rejects uploads with 507 below that
# (models/storage/local.py).
KEPT, KEPT_PART = 1 << 30, 0.05
SOON = 3  # times that: the operator has time to act
INODES = 0.05


def room(part: str, folder: Path, before: str = "") -> Finding:
    """Check the free space of the disk that holds ``folder``. Raises OSError."""
    disk = os.statvfs(folder)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    kept = min(KEPT, size * KEPT_PART)
    says = f"{before}{free / 2**30:.1f} GiB of {size / 2**30:.1f} are free."
    do = "Free space on that disk, or move to a larger one."
    if disk.f_files and disk.f_favail < disk.f_files * INODES:
        return wrong(part, f"{before}the disk has inodes for only {disk.f_favail:,} more files.", do)
    if free < kept:
        return wrong(part, f"{says} The server rejects uploads.", do)
    if free < SOON * kept:
        return weak(part, f"{says} Below {kept / 2**30:.1f} the server rejects uploads.", do)
    return good(part, says)
