"""Scripts forked from a process that has imported their common modules, instead of started in a new interpreter.

A new interpreter spends half a second of a processor on those imports, and the tests run some hundreds of scripts. Each
of them is a separate process all the same, with its own environment, output and exit code.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import scripts
from tests.thorough import THOROUGH

# Whole programs where it is not the time that counts: in make test-thorough, and where make coverage measures them.
ON = not THOROUGH and "COVERAGE_PROCESS_CONFIG" not in os.environ
REQUEST = 1 << 16  # bytes


def run(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], given: str, seconds: float
) -> tuple[int, bytes, bytes]:
    """Run a module as a program; its exit code and what it wrote. Raises TimeoutError."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        stdin.write(given.encode())
        stdin.seek(0)
        request = json.dumps([module, list(arguments), dict(environment)]).encode()
        with far:
            socket.send_fds(_parent(), [request], [each.fileno() for each in (stdin, out, err, far)])
        near.settimeout(seconds)
        code = int(near.recv(REQUEST) or b"-1")
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


@functools.cache
def _parent() -> socket.socket:
    """The socket of the process that forks; it ends with ours."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        process = subprocess.Popen([sys.executable, "-m", __name__, str(far.fileno())], pass_fds=[far.fileno()])

    def end() -> None:
        near.close()
        process.wait(30)

    atexit.register(end)
    return near


class Forks:
    """The scripts that run, by their process ids, and the sockets on which their exit codes are awaited."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._running: dict[int, socket.socket] = {}
        signal.signal(signal.SIGCHLD, self._reap)

    def serve(self) -> None:
        while True:
            request, files, _, _ = socket.recv_fds(self._requests, REQUEST, 4)
            if not request:
                return
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until it is known who ended
            pid = os.fork()
            if pid == 0:
                self._become(files, *json.loads(request))
            self._running[pid] = socket.socket(fileno=files.pop())
            for file in files:
                os.close(file)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])

    def _become(self, files: list[int], module: str, arguments: list[str], environment: dict[str, str]) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        self._requests.close()
        for waiting in self._running.values():
            waiting.close()
        for number, file in enumerate(files[:3]):
            os.dup2(file, number)
        for file in files:
            os.close(file)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [module, *arguments]
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()

    def _reap(self, *_: Any) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with self._running.pop(pid) as waiting:
                waiting.send(b"%d" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    for each in pkgutil.iter_modules(scripts.__path__, "scripts."):
        if not each.ispkg and not each.name.endswith("__main__"):
            importlib.import_module(each.name)
    gc.freeze()  # a fork would copy what the collector touches
    with socket.socket(fileno=int(sys.argv[1])) as requests_:
        Forks(requests_).serve()
