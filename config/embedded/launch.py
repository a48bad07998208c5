"""Become another program: in a new session, as an ordinary user, and ended by a signal if the parent dies.

Run as ``python launch.py <parent's pid> <signal> <user or ''> <folder> <program> <argument>...``. This is a separate
program, not a ``preexec_fn``: Python code between fork and exec can deadlock in a process with threads.
"""

import ctypes
import os
import pwd
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: str, orphaned: str, user: str, folder: str, *program: str) -> None:
    os.setsid()  # Ctrl-C in a terminal goes to the server, which then stops this program
    os.umask(0o077)
    if user:
        entry = pwd.getpwnam(user)
        try:
            os.initgroups(user, entry.pw_gid)
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        except PermissionError:
            sys.exit(f"Root may not become the user {user} here: start Mimu as an ordinary user.")
    for path in (folder, program[0]):
        for way in (*reversed(Path(path).parents), Path(path)):
            if not os.access(way, os.X_OK):
                sys.exit(
                    f"{way} is closed to the user {user or os.geteuid()}, who runs {Path(program[0]).name}. "
                    f"Open it (chmod o+x {way}), or choose another place for "
                    f"{'MIMU_DATA_DIR' if path == folder else 'the installation'}, or start Mimu as an ordinary user."
                )
    os.chdir(folder)
    if sys.platform == "linux":
        # A server started with & in a script ignores SIGINT and SIGQUIT, and a child inherits that.
        signal.signal(int(orphaned), signal.SIG_DFL)
        # After setuid, which clears it; exec keeps it. It follows the parent's thread, not its process.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(orphaned), 0, 0, 0)
        if os.getppid() != int(parent):
            sys.exit("The server died first.")
    os.execv(program[0], program)


if __name__ == "__main__":
    main(*sys.argv[1:])
