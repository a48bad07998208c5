"""A real nginx with the shipped configuration, on ports of the loopback and with a certificate of the tests'."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tornado import netutil

from tests.deploy.relay import free_port
from tests.providers.certificates import DAY, certified
from tests.running import ROOT, json_lines

SHIPPED = ROOT / "config" / "deploy" / "nginx"
HOST, FILES_HOST = "localhost", "files.localhost"
PATIENCE = 10  # seconds to come up; it takes about 0.05


@dataclass(frozen=True)
class Proxy:
    folder: Path
    port: int
    http_port: int
    authority: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    @property
    def files_url(self) -> str:
        return f"https://{FILES_HOST}:{self.port}"

    def log_text(self) -> str:
        """Both logs."""
        return "".join((self.folder / name).read_text() for name in ("access.log", "error.log"))

    def requests(self, number: int = 0) -> list[dict[str, Any]]:
        """The lines of the access log, once there are so many: nginx writes one when a request has ended."""
        deadline = time.monotonic() + 5
        while True:
            lines = json_lines((self.folder / "access.log").read_text())
            if len(lines) >= number:
                return lines
            assert time.monotonic() < deadline, f"{len(lines)} lines, not {number}"
            time.sleep(0.01)


def program() -> str:
    """Where nginx is; skips the test when it is nowhere."""
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None or shutil.which("envsubst") is None:
        pytest.skip("NOT TESTED that nginx serves with our files: Debian: apt install nginx gettext-base")
    return found


def render(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What an operator runs."""
    return subprocess.run(
        ["sh", SHIPPED / "render.sh", folder],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=20,
    )


def here(folder: Path, port: int, http_port: int) -> None:
    """Nothing changed but where it listens, and where it keeps what the system's folders are for."""
    for path in [folder / "nginx.conf", *(folder / "conf.d").glob("*.conf")]:
        text = re.sub(r"(?m)^ +listen \[::\].*\n", "", path.read_text())
        text = re.sub(r"listen 443\b", f"listen 127.0.0.1:{port}", text)
        text = re.sub(r"listen 80\b", f"listen 127.0.0.1:{http_port}", text)
        path.write_text(text)
    main = folder / "nginx.conf"
    kept = "".join(
        f"    {name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main.write_text(main.read_text().replace("http {\n", f"http {{\n{kept}", 1))
    if os.geteuid() != 0:
        main.write_text(re.sub(r"(?m)^user .*$", "", main.read_text()))


def certificates(folder: Path, ends: timedelta = DAY) -> Path:
    """Put fullchain.pem and privkey.pem there, as certbot does; the authority's certificate."""
    authority, _ = certified(folder, ends=ends, names=(HOST, FILES_HOST, "127.0.0.1"))
    for name in ("fullchain.pem", "privkey.pem"):
        shutil.copy(folder / "server.pem", folder / name)
    return authority


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that nginx's workers may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="mimu-nginx-") as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


@contextlib.contextmanager
def proxying(
    *servers: str, files: str = "", changes: Mapping[str, str] | None = None, ends: timedelta = DAY
) -> Iterator[Proxy]:
    """nginx before these servers (``host:port``), with the shipped configuration in which only ``changes`` are made
    (a line, and what stands in its place, both without their semicolons). Its certificate ends so long from now."""
    nginx = program()
    with folder() as place:
        authority = certificates(place, ends)
        (place / "acme").mkdir()
        done = render(
            place,
            NGINX_HOST=HOST,
            NGINX_FILES_HOST=FILES_HOST if files else "",
            NGINX_TLS=str(place),
            NGINX_ACME=str(place / "acme"),
            NGINX_SERVER_A=servers[0],
            NGINX_SERVER_B=servers[-1],
            NGINX_FILES_SERVER=files or "127.0.0.1:9",
            NGINX_ACCESS_LOG=str(place / "access.log"),
            NGINX_ERROR_LOG=str(place / "error.log"),
        )
        assert (done.returncode, done.stderr) == (0, "")
        port, http_port = free_port(), free_port()
        here(place, port, http_port)
        conf = place / "conf.d" / "mimu.conf"
        for old, new in (changes or {}).items():
            assert f"{old};" in conf.read_text(), old
            conf.write_text(conf.read_text().replace(f"{old};", f"{new};"))
        command = [nginx, "-e", str(place / "error.log"), "-c", str(place / "nginx.conf"), "-g"]
        with (place / "output").open("wb") as output:
            process = subprocess.Popen(
                [*command, f"daemon off; pid {place}/nginx.pid;"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            deadline = time.monotonic() + PATIENCE
            while not (place / "nginx.pid").exists():
                assert process.poll() is None, (place / "error.log").read_text() + (place / "output").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            # Tornado's client trusts what its one context for the purpose trusts, and has no other way for sockets.
            netutil._client_ssl_defaults().load_verify_locations(authority)
            yield Proxy(place, port, http_port, authority, process)
            assert process.poll() is None
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
