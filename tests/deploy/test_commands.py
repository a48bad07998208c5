"""Commands that the documents for operators name: one convention for all of them, and words that the scripts take."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.running import ROOT

PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in (
        "connections",
        "deploy",
        "monitoring",
        "moving",
        "operations",
        "push",
        "runbook",
        "scaling",
        "subscriptions",
    )
]
SETTINGS = "--env-file /etc/mimu/mimu.env"
# Where `make run` is spoken of, there is neither that user nor that file.
EMBEDDED = {"scripts.backup --output backups", "scripts.restore backups/"}


def commands() -> Iterator[tuple[str, str]]:
    """Each command of a page that runs one of our programs where there are no containers."""
    for page in PAGES:
        for block in re.findall(r"(?ms)^ *```sh\n(.*?)^ *```$", page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if re.search(r"python (-m scripts|server\.py)", line) and "docker compose" not in line:
                    yield page.name, " ".join(line.split())


COMMANDS = sorted(set(commands()))


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 25
    assert {page for page, _ in COMMANDS} >= {"connections.md", "deploy.md", "moving.md", "operations.md", "push.md"}


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda word: word[-60:])
def test_a_command_names_the_user_and_the_settings(page: str, line: str) -> None:
    if any(word in line for word in EMBEDDED):
        assert SETTINGS not in line
        return
    assert SETTINGS in line
    if "sudo -u mimu" not in line:
        # It writes what only root may, and says so; in deploy.md all is root's.
        assert line.endswith("# as root") or page == "deploy.md"
        assert "turnserver_conf" in line or "vapid_keys" in line


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda word: word[-60:])
def test_a_script_takes_the_words(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It gets as far as its settings, which are not there."""
    words = shlex.split(line.replace(SETTINGS, f"--env-file {tmp_path}/none"), comments=True)
    words = [str(uuid4()) if word == "ID" else word for word in words]
    while not words[0].endswith("python"):
        words.pop(0)
    if "server.py" in words:
        assert words[1:] == ["server.py", "--env-file", f"{tmp_path}/none", "--check-config"]
        return
    assert words[1] == "-m"
    if "--env-file" not in words:
        words += ["--env-file", f"{tmp_path}/none"]
    monkeypatch.setattr(sys, "argv", words[2:])
    mask = os.umask(0o022)
    try:
        code = importlib.import_module(words[2]).main()
    except SystemExit as ended:
        code = ended.code
    finally:
        os.umask(mask)  # some scripts change it for their process, which here also runs later tests
    said = capsys.readouterr()
    assert code == 78, said.err
