"""The machine, as this process sees it: Python and packages, files, memory, disk and clock."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from config import last_backup
from config.findings import Examination, Finding, good, skipped, weak, wrong
from config.settings import Core
from scripts.checks import coturn
from scripts.checks.disk import room

PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent.parent
LOCKS = ROOT / "requirements"
# Sockets, of which each is an open file. Below the first the server runs dry with some hundred phones; from the second
# on the memory of a small machine ends first (15 KiB each).
FEW_FILES, FILES = 1024, 16_384
FULL = 0.8
SPARE = 256  # open files that are no sockets of clients: databases, logs, uploads, libraries
MEMORY = 256 << 20  # bytes: the server itself takes 90 MiB, two password hashes at a time 38, and its sockets the rest
UNSYNCHRONIZED, TIME_ERROR = 0x40, 5  # linux/timex.h: STA_UNSYNC, and adjtimex's answer for the same

BACKUP_SECONDS = 36 * 3600  # since the last one: each night, and one that took half a day

PARTS = ("python", "packages", "user", "open files", "memory", "disk", "clock", "backup", *coturn.PARTS)


def examination(core: Core) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        yield _python()
        yield _packages(LOCKS / "server.txt")
        yield _user()
        yield _open_files(ROOT)
        yield _memory()
        folder = next(path for path in (core.mimu_data_dir, *core.mimu_data_dir.absolute().parents) if path.exists())
        yield room("disk", folder, f"{core.mimu_data_dir}: ")
        yield _clock()
        yield _backup(core, time.time())
        for finding in coturn.looked_at(core):
            yield finding

    return Examination("machine", "This machine", PARTS, look)


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < PYTHON:
        return wrong("python", f"Python {version} is too old.", "Use 3.11 or newer.")
    return good("python", f"Python {version}.")


def _packages(lock: Path) -> Finding:
    if not lock.exists():
        return skipped("packages", "The lock file is not here.")
    pinned, other = 0, []
    for name, version in locked(lock.read_text()):
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "missing"
        pinned += 1
        if installed != version:
            other.append(f"{name} {installed} for {version}")
    if other:
        says = f"{len(other)} of {pinned} packages are not those that were tested: {', '.join(other[:3])}"
        return weak(
            "packages", says + (" …" if len(other) > 3 else "."), f"pip install -r {lock.parent.name}/{lock.name}"
        )
    return good("packages", f"All {pinned} are as locked.")


def locked(text: str) -> Iterator[tuple[str, str]]:
    """Names and versions of a lock file; those that are for some systems only are left out."""
    for line in text.splitlines():
        found = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)\s*(;)?", line)
        if found and not found[3]:
            yield found[1], found[2]


def _user() -> Finding:
    if os.geteuid() == 0:
        says = "This is root, who may do everything: what the server may not do, does not show."
        return weak("user", says, "Run the doctor, and the server, as a user of its own.")
    return good("user", "This is an ordinary user.")


def _open_files(root: Path) -> Finding:
    found = sorted(servers(root), key=lambda server: server.limit)
    if found:
        least = found[0]
        soft, who = least.limit, f"The server (process {least.pid}) has {least.open:,} of {least.limit:,} files open:"
    else:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        who = f"{soft:,} open files, if the server is started as this was:"
    if soft == resource.RLIM_INFINITY:
        return good("open files", "There is no limit.")
    says = f"{who} {max(0, soft - SPARE):,} sockets."
    do = "Raise it where the server is started: LimitNOFILE of systemd, ulimits of compose, ulimit -n."
    if soft < FEW_FILES or any(server.open > FULL * server.limit for server in found):
        return wrong("open files", says, do)
    return weak("open files", says, do) if soft < FILES else good("open files", says)


class Server(NamedTuple):
    """A process of this installation's that runs on this machine: how many files it may open, and has open."""

    pid: int
    limit: int
    open: int


def servers(root: Path) -> Iterator[Server]:
    """Those whom this user may look at, by what was started and where (Linux)."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if not any(word.rpartition(b"/")[2] == b"server.py" for word in words[1:3]):
                continue
            if (process / "cwd").resolve(strict=True) != root:
                continue
            limit = re.search(r"(?m)^Max open files +(\d+)", (process / "limits").read_text())
            number = len(list((process / "fd").iterdir()))
        except OSError:  # somebody else's, or it has ended
            continue
        if limit:
            yield Server(int(process.name), int(limit[1]), number)


def _memory() -> Finding:
    limits = []
    try:
        meminfo = Path("/proc/meminfo").read_text()
        available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo)
        limits += [int(available[1]) << 10] if available else []
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            limits.append(int(most) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        if not limits:  # no Linux; without a group of its own the machine's counts
            return skipped("memory", "This system does not say how much there is.")
    left = min(limits)
    says = f"{left >> 20:,} MiB are left."
    if left < MEMORY:
        return weak("memory", says, "Give it more, or let less run beside it.")
    return good("memory", says)


def _clock() -> Finding:
    state = synchronized()
    if state is None:
        return skipped("clock", "This system does not say whether it is kept in time.")
    if state:
        return good("clock", "The kernel says that it is kept in time.")
    says = "The kernel knows of nobody who keeps its clock in time."
    return weak("clock", says, "Run chrony or systemd-timesyncd here, or on the host of this container.")


def _backup(core: Core, now: float) -> Finding:
    if not core.production:
        return skipped("backup", "Development needs none.")
    found = last_backup.last(core.mimu_data_dir)
    do = "See journalctl --unit mimu-backup, and docs/operations.md, Backup and restore."
    if found is None:
        return weak("backup", f"{core.mimu_data_dir} has no note of a backup by scripts.backup.", do)
    hours = (now - found.made_at) / 3600
    if now - found.made_at > BACKUP_SECONDS:
        return wrong("backup", f"The last backup is {hours:.0f} hours old.", do)
    if not found.whole:
        return wrong("backup", "The last backup lacks files that the database has.", do)
    return good("backup", f"The last backup is {max(0.0, hours):.0f} hours old.")


class _Timex(ctypes.Structure):
    """struct timex of Linux, as far as it is read; the rest is room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def synchronized() -> bool | None:
    """Whether NTP keeps the kernel's clock, or None when that can't be asked (adjtimex(2), which changes nothing)."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    timex = _Timex()
    answer = adjtimex(ctypes.byref(timex))
    return None if answer < 0 else answer != TIME_ERROR and not timex.status & UNSYNCHRONIZED
