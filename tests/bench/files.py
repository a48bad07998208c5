"""``python -m tests.bench.files``: large files up and down beside nginx, and what 50 uploads do to frames.

On the local disk. nginx serves the same file with sendfile, and takes one by its WebDAV module; both are on one core,
the load on the other. The load generator sends and takes bytes without looking at them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import uvloop

from tests.bench import machine, users
from tests.bench.calls import calls_of, settle
from tests.bench.load import Clock, paced
from tests.bench.machine import Target
from tests.bench.users import User
from tests.files.seaweed import free_ports
from tests.running import place

MIB = 1 << 20
SETTINGS = dict.fromkeys(("TIER_FREE_FILE_BYTES", "TIER_FREE_TOTAL_BYTES"), "8 GiB")
UPLOADS = 50
QUIET, RATE = 5, 200  # pairs in calls, and the frames that they send in a second
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(target: Target, user: User, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {user.token}", "Content-Type": "application/json"}
    with _DIRECT.open(urllib.request.Request(target.url + path, data, headers, method=method), timeout=120) as answer:
        return json.loads(answer.read() or b"null")


def put(url: str, path: Path, rate: float | None = None) -> float:
    """Send a file by PUT; the seconds it took until it was safe. ``rate`` in bytes/s holds it back."""
    parts = urlsplit(url)
    size = path.stat().st_size
    with socket.create_connection((parts.hostname, parts.port)) as connection, path.open("rb") as file:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        head = f"PUT {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/octet-stream\r\n"
        started = time.perf_counter()
        connection.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
        if rate is None:
            connection.sendfile(file)
        else:
            while block := file.read(64 * 1024):
                connection.sendall(block)
                time.sleep(random.uniform(0, 2) * len(block) / rate)  # phones don't keep step with each other
        status = connection.recv(65536)
        assert status[9:12] in (b"201", b"204"), status
        return time.perf_counter() - started


def get(url: str, token: str, size: int) -> float:
    """Take a file, and drop it; the seconds it took."""
    parts = urlsplit(url)
    block = bytearray(MIB)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        started = time.perf_counter()
        head = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n"
        connection.sendall(head.encode())
        taken = connection.recv_into(block)
        end = block.find(b"\r\n\r\n", 0, taken)
        assert block[9:12] == b"200", block[:taken]
        left = size - (taken - end - 4)
        while left > 0:
            taken = connection.recv_into(block)
            assert taken, "the answer is too short"
            left -= taken
        return time.perf_counter() - started


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[str | None]:
    """nginx with one worker on the servers' core; its address. None where it is not installed."""
    if shutil.which("nginx") is None:
        print("nginx is not installed (apt-get install nginx): measuring ours alone", file=sys.stderr)
        yield None
        return
    [port] = free_ports(1)
    (folder / "www").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "conf").write_text(
        f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; user root;
        events {{}}
        http {{
            access_log off; sendfile on; tcp_nopush on; client_max_body_size 0; client_body_temp_path {folder}/body;
            proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
            scgi_temp_path {folder}/s;
            server {{ listen 127.0.0.1:{port}; root {folder}/www; dav_methods PUT; }}
        }}"""
    )
    with machine.pinned(machine.SERVER_CORE):
        process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "conf")])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def upload(target: Target, user: User, path: Path, digest: str) -> tuple[float, str]:
    """Seconds that a file takes until it is complete, and its id."""
    started = time.perf_counter()
    announced = ask(target, user, "POST", "/files", {"size": path.stat().st_size, "sha256": digest})
    put(announced["upload"]["url"], path)
    ask(target, user, "POST", f"/files/{announced['file_id']}/complete", {})
    return time.perf_counter() - started, announced["file_id"]


async def throughput(target: Target, user: User, folder: Path, size: int, runs: int) -> None:
    """Print MB/s up and down beside nginx, and what it does to the server's memory."""
    path = folder / "content"
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    up: dict[str, list[float]] = {"ours": [], "nginx": []}
    down: dict[str, list[float]] = {"ours": [], "nginx": []}
    before, peak_before = target.rss(), target.peak()
    with nginx(folder / "nginx") as other:
        if other:
            shutil.copy(path, folder / "nginx" / "www" / "content")
        for _ in range(runs):
            seconds, file_id = await asyncio.to_thread(upload, target, user, path, digest)
            up["ours"].append(size / seconds / 1e6)
            if other:
                seconds = await asyncio.to_thread(put, f"{other}/{uuid4()}", path)
                up["nginx"].append(size / seconds / 1e6)
            for _ in range(2):
                url = f"{target.url}/files/{file_id}/content"
                down["ours"].append(size / await asyncio.to_thread(get, url, user.token, size) / 1e6)
                if other:
                    url = f"{other}/content"
                    down["nginx"].append(size / await asyncio.to_thread(get, url, user.token, size) / 1e6)
            await asyncio.to_thread(ask, target, user, "DELETE", f"/files/{file_id}")
            for left in (folder / "nginx" / "www").glob("*-*"):
                left.unlink()
    for what, figures in (("up", up), ("down", down)):
        ours, theirs = (statistics.median(figures[name] or [float("nan")]) for name in ("ours", "nginx"))
        print(f"{size / 1e6:,.0f} MB {what}: ours {ours:,.0f} MB/s, nginx {theirs:,.0f} MB/s, {ours / theirs:.2f} x")
    print(
        f"resident memory: {before / 1024:.0f} MiB before, at most {target.peak() / 1024:.0f} MiB (before: "
        f"{peak_before / 1024:.0f}), {target.rss() / 1024:.0f} MiB afterwards"
    )


@contextlib.asynccontextmanager
async def uploading(target: Target, people: list[User], path: Path, rate: float | None) -> AsyncIterator[None]:
    """Upload UPLOADS files, each as another user, from a separate process until the block ends."""
    size, digest = path.stat().st_size, "0" * 64
    urls = [ask(target, user, "POST", "/files", {"size": size, "sha256": digest})["upload"]["url"] for user in people]
    order = json.dumps({"urls": urls, "path": str(path), "rate": rate})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.files", "--uploading", stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(order.encode() + b"\n")
    await asyncio.sleep(2)
    try:
        yield
        assert process.returncode is None, "the uploads ended too early"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def uploader() -> None:
    """What ``uploading`` starts: a thread for each file, until it is killed. It gives way to who measures beside it."""
    os.nice(19)
    order = json.loads(sys.stdin.readline())
    for url in order["urls"]:
        threading.Thread(target=put, args=(url, Path(order["path"]), order["rate"])).start()


def _written(target: Target) -> int:
    """Bytes that the server has written to files (proc(5))."""
    return int(Path(f"/proc/{target.pid}/io").read_text().partition("write_bytes: ")[2].split()[0])


async def frames(target: Target, people: list[User], seconds: float) -> tuple[float, float]:
    """The p50 and p99 in ms of frames between users, RATE a second."""
    async with calls_of(target, people, QUIET) as pairs:
        clock = Clock()
        for number, pair in enumerate(pairs):
            pair.callee.take = lambda _, number=number: clock.came(number)

        def send(number: int) -> None:
            clock.sent(number % QUIET)
            pairs[number % QUIET].caller.send(pairs[number % QUIET].candidate)

        await paced(RATE, seconds, send)
        await settle(clock)
        return clock.percentile(0.5), clock.percentile(0.99)


async def beside(target: Target, people: list[User], folder: Path, seconds: float, runs: int) -> None:
    """Print what UPLOADS do to frames: at the pace of phones, and as fast as it goes."""
    path = folder / "slow"
    for name, rate, size in (("1 MB/s each", 1e6, 128), ("unheld", None, 2048)):
        with path.open("wb") as file:
            file.truncate(size * MIB)
        alone, busy = [], []
        for _ in range(runs):
            alone.append(await frames(target, people, seconds))
            async with uploading(target, people[-UPLOADS:], path, rate):
                written = _written(target)
                busy.append(await frames(target, people, seconds))
                written = (_written(target) - written) / seconds / 1e6
            for user in people[-UPLOADS:]:
                for file_ in ask(target, user, "GET", "/files"):
                    ask(target, user, "DELETE", f"/files/{file_['file_id']}")
        (a50, a99), (b50, b99) = (tuple(map(statistics.median, zip(*each, strict=True))) for each in (alone, busy))
        print(
            f"frames beside {UPLOADS} uploads, {name} ({written:,.0f} MB/s in all): p50 {a50:.2f} to {b50:.2f} ms, "
            f"p99 {a99:.2f} to {b99:.2f} ms, {b99 / a99:.1f} x"
        )


async def measure(size: int, seconds: float, runs: int) -> None:
    machine.take_load_core()
    async with machine.services() as (services, children), place(services) as where:
        people = await users.create(where, 2 * QUIET + UPLOADS, "bench")
        folder = Path(tempfile.mkdtemp(prefix="mimu-bench-files-"))
        try:
            async with machine.server(where, children, **SETTINGS) as target:
                await throughput(target, people[0], folder, size, runs)
            async with machine.server(where, children, **SETTINGS) as target:
                await beside(target, people, folder, seconds, runs)
        finally:
            shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.files", description=__doc__)
    parser.add_argument("--size", type=int, default=2048, help="of the large file, in MiB (default: 2048)")
    parser.add_argument("--seconds", type=float, default=10, help="of frames in each measurement (default: 10)")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--uploading", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.uploading:
        uploader()
        return 0
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(arguments.size * MIB, arguments.seconds, arguments.runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
