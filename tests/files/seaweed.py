"""SeaweedFS: a real S3 server on loopback, which checks signatures, their expiry and what they cover."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from models.storage.sigv4 import Signer

ACCESS, SECRET = "mimu-tests", secrets.token_hex(20)
PATIENCE = 60.0  # seconds; it takes 8 on a quiet machine


def free_ports(number: int) -> list[int]:
    """Free ports for SeaweedFS. The port 10,000 above each is free as well, for gRPC; all lie below the ephemeral
    ports of the system."""
    found: list[int] = []
    for port in range(11_000 + secrets.randbelow(9_000), 22_000):
        with contextlib.suppress(OSError):
            for taken in (port, port + 10_000):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", taken))
            found.append(port)
        if len(found) == number:
            return found
    raise AssertionError("no free ports")


class Seaweed:
    """A server that can be stopped and started again on the same port, with what it has stored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.master, self.volume, self.filer, self.port = free_ports(4)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        identity = {
            "name": "mimu",
            "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self._folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    Path(sys.executable).parent / "weed",
                    "server",
                    f"-dir={self._folder}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    f"-master.port={self.master}",
                    "-master.volumeSizeLimitMB=256",
                    f"-volume.port={self.volume}",
                    "-volume.max=100",
                    f"-filer.port={self.filer}",
                    "-s3",
                    f"-s3.port={self.port}",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    f"-s3.config={config}",
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "SeaweedFS does not start"
            time.sleep(0.2)

    def _answers(self) -> bool:
        """True if it stores an object: it answers requests long before it can store any."""
        signer = Signer(self.endpoint, "probe", "us-east-1", ACCESS, SECRET)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with contextlib.suppress(urllib.error.HTTPError):  # the bucket is there already
                opener.open(urllib.request.Request(signer.sign("PUT", "", 60), method="PUT"), timeout=2).close()
            put = urllib.request.Request(signer.sign("PUT", "object", 60), b"content", method="PUT")
            opener.open(put, timeout=2).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """It takes connections, and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def settings(self) -> dict[str, str]:
        """The settings of a server; the bucket is made by the first one. One is enough: no two files have one key, and
        SeaweedFS sets volumes aside for each bucket, of which it has only so many."""
        return {
            "S3_ENDPOINT": self.endpoint,
            "S3_BUCKET": "files",
            "S3_ACCESS_KEY": ACCESS,
            "S3_SECRET_KEY": SECRET,
        }


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    server = Seaweed(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
