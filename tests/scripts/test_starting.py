"""Scripts start as a file and as a module, from any working directory, and read the same ``.env`` there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from config import settings
from tests.running import ROOT, inherited

SCRIPTS = sorted(
    path
    for path in (ROOT / "scripts").rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text() and path.stem != "__main__"
)
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SCRIPTS]


def started(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment |= {**inherited("PATH"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_there_are_scripts() -> None:
    assert {"scripts.backup", "scripts.doctor", "scripts.vouchers"} <= set(NAMES)


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_a_script_starts_as_a_file_and_as_a_module(path: Path, tmp_path: Path) -> None:
    name = NAMES[SCRIPTS.index(path)]
    as_file = started([str(path), "--help"], tmp_path)
    assert (as_file.returncode, as_file.stderr) == (0, "")
    as_module = started(["-m", name, "--help"], tmp_path, PYTHONPATH=str(ROOT))
    assert (as_module.returncode, as_module.stderr) == (0, "")
    assert as_file.stdout == as_module.stdout
    assert as_file.stdout.startswith(f"usage: {name} ")


def test_the_env_file_is_the_one_beside_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.ENV_FILE == ROOT / ".env"
    ours, elsewhere = tmp_path / "ours", tmp_path / "elsewhere"
    for folder in (ours, elsewhere):
        folder.mkdir()
        (folder / ".env").write_text(f"TURN_REALM={folder.name}\n")
    monkeypatch.setattr(settings, "ENV_FILE", ours / ".env")
    monkeypatch.chdir(elsewhere)
    assert settings.environment(environ={})["TURN_REALM"] == "ours"
