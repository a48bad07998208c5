"""``python tests/deploy/confined.py UNIT PROGRAM ...``: runs a program under what a unit forbids it, without systemd.

No new privileges, no memory both writable and executable (PR_SET_MDWE, Linux 6.3), only the unit's system calls and
address families (libseccomp, which comes with systemd). Namespaces and what they hide are left to systemd. Exit code 77
when this machine can't confine anything.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, MDWE_REFUSE_EXEC_GAIN = 38, 65, 1
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO(EPERM)
EQUALS = 4  # SCMP_CMP_EQ
CAN_NOT = 77


class Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("other", ctypes.c_uint64),
    )


def settings(unit: Path) -> dict[str, list[str]]:
    """What the unit says under [Service], each in its order."""
    found: dict[str, list[str]] = {}
    text = unit.read_text().replace("\\\n", " ")
    for line in text[text.index("[Service]") :].splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            found.setdefault(name, []).append(value.strip())
    return found


def calls(name: str) -> set[str]:
    """The system calls of one of systemd's groups, and of those within it."""
    if name[0] != "@":
        return {name}
    said = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout
    within = [line.strip() for line in said.splitlines()[1:] if line.strip() and line.strip()[0] != "#"]
    return set().union(*map(calls, within))


def allowed(filters: list[str]) -> set[str]:
    """As systemd reads several lines of SystemCallFilter: the first says which kind of list it is."""
    found: set[str] = set()
    for line in filters:
        names = set().union(*(calls(name) for name in line.lstrip("~").split()))
        found = found - names if line[0] == "~" else found | names
    return found


def confine(unit: dict[str, list[str]]) -> None:
    libc, seccomp = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2")
    if unit["NoNewPrivileges"] == ["yes"] and libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if unit["MemoryDenyWriteExecute"] == ["yes"] and libc.prctl(PR_SET_MDWE, MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this kernel has no PR_SET_MDWE")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(REFUSE)))
    families = [getattr(socket, name) for name in " ".join(unit["RestrictAddressFamilies"]).split()]
    for name in sorted(allowed(unit["SystemCallFilter"])):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another architecture, or newer than the library
            continue
        rules = [Comparison(0, EQUALS, family, 0) for family in families] if name == "socket" else [None]
        for rule in rules:
            compared = (Comparison * 1)(rule) if rule else None
            action = ctypes.c_uint32(ALLOW)
            if seccomp.seccomp_rule_add_array(context, action, number, 1 if rule else 0, compared):
                raise OSError(f"libseccomp takes no rule for {name}")
    if seccomp.seccomp_load(context):
        raise OSError("this kernel takes no filter")


if __name__ == "__main__":
    try:
        confine(settings(Path(sys.argv[1])))
    except OSError as error:
        print(f"can't confine: {error}", file=sys.stderr)
        sys.exit(CAN_NOT)
    os.execv(sys.argv[2], sys.argv[2:])
