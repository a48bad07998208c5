"""docs/deploy.md: what it lets an operator type is typed here, as far as it needs neither Docker nor a machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.confined import settings
from tests.deploy.test_images import compose_program, composed
from tests.running import ROOT

__all__ = ("composed",)  # a fixture: what compose makes of its file
PAGE = ROOT / "docs" / "deploy.md"
OPERATIONS = ROOT / "docs" / "operations.md"
UNITS = ROOT / "config" / "deploy" / "systemd"


def block(path: Path, word: str) -> str:
    """The first shell example in which that word stands."""
    blocks = re.findall(r"(?ms)^ *```sh\n(.*?)^ *```$", path.read_text())
    return next(text for text in blocks if word in text)


def typed(text: str, place: Path, moved: dict[str, str]) -> None:
    """Run it, with folders of ours for those of the machine."""
    for old, new in moved.items():
        text = text.replace(old, new)
    done = subprocess.run(
        ["sh", "-euc", text], cwd=place, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_settings_for_compose_are_whole(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    machine = {"/etc/mimu/tls": str(tmp_path / "tls"), "/var/www/html": str(tmp_path / "html")}
    typed(block(PAGE, "set_to MIMU_HOST"), tmp_path, machine)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    done = subprocess.run(
        [compose_program(), "--project-directory", tmp_path, "config", "--format", "json"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    services = json.loads(done.stdout)["services"]
    assert services["nginx"]["environment"]["NGINX_HOST"] == "mimu.example.org"
    assert services["server"]["environment"]["S3_PUBLIC_ENDPOINT"] == "https://files.mimu.example.org"
    for name in ("nginx", "coturn"):
        [tls] = [volume for volume in services[name]["volumes"] if volume["target"] == "/tls"]
        assert (tls["type"], tls["source"]) == ("bind", str(tmp_path / "tls"))


def test_the_settings_for_systemd_are_good(tmp_path: Path) -> None:
    """As its unit reads them: over nothing, and with its own words above them."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    text = block(PAGE, "set_to DATABASE_URL")
    machine = {"/etc/mimu/": f"{tmp_path}/", "-o root -g mimu ": ""}
    typed(f"POSTGRES_PASSWORD={'1' * 64} REDIS_PASSWORD={'2' * 64}\n{text}", tmp_path, machine)
    lines = [line for line in (tmp_path / "mimu.env").read_text().splitlines() if line and line[0] != "#"]
    given = dict(line.split("=", 1) for line in lines)
    assert len(given) == len(lines), "a name stands there twice"
    [command] = settings(UNITS / "mimu@.service")["ExecStart"]
    words = command.replace("%i", "8081").split()[1:]
    own = dict(word.split("=", 1) for word in words[: words.index("/opt/mimu/.venv/bin/python")])
    assert own["MIMU_DATA_DIR"] == given["MIMU_DATA_DIR"]
    started = words[words.index("server.py") :]
    done = subprocess.run(
        [sys.executable, *started, "--check-config"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **given, **own},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "The settings are good.", "")


@pytest.mark.parametrize("path", [PAGE, OPERATIONS], ids=lambda path: path.name)
def test_services_and_files_that_commands_name_exist(path: Path, composed: dict[str, Any]) -> None:
    text = path.read_text()
    verbs = r"exec|restart|logs|build|kill --signal \w+|run --rm --no-deps|up --detach(?: --no-deps --wait)?"
    named = re.findall(rf"docker compose (?:{verbs}) ([a-z][a-z -]*)", text)
    services = {word for words in named for word in words.partition(" python")[0].split() if word[0] != "-"}
    assert {"server", "nginx"} <= services <= set(composed["services"])
    for file in re.findall(r"config/deploy/[\w./@-]+\*?", text):
        if not file.startswith(("config/deploy/prometheus", "config/deploy/grafana")):
            assert list(ROOT.glob(file.rstrip("."))), file
    for unit in re.findall(r"\b(mimu(?:-\w+|@)?)(?:@?\d+)?\.(?:timer|service)\b", text):
        assert list(UNITS.glob(f"{unit}*")), unit
