"""certbot's hook: the files for nginx and coturn, and its commands, which fake docker and systemctl record here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.running import ROOT

HOOK = ROOT / "config" / "deploy" / "certbot" / "deploy-hook.sh"
ROOTLESS = "NOT TESTED that certbot's hook gives files away: only root can"


def renewed(place: Path, *, containers: bool) -> list[str]:
    """Run the hook as certbot does after a renewal. Returns the commands that it ran."""
    programs, lineage, commands = place / "bin", place / "live", place / "commands"
    programs.mkdir()
    lineage.mkdir()
    commands.touch()
    for name in ("fullchain.pem", "privkey.pem"):
        (lineage / name).write_text(f"a {name}\n")
    says = "case \"$*\" in *' ps '*) echo 0123456789ab;; esac\n" if containers else ""
    for name in ("docker", "systemctl"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {commands}\n{says}')
        (programs / name).chmod(0o755)
    # As on a machine without Debian's coturn.
    (programs / "id").write_text("#!/bin/sh\nexit 1\n")
    (programs / "id").chmod(0o755)
    done = subprocess.run(
        ["sh", HOOK],
        env={
            "PATH": f"{programs}:/usr/bin:/bin",
            "RENEWED_LINEAGE": str(lineage),
            "MIMU_TLS_DIR": str(place / "tls"),
            "MIMU_COMPOSE_DIR": str(place),
        },
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line for line in commands.read_text().splitlines() if " ps " not in line]


@pytest.mark.skipif(os.geteuid() != 0, reason=ROOTLESS)
def test_both_files_belong_to_the_user_of_the_containers(tmp_path: Path) -> None:
    commands = renewed(tmp_path, containers=True)
    for name in ("fullchain.pem", "privkey.pem"):
        path = tmp_path / "tls" / name
        assert path.read_text() == f"a {name}\n"
        found = path.stat()
        # coturn's container reads them as their owner; nginx's has root without its power over files, but its group.
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (10001, 0, 0o440)
    assert sorted(path.name for path in (tmp_path / "tls").iterdir()) == ["fullchain.pem", "privkey.pem"]
    compose = f"docker compose -f {tmp_path}/docker-compose.yml kill --signal"
    assert commands == [f"{compose} HUP nginx", f"{compose} USR2 coturn"]


@pytest.mark.skipif(os.geteuid() != 0, reason=ROOTLESS)
def test_without_containers_it_signals_through_systemd(tmp_path: Path) -> None:
    commands = renewed(tmp_path, containers=False)
    assert commands == [
        "systemctl reload nginx",
        "systemctl -q is-active coturn",
        "systemctl kill --kill-whom=main --signal=USR2 coturn",
    ]
