"""The command of nginx's container, run here: with the capabilities that it has there, and no other."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.client import ask
from tests.deploy.nginx import HOST, SHIPPED, folder, here, program
from tests.deploy.relay import free_port
from tests.deploy.test_images import CAPABILITIES, composed, script, services
from tests.providers.certificates import certified

__all__ = ("composed", "services")  # fixtures: what compose makes of its file


def confined(name: str) -> list[str]:
    """What runs a command with the capabilities of a container, and without new privileges; as root only."""
    if os.geteuid() != 0:
        return []
    kept = ",".join(f"+{capability.lower()}" for capability in sorted(CAPABILITIES[name]))
    return ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{kept}"]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize("certificate", [False, True])
async def test_nginxs_container_starts_with_what_it_has(services: dict[str, Any], certificate: bool) -> None:
    nginx = services["nginx"]
    with folder() as place:
        if certificate:
            certified(place)
            (place / "tls").mkdir()
            for name in ("fullchain.pem", "privkey.pem"):
                # As the deploy hook leaves them: another's, and readable for root's group.
                shutil.move(shutil.copy(place / "server.pem", place / "copied"), place / "tls" / name)
                (place / "tls" / name).chmod(0o440)
                if os.geteuid() == 0:
                    os.chown(place / "tls" / name, 10001, 0)
        rendered, port, http_port = place / "run" / "mimu", free_port(), free_port()
        variables = {
            **nginx["environment"],
            "PATH": f"{Path(program()).parent}:{os.environ['PATH']}",
            "NGINX_HOST": HOST,
            "NGINX_TLS": str(place / "tls"),
            "NGINX_ACME": str(place),
            "NGINX_USER": "www-data",  # Debian's name for it
        }
        moved = {"/etc/mimu/nginx": str(SHIPPED), "/run/mimu": str(rendered)}
        entrypoint, option, text = script(nginx, moved)
        render, start = text.strip().splitlines()
        assert start.startswith("exec nginx ")
        subprocess.run([entrypoint, option, render], env=variables, check=True, stderr=subprocess.DEVNULL, timeout=20)
        here(rendered, port, http_port)
        # As many files as Docker lets it open, or this machine.
        wanted = f"worker_rlimit_nofile {nginx['ulimits']['nofile']};"
        main = (rendered / "nginx.conf").read_text()
        assert wanted in main
        most = min(nginx["ulimits"]["nofile"], resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        (rendered / "nginx.conf").write_text(main.replace(wanted, f"worker_rlimit_nofile {most};"))
        run = start.replace('-g "', f'-e stderr -g "pid {place}/pid; ')
        with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
            process = subprocess.Popen(
                [*confined("nginx"), entrypoint, option, run],
                env=variables,
                stdout=out,
                stderr=err,
            )
        try:
            deadline = time.monotonic() + 10
            while not (place / "pid").exists():
                assert process.poll() is None, (place / "err").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            [_, *words, address] = nginx["healthcheck"]["test"]
            assert words[0] == "wget"
            alive = address.replace("127.0.0.1", f"127.0.0.1:{http_port}")
            answer = await ask(alive.removesuffix("/nginx-alive"), "GET", "/nginx-alive")
            assert (answer.status, answer.text) == (200, "alive\n")
            assert (rendered / "conf.d" / "mimu.conf").exists() == certificate
            if os.geteuid() == 0:
                workers = subprocess.run(
                    ["ps", "--no-headers", "-o", "pid", "--ppid", str(process.pid)], capture_output=True, text=True
                ).stdout.split()
                assert workers
                for pid in map(int, workers):  # they have none of it
                    assert int(status(pid)["CapEff"], 16) == 0
                    assert status(pid)["Uid"].split()[0] != "0"
                kept = int(status(process.pid)["CapEff"], 16)
                assert kept.bit_count() == len(CAPABILITIES["nginx"])
            if certificate:  # a new certificate: SIGHUP, and it is still there
                process.send_signal(1)
                time.sleep(0.3)
                assert process.poll() is None
                assert (place / "err").read_text() == ""
        finally:
            process.send_signal(3)  # SIGQUIT, as the image has it
            assert process.wait(10) == 0
        assert (place / "out").read_text() == ""  # port 80 is not worth a line
