"""What every test may ask for: real PostgreSQL and Valkey, started once for the run."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import utils as redis_utils

from config import logs
from config.threads import run_only_when_idle
from handlers import passwords
from handlers.http import compression
from tests import canaries, conformance, order, thorough
from tests.running import ROOT, Services

# The least that Argon2 does. Separate programs and the tests of hashing use the parameters of production.
ARGON2, CHEAP = passwords.ARGON2, {"time_cost": 1, "memory_cost": 8, "parallelism": 1}


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(order)
    # pytest-tornado puts the loop back that was current before each test. Say that there was none: asyncio would make
    # one for it, which is never closed.
    asyncio.set_event_loop(None)
    thorough.configure_hypothesis()
    # Nearly every test registers users. One hash takes 30 ms of a processor, and its thread waits for an idle one, of
    # which there is none while other tests run: a registration took up to a second.
    passwords.ARGON2 = CHEAP
    passwords.run_only_when_idle = compression.run_only_when_idle = lambda: None
    # Each client of Redis looks its own version up in the files of the package.
    redis_utils.get_lib_version = functools.cache(redis_utils.get_lib_version)


@pytest.fixture
def real_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers in this process hash passwords as those in production do."""
    monkeypatch.setattr(passwords, "ARGON2", ARGON2)
    monkeypatch.setattr(passwords, "run_only_when_idle", run_only_when_idle)


@pytest.fixture(autouse=True)
def declared_frames() -> Iterator[None]:
    """Every frame that a socket of the test received is one that the reference declares."""
    conformance.faults.clear()
    yield
    assert not conformance.faults, conformance.faults[0]


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    """What the servers in this process log, all of it; no test may make them log a secret it sent."""
    canaries.clear()
    stream = io.StringIO()
    logging.disable(logging.NOTSET)  # a test may have run a script in this process, and the doctor logs nothing
    logs.configure("debug", stream)
    yield stream
    escaped = canaries.escaped(stream.getvalue())
    assert not escaped, f"the log bears {escaped}"


@pytest.fixture
def made_up_frames(declared_frames: None) -> Iterator[None]:
    """For tests that let the hub send frames of no feature."""
    yield
    conformance.faults.clear()


# What some runs side by side need at the most. A database is made there in 20 ms, on disks in 70 to 450.
ROOMY, MEMORY = 4 << 30, Path("/dev/shm")


def memory() -> Path | None:
    """A folder in memory, where it has room. The tests kill processes, and what those wrote stays there, too."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOMY else None


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users may enter. When the tests run as root, the user of PostgreSQL and Valkey cannot enter
    pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="mimu-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """PostgreSQL and Valkey of the embedded default, in a process that ends with us."""
    # Not pytest's own folder: it is closed to the unprivileged user that PostgreSQL runs as when we are root.
    folder = Path(tempfile.mkdtemp(prefix="mimu-tests-", dir=memory()))
    folder.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.services", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        addresses = json.loads(process.stdout.readline())
        yield Services(addresses["dsn"], addresses["redis"])
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
