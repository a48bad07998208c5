"""The systemd units: what systemd says of them, and the server within what they leave it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

import server
from config.settings import Core
from tests.client import Account, ask
from tests.deploy.confined import CAN_NOT, settings
from tests.files.transfer import got, shared
from tests.running import ROOT, Services, place, program

UNITS = ROOT / "config" / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("mimu*.service"))
TIMERS = sorted(UNITS.glob("mimu*.timer"))
CONFINED = str(Path(__file__).with_name("confined.py"))
# systemd's own measure, from 0 (nothing is open) to 10. What remains: the network, which a server needs.
EXPOSED = 1.5


def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip(
            "NOT TESTED that systemd takes our units: systemd-analyze is not installed (Debian: apt install systemd)"
        )
    return found


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root folder with the units and the programs that they name."""
    installed = tmp_path / "etc" / "systemd" / "system"
    installed.mkdir(parents=True)
    for path in (*SERVICES, *TIMERS):
        shutil.copy(path, installed)
    for name in ("opt/mimu/.venv/bin/python", "usr/bin/env"):
        program_file = tmp_path / name
        program_file.parent.mkdir(parents=True)
        program_file.write_text("#!/bin/sh\n")
        program_file.chmod(0o755)
    # What the units of a system build upon.
    for unit in ("basic.target", "sysinit.target", "timers.target", "shutdown.target", "network-online.target"):
        (installed / unit).write_text(f"[Unit]\nDescription={unit}\nDefaultDependencies=no\n")
    for unit in ("-.slice", "system.slice"):
        (installed / unit).write_text("[Unit]\nDefaultDependencies=no\n")
    return tmp_path


@pytest.mark.parametrize("name", [path.name for path in (*SERVICES, *TIMERS)])
def test_systemd_finds_nothing_wrong(name: str, machine: Path) -> None:
    if name == "mimu@.service":
        name = "mimu@8082.service"
    done = subprocess.run(
        [analyze(), "verify", f"--root={machine}", "--man=no", "--recursive-errors=no", name],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_units_open_little_of_the_machine(path: Path, tmp_path: Path) -> None:
    unit = tmp_path / path.name.replace("@", "")
    shutil.copy(path, unit)
    command = [analyze(), "security", "--offline=true", f"--threshold={round(EXPOSED * 10)}", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout
    assert re.search(r"Overall exposure level .*: ([0-9.]+)", done.stdout)


def test_all_services_are_confined_alike() -> None:
    """A line that one of them lacks would be an oversight."""
    named = re.compile(
        r"Protect|Private|Restrict|SystemCall|Capabilit|Ambient|NoNew|Memory|Lock|UMask|LimitCORE|RemoveIPC|ProcSub"
    )
    found = []
    for path in SERVICES:
        said = settings(path)
        found.append(
            {name: value for name, value in said.items() if named.match(name) and name != "RestartPreventExitStatus"}
        )
    assert len(found) > 1
    assert all(others == found[0] for others in found)


def test_the_units_and_the_server_agree() -> None:
    unit = settings(UNITS / "mimu@.service")
    assert unit["RestartPreventExitStatus"] == [str(server.WRONG_SETTINGS)]
    shutdown = float(Core.model_fields["shutdown_seconds"].default)
    assert int(unit["TimeoutStopSec"][0].removesuffix("s")) > 2 * shutdown + 5
    for path in SERVICES:
        [command] = settings(path)["ExecStart"]
        assert command.startswith("/usr/bin/env ")
        names = [word.partition("=")[0] for word in command.split() if "=" in word and not word.startswith("-")]
        known = {name.upper() for name in Core.model_fields} | {"PYTHONDONTWRITEBYTECODE"}
        assert set(names) <= known
        module = re.search(r"python -m ([\w.]+)", command)
        assert importlib.util.find_spec(module[1]) if module else "python server.py" in command


@pytest.mark.gen_test(timeout=90)
async def test_the_server_works_within_what_its_unit_leaves_it(services: Services, tmp_path: Path) -> None:
    """Its wheels are C and Rust: only running them shows that they need no memory both writable and executable."""
    analyze()
    unit = str(UNITS / "mimu@.service")
    tried = "import mmap, socket, sys\ntry: mmap.mmap(-1, 4096, prot=7)\nexcept OSError: print('no memory')\n"
    tried += "try: socket.socket(socket.AF_NETLINK)\nexcept OSError: print('no family')\n"
    tried += "import os\ntry: os.setuid(0); os.chroot('/')\nexcept OSError: print('no call')\n"
    done = subprocess.run([sys.executable, CONFINED, unit, sys.executable, "-c", tried], capture_output=True, text=True)
    if done.returncode == CAN_NOT:
        pytest.skip(f"NOT TESTED that the server works as its unit confines it: {done.stderr.strip()}")
    assert (done.returncode, done.stdout) == (0, "no memory\nno family\nno call\n"), done.stderr
    async with place(services) as home:
        started = (CONFINED, unit, sys.executable, str(ROOT / "server.py"))
        async with program(home, tmp_path, started=started, MIMU_DATA_DIR=str(tmp_path)) as running:
            alice, bob = [await Account().register(running.url) for _ in range(2)]
            assert (await alice.login()).status == 200
            async with alice.socket() as from_alice, bob.socket() as from_bob:
                chat = (await alice.post("/chats", {"type": "direct", "participants": [bob.public_id]})).json["id"]
                sent = {"chat_id": chat, "client_id": str(uuid4()), "encrypted_payload": "QUJD", "message_type": "text"}
                assert (await from_alice.send("message_send", **sent))["type"] == "ack"
                await from_bob.expect("message_new")
            assert (await got(alice, await shared(alice, b"x" * 1_000_000))).body == b"x" * 1_000_000
            assert (await alice.get(f"/users/{bob.public_id}/prekeys")).status == 200
            assert (await ask(running.url, "GET", "/metrics")).status == 200
            await asyncio.sleep(1.1)  # timers have had their turn
            assert await running.stop() == 0
            lines = [json.loads(line) for line in running.log_text().splitlines()]
            assert [line for line in lines if line["level"] in ("warning", "error")] == []


@pytest.mark.gen_test(timeout=60)
async def test_migrations_run_within_what_their_unit_leaves_them(services: Services) -> None:
    analyze()
    unit = str(UNITS / "mimu-migrate.service")
    async with place(services) as home:
        command = [sys.executable, CONFINED, unit, sys.executable, "-m", "scripts.migrate"]
        process = await asyncio.create_subprocess_exec(
            *command, env={"PATH": "/usr/bin:/bin", "DATABASE_URL": home.dsn}, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(process.communicate(), 30)
        if process.returncode == CAN_NOT:
            pytest.skip("NOT TESTED that migrations run as their unit confines them")
        assert (process.returncode, said) == (0, b"up to date\n")


@pytest.mark.gen_test(timeout=60)
async def test_backups_run_within_what_their_unit_leaves_them(services: Services, tmp_path: Path) -> None:
    analyze()
    unit = UNITS / "mimu-backup.service"
    [command] = settings(unit)["ExecStart"]
    module = command.replace("/var/backups/", f"{tmp_path}/").split("bin/python ")[1].split()
    for folder in " ".join(settings(unit)["ReadWritePaths"]).split():
        (tmp_path / Path(folder).name).mkdir()  # as the guide has them made
    async with place(services) as home:
        variables = {"PATH": "/usr/bin:/bin", **home.environment, "MIMU_DATA_DIR": str(tmp_path / "data")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, CONFINED, str(unit), sys.executable, *module), env=variables, cwd=ROOT
        )
        code = await asyncio.wait_for(process.wait(), 50)
        if code == CAN_NOT:
            pytest.skip("NOT TESTED that backups run as their unit confines them")
        assert code == 0
    assert [path.suffix for path in (tmp_path / "mimu-keys").iterdir()] == [".tar"]
    assert list((tmp_path / "mimu").glob("mimu-*/manifest.json"))


@pytest.mark.gen_test(timeout=60)
async def test_the_doctor_looks_within_what_its_unit_leaves_it(services: Services, tmp_path: Path) -> None:
    analyze()
    unit = UNITS / "mimu-doctor.service"
    [command] = settings(unit)["ExecStart"]
    module = command.replace("/etc/mimu/mimu.env", "/dev/null").split("bin/python ")[1].split()
    chosen = ["--only", "settings,machine,database,redis,storage,turn,nginx", "--json"]
    async with place(services) as home:
        data = tmp_path / "data"
        (data / "files").mkdir(parents=True, mode=0o700)
        (data / "files").chmod(0o700)
        variables = {"PATH": "/usr/bin:/bin", **home.environment, "MIMU_DATA_DIR": str(data), "TURN_HOST": "127.0.0.1"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, CONFINED, str(unit), sys.executable, *module, *chosen),
            env=variables,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 50)
        if process.returncode == CAN_NOT:
            pytest.skip("NOT TESTED that the doctor runs as its unit confines it")
    said = json.loads(out)
    assert not [one for one in said["findings"] if "stumbled" in one["says"]]
    states = {(one["examination"], one["part"]): one["state"] for one in said["findings"]}
    for seen in (("database", "commits"), ("redis", "channels"), ("storage", "round trip"), ("database", "isolation")):
        assert states[seen] in ("good", "weak"), seen
