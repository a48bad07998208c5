"""The files of coturn: scripts.turnserver_conf, the check before a start, and the installation."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from plugins.turn.client import Client, Forged, Refused, connected
from scripts.checks import coturn
from tests.deploy.relay import SHIPPED, folder, free_port, here, relaying, running, turnserver
from tests.running import ROOT
from tests.scripts.program import script

CHECK = ROOT / "config" / "deploy" / "coturn" / "check.sh"
SERVICES = ("nginx", "prometheus", "pgbouncer", "haproxy", "redis-server")
INSTALL = ROOT / "tests" / "install_programs.sh"
UNPRIVILEGED_UID = 65534

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED whose the file is: only root gives files away")


def checked(path: Path, uid: int | None = None) -> subprocess.CompletedProcess[str]:
    """What the unit runs before coturn, as the user ``uid``."""
    become = [] if uid is None else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return subprocess.run([*become, "/bin/sh", CHECK, path], capture_output=True, text=True, timeout=20)


@root_only
@pytest.mark.gen_test
async def test_a_file_that_coturn_can_not_read_opens_it_and_the_check_refuses_it() -> None:
    """coturn starts with its defaults then: that is what the check is for."""
    program = turnserver()
    with folder() as place:
        path, port = place / "turnserver.conf", free_port()
        path.write_text(here(SHIPPED.read_text(), "127.0.0.1", port, free_port()))
        path.chmod(0o600)
        command = [program, "-c", str(path), "-L", "127.0.0.1", "-p", str(port), "--no-tls", "--no-dtls", "--no-cli"]
        command = [
            "setpriv",
            f"--reuid={UNPRIVILEGED_UID}",
            f"--regid={UNPRIVILEGED_UID}",
            "--clear-groups",
            *command,
            f"--userdb={place}/db",
        ]
        async with running([*command, f"--pidfile={place}/pid"], "127.0.0.1", port, place / "log"):
            assert await anonymous(port) is None, "coturn has mended this by itself"
        refused = checked(path, UNPRIVILEGED_UID)
        assert refused.returncode == 78
        assert "can't be read" in refused.stderr
        path.chmod(0o644)
        assert (checked(path, UNPRIVILEGED_UID).returncode, checked(path, UNPRIVILEGED_UID).stderr) == (0, "")


async def anonymous(port: int) -> int | None:
    """Request a relay without credentials. Returns the error code, or None if coturn grants one."""
    async with connected("udp", "127.0.0.1", port) as line:
        try:
            await Client(line, "", "").allocate()
        except Refused as refused:
            return refused.code
        except Forged:  # it is given without any signature
            return None
    return None


@pytest.mark.gen_test
async def test_the_written_configuration_gives_strangers_no_relay(tmp_path: Path) -> None:
    secret, output = secrets.token_hex(32), tmp_path / "turnserver.conf"
    done = await script(
        None, "turnserver_conf", "--output", str(output), TURN_SECRET=secret, MIMU_DATA_DIR=str(tmp_path)
    )
    assert done.code == 0, done.err
    assert checked(output).returncode == 0
    async with relaying(conf=output.read_text()) as relay:
        assert await anonymous(relay.port) == 401
        await relay.allocate(*relay.credentials(uuid4(), secret))


@root_only
@pytest.mark.gen_test(timeout=60)
async def test_a_file_that_is_replaced_keeps_its_owner_its_mode_and_the_lines_of_its_operator(tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "turnserver.conf", tmp_path / "elsewhere.conf"
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    output.symlink_to(elsewhere)
    given = {"MIMU_DATA_DIR": str(tmp_path)}
    command = ("turnserver_conf", "--output", str(output))
    first = ("--cert", "/etc/tls/a.pem", "--pkey", "/etc/tls/b.pem", "--external-ip", "203.0.113.7/10.0.0.7")
    assert (await script(None, *command, *first, "--realm", "example.org", TURN_SECRET=old, **given)).code == 0
    own = ["listening-ip=10.0.0.7", "listening-ip=10.0.0.8", "denied-peer-ip=198.51.101.0-198.51.101.255", "no-udp"]
    text = re.sub(r"(?m)^total-quota=.*$", "total-quota = 77", elsewhere.read_text())
    elsewhere.write_text(text + "\n".join(["# ours", *own]) + "\n")
    os.chown(elsewhere, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    elsewhere.chmod(0o440)
    for _ in range(2):  # what was kept is kept once
        assert (await script(None, *command, TURN_SECRET=new, **given)).code == 0
    held = elsewhere.stat()
    assert (held.st_uid, held.st_gid, stat.S_IMODE(held.st_mode)) == (UNPRIVILEGED_UID, UNPRIVILEGED_UID, 0o440)
    assert output.is_symlink()
    lines = [line for line in output.read_text().splitlines() if line and line[0] != "#"]
    kept = ["cert=/etc/tls/a.pem", "pkey=/etc/tls/b.pem", "external-ip=203.0.113.7/10.0.0.7", "realm=example.org"]
    for line in (*kept, *own, "total-quota = 77", f"static-auth-secret={new}", "use-auth-secret"):
        assert lines.count(line) == 1, line
    assert old not in output.read_text()
    assert "total-quota=1000" not in lines
    # An option of the command replaces the one in the file.
    assert (await script(None, *command, "--realm", "example.net", TURN_SECRET=new, **given)).code == 0
    assert "realm=example.net" in output.read_text().splitlines()
    assert "realm=example.org" not in output.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@root_only
@pytest.mark.gen_test
async def test_a_new_file_is_readable_for_coturn_alone(tmp_path: Path) -> None:
    given = {"MIMU_DATA_DIR": str(tmp_path), "TURN_SECRET": secrets.token_hex(32)}
    output = tmp_path / "turnserver.conf"
    assert (await script(None, "turnserver_conf", "--output", str(output), "--user", "nobody", **given)).code == 0
    held = output.stat()
    assert (held.st_uid, held.st_gid, stat.S_IMODE(held.st_mode)) == (0, UNPRIVILEGED_UID, 0o640)
    refused = await script(None, "turnserver_conf", "--output", str(output), "--user", "no-such-user", **given)
    assert (refused.code, refused.err) == (1, "not written: there is no user no-such-user\n")


@pytest.mark.gen_test
@pytest.mark.parametrize("line", ["no-auth", "allow-loopback-peers", "no-tcp-relay=0"])
async def test_a_line_that_would_open_the_relay_is_refused_and_nothing_changes(line: str, tmp_path: Path) -> None:
    output = tmp_path / "turnserver.conf"
    before = f"realm=example.org\n{line}\n"
    output.write_text(before)
    given = {"MIMU_DATA_DIR": str(tmp_path), "TURN_SECRET": secrets.token_hex(32)}
    done = await script(None, "turnserver_conf", "--output", str(output), **given)
    if line == "no-tcp-relay=0":  # a switch of ours is set again
        assert done.code == 0
        assert checked(output).returncode == 0
        return
    assert done.code == 1
    assert f"has {line}" in done.err
    assert output.read_text() == before
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("use-auth-secret", "#use-auth-secret"),
        ("use-auth-secret", "use-auth-secret=0"),
        ("use-auth-secret", "use-auth-secret\nno-auth"),
        ("use-auth-secret", "use-auth-secret\n  No-Auth = 1"),
        ("no-tcp-relay", ""),
        ("no-multicast-peers", "no-multicast-peers false"),
        ("denied-peer-ip=127.", "#denied-peer-ip=127."),
        ("denied-peer-ip=169.254", "allowed-peer-ip=169.254"),
        ("denied-peer-ip=4000", "#"),
    ],
)
def test_the_check_refuses_what_would_open_the_relay(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "turnserver.conf"
    assert checked(SHIPPED).returncode == 0
    text = SHIPPED.read_text()
    path.write_text(re.sub(rf"(?m)^{re.escape(old)}", new, text))
    assert path.read_text() != text
    assert checked(path).returncode == 78
    path.write_text("")
    assert checked(path).returncode == 78
    assert checked(tmp_path).returncode == 78
    assert checked(tmp_path / "missing").returncode == 78


def test_the_unit_asks_before_each_start() -> None:
    unit = (ROOT / "config" / "deploy" / "systemd" / "coturn.service.d" / "mimu.conf").read_text()
    [command] = re.findall(r"(?m)^ExecStartPre=(.*)$", unit)
    shell, script_file, path = command.split()  # no "-" or "+" before it: it counts, and is asked as coturn's user
    assert (shell, path) == ("/bin/sh", "/etc/turnserver.conf")
    assert ROOT / Path(script_file).relative_to("/opt/mimu") == CHECK


def test_the_guide_installs_coturn_so_that_it_can_not_start() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    assert (
        guide.index("systemctl mask coturn") < guide.index("install --yes python3-venv") < guide.index("unmask coturn")
    )
    assert guide.index("coturn.service.d") < guide.index("unmask coturn")


@pytest.mark.parametrize("systemd", [True, False])
def test_installed_programs_start_neither_now_nor_at_the_next_boot(systemd: bool, tmp_path: Path) -> None:
    """With a package manager that, as apt does, would start services unless it is kept from it."""
    programs, root = tmp_path / "bin", tmp_path / "root"
    programs.mkdir()
    (root / "usr" / "sbin").mkdir(parents=True)
    policy, mask = root / "usr/sbin/policy-rc.d", root / "etc/systemd/system/coturn.service"
    fakes = {
        "id": "echo 0",
        "apt-get": f"""
            case "$*" in *install*) ;; *) exit 0 ;; esac
            sh {policy} coturn start; echo "$? $(readlink {mask}) ${{*##* }}" >> {tmp_path}/installed""",
    }
    if systemd:
        fakes["systemctl"] = f'echo "$@" >> {tmp_path}/systemctl'
    for name, text in fakes.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    for name in ("sh", "readlink", "ln", "mkdir", "rm", "chmod", "cat"):
        (programs / name).symlink_to(f"/bin/{name}")
    done = subprocess.run(
        ["sh", INSTALL], env={"PATH": str(programs), "DESTDIR": str(root)}, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in (tmp_path / "installed").read_text().splitlines()]
    packages = [line[-1] for line in lines]  # nginx, too, unless this machine has it where the script looks
    assert packages[0] == "coturn"
    assert {"chromium", "prometheus"} < set(packages)
    assert {tuple(line[:-1]) for line in lines} == {("101", "/dev/null")}
    assert not policy.exists(), "the machine's own affairs are as before"
    assert mask.is_symlink()
    if systemd:
        disabled = [f"disable {name}" for name in SERVICES if name in packages]
        assert (tmp_path / "systemctl").read_text().splitlines() == disabled


@root_only
def test_the_doctor_says_whether_coturn_can_read_its_file(tmp_path: Path) -> None:
    conf = tmp_path / "turnserver.conf"
    assert coturn.file(conf, "nobody").state == "wrong"
    conf.write_text(SHIPPED.read_text())
    conf.chmod(0o600)
    assert "an open relay" in coturn.file(conf, "nobody").says
    os.chown(conf, 0, UNPRIVILEGED_UID)
    assert coturn.file(conf, "nobody").state == "wrong"
    conf.chmod(0o640)
    assert coturn.file(conf, "nobody").state == "good"
    conf.write_text("realm=mimu\n")
    assert "lacks use-auth-secret" in coturn.file(conf, "nobody").says
    assert coturn.file(conf, "no-such-user").state == "skipped"
    assert coturn.start(tmp_path).state == "weak"
    shutil.copy(ROOT / "config/deploy/systemd/coturn.service.d/mimu.conf", tmp_path)
    assert coturn.start(tmp_path).state == "good"
