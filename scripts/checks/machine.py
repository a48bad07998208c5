"""The machine as this process sees it: Python and packages, files, memory, disk and clock."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from config.findings import Examination, Finding, good, skipped, weak, wrong
from config.settings import Core
from scripts.checks import backups, coturn
from scripts.checks.disk import room

PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent.parent
LOCKS = ROOT / "requirements"
UNIT = Path("/etc/systemd/system/mimu@.service")
# Open files; each socket is one. With fewer than the first the server runs out at some hundred phones; with more than
# the second the memory of a small machine runs out first (15 KiB each).
FEW_FILES, FILES = 1024, 16_384
FULL = 0.8
SPARE = 256  # open files other than sockets of clients: databases, logs, uploads, libraries
MEMORY = 256 << 20  # bytes: the server itself takes 90 MiB, two password hashes at a time 38, and its sockets the rest
UNSYNCHRONIZED, TIME_ERROR = 0x40, 5  # linux/timex.h: STA_UNSYNC, and adjtimex's return value for the same

PARTS = ("python", "packages", "user", "open files", "memory", "disk", "clock", *backups.PARTS, *coturn.PARTS)


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
        for finding in (*backups.findings(core), *coturn.findings(core)):
            yield finding

    return Examination("machine", "This machine", PARTS, look)


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < PYTHON:
        return wrong("python", f"Python {version} is too old.", "Use 3.11 or newer.")
    return good("python", f"Python {version}.")


def _packages(lock: Path) -> Finding:
    if not lock.exists():
        return skipped("packages", "The lock file is missing.")
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
        says = f"{len(other)} of {pinned} packages are not the tested versions: {', '.join(other[:3])}"
        return weak(
            "packages", says + (" …" if len(other) > 3 else "."), f"pip install -r {lock.parent.name}/{lock.name}"
        )
    return good("packages", f"All {pinned} packages are the locked versions.")


def locked(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and versions of a lock file, without those for some systems only."""
    for line in text.splitlines():
        found = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)\s*(;)?", line)
        if found and not found[3]:
            yield found[1], found[2]


def _user() -> Finding:
    if os.geteuid() == 0:
        says = "This is root, whose rights hide what the server's user may not do."
        return weak("user", says, "Run the doctor and the server as a separate user.")
    return good("user", "This is not root.")


def _open_files(root: Path) -> Finding:
    found = sorted(servers(root), key=lambda server: server.limit)
    unit = None if found else _unit_files(UNIT)
    if found:
        least = found[0]
        opened = "may open" if least.open is None else f"has {least.open:,} of"
        has = f"{opened} {least.limit:,} files" + (" open" if least.open is not None else "")
        soft, who = least.limit, f"The server (process {least.pid}) {has}:"
    elif unit is not None:
        soft, who = unit, f"{unit:,} open files by {UNIT.name}:"
    else:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        who = f"{soft:,} open files, if the server starts like this process:"
    if soft == resource.RLIM_INFINITY:
        return good("open files", "There is no limit.")
    says = f"{who} {max(0, soft - SPARE):,} sockets."
    do = "Raise the limit of the server: LimitNOFILE of systemd, ulimits of compose, ulimit -n."
    if soft < FEW_FILES or any((server.open or 0) > FULL * server.limit for server in found):
        return wrong("open files", says, do)
    return weak("open files", says, do) if soft < FILES else good("open files", says)


class Server(NamedTuple):
    """A running server of this installation: its limit of open files and their number. The number is None if it is
    hidden: under systemd's PrivateUsers each server has a user namespace."""

    pid: int
    limit: int
    open: int | None


def _unit_files(unit: Path) -> int | None:
    """Return LimitNOFILE of the servers' unit and its drop-ins (the last one counts), or None without a unit."""
    found = None
    for path in (unit, *sorted(unit.with_name(f"{unit.name}.d").glob("*.conf"))):
        with contextlib.suppress(OSError):
            for said in re.findall(r"(?m)^\s*LimitNOFILE\s*=\s*(\d+)", path.read_text()):
                found = int(said)
    return found


def servers(root: Path) -> Iterator[Server]:
    """Yield the running servers, by command and folder (Linux); if those are hidden, by the path of their Python."""
    number: int | None
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if not any(word.rpartition(b"/")[2] == b"server.py" for word in words[1:3]):
                continue
            limit = re.search(r"(?m)^Max open files +(\d+)", (process / "limits").read_text())
            try:
                if (process / "cwd").resolve(strict=True) != root:
                    continue
                number = len(list((process / "fd").iterdir()))
            except PermissionError:
                if not Path(words[0].decode(errors="replace")).is_relative_to(root):
                    continue  # another installation's
                number = None
        except OSError:  # it has ended
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
        if not limits:  # not Linux; without a control group the machine's memory counts
            return skipped("memory", "This system does not report its memory.")
    left = min(limits)
    says = f"{left >> 20:,} MiB are free."
    if left < MEMORY:
        return weak("memory", says, "Add memory, or run less beside the server.")
    return good("memory", says)


def _clock() -> Finding:
    state = synchronized()
    if state is None:
        return skipped("clock", "This system does not report whether its clock is synchronized.")
    if state:
        return good("clock", "The kernel reports a synchronized clock.")
    says = "The kernel reports that nothing synchronizes its clock."
    return weak("clock", says, "Run chrony or systemd-timesyncd here, or on the host of this container.")


class _Timex(ctypes.Structure):
    """struct timex of Linux, up to the last field that we read; the rest is padding."""

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
    """True if NTP synchronizes the kernel's clock; None if unknown. Uses adjtimex(2), which changes nothing here."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    timex = _Timex()
    answer = adjtimex(ctypes.byref(timex))
    return None if answer < 0 else answer != TIME_ERROR and not timex.status & UNSYNCHRONIZED
