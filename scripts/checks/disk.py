"""Disks: how much is left on one, in bytes and in files."""

from __future__ import annotations

import os
from pathlib import Path

from config.findings import Finding, good, weak, wrong

# The server keeps 5 % of the disk of files free, at most 1 GiB, and tells uploads 507 then (models/storage/local.py).
KEPT, KEPT_PART = 1 << 30, 0.05
SOON = 3  # times that: somebody has time to act
INODES = 0.05


def room(part: str, folder: Path, before: str = "") -> Finding:
    """What is left on the disk that ``folder`` lies on. Raises OSError."""
    disk = os.statvfs(folder)
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    kept = min(KEPT, size * KEPT_PART)
    says = f"{before}{free / 2**30:.1f} GiB of {size / 2**30:.1f} are free."
    do = "Make room on that disk, or move to a larger one."
    if disk.f_files and disk.f_favail < disk.f_files * INODES:
        return wrong(part, f"{before}only {disk.f_favail:,} more files fit on the disk (inodes).", do)
    if free < kept:
        return wrong(part, f"{says} Uploads are refused.", do)
    if free < SOON * kept:
        return weak(part, f"{says} At {kept / 2**30:.1f} uploads are refused.", do)
    return good(part, says)
