"""``./mimu`` lists the commands, runs them, and finds the settings of the installation."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

import pytest

from scripts.__main__ import arguments, commands, env_file
from tests.running import ROOT, inherited
from tests.scripts.test_starting import NAMES


def mimu(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment |= {**inherited("PATH"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [ROOT / "mimu", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_it_knows_every_script() -> None:
    scripts = {name.removeprefix("scripts.").replace("_", "-") for name in NAMES}
    assert set(commands()) == scripts
    assert all(summary.endswith(".") and len(summary) > 10 for summary in commands().values())


def test_help_lists_the_commands(tmp_path: Path) -> None:
    listed = mimu("--help", folder=tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert all(f"  {name} " in listed.stdout for name in commands())
    assert "Accounts:\n  users " in listed.stdout
    bare = mimu(folder=tmp_path)
    assert (bare.returncode, bare.stdout, bare.stderr) == (2, "", listed.stdout)
    unknown = mimu("bakcup", folder=tmp_path)
    assert unknown.returncode == 2
    assert "no command 'bakcup'" in unknown.stderr


@pytest.mark.parametrize("name", ["rotate-keys", "rotate_keys"])
def test_a_command_is_itself(name: str, tmp_path: Path) -> None:
    shown = mimu(name, "--help", folder=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: ./mimu rotate-keys ")


def test_help_names_the_settings_and_the_user(tmp_path: Path) -> None:
    settings = tmp_path / "mimu.env"
    settings.touch()
    shown = mimu("--help", folder=tmp_path, MIMU_ENV_FILE=str(settings)).stdout
    assert f"Settings: {settings} (--env-file names another)" in shown
    assert f"User: {getpass.getuser()}" in shown
    of_a_command = mimu("cleanup", "--help", folder=tmp_path, MIMU_ENV_FILE=str(settings)).stdout
    assert f"(default:{settings})" in "".join(of_a_command.split())
    absent = mimu("--help", folder=tmp_path, MIMU_ENV_FILE=str(tmp_path / "absent.env"))
    assert (absent.returncode, absent.stderr) == (0, "")
    assert "which this user can't read" in absent.stdout


@pytest.mark.parametrize("name", commands())
def test_help_of_a_command_is_in_the_words_of_mimu(name: str, tmp_path: Path) -> None:
    shown = mimu(name, "--help", folder=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"usage: ./mimu {name} ")
    assert "``" not in shown.stdout
    assert "python -m" not in shown.stdout


def test_settings_are_the_installations(tmp_path: Path) -> None:
    settings = tmp_path / "mimu.env"
    settings.write_text(f"MIMU_DATA_DIR={tmp_path}\nJWT_EXPIRATION_HOURS=never\n")
    refused = mimu("rotate-keys", "jwt", "--dry-run", folder=tmp_path, MIMU_ENV_FILE=str(settings))
    assert refused.returncode == 78
    assert "JWT_EXPIRATION_HOURS" in refused.stderr


def test_the_env_file_that_is_named_goes_first(tmp_path: Path) -> None:
    installed = tmp_path / "mimu.env"
    assert env_file({}, installed) is None
    installed.touch()
    assert env_file({}, installed) == str(installed)
    assert env_file({"MIMU_ENV_FILE": "other.env"}, installed) == "other.env"
    assert arguments(["show", "alice"], "a.env") == ["show", "alice", "--env-file", "a.env"]
    assert arguments(["show", "alice", "--env-file", "b.env"], "a.env") == ["show", "alice", "--env-file", "b.env"]
    assert arguments(["show", "--env-file=b.env"], "a.env") == ["show", "--env-file=b.env"]
    assert arguments(["show"], None) == ["show"]


def test_an_env_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    refused = mimu("users", "show", "alice", folder=tmp_path, MIMU_ENV_FILE=str(tmp_path / "absent.env"))
    assert refused.returncode == 78
    assert "absent.env can't be read" in refused.stderr
