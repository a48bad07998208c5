"""The benchmark works. How fast the server is, no test may say: a busy machine would fail it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.running import ROOT


def test_quick_run_measures_ours_and_the_yardstick(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    command = [
        sys.executable,
        "-m",
        "tests.bench",
        "--quick",
        "ice",
        "profile",
        "flood",
        "messages",
        "--json",
        str(report),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text())["figures"]
    assert len(figures) == 8  # of messages there are four, one for each yardstick
    for figure in figures:
        beside = [] if figure["name"] == "frames of the flood" else figure["yardstick"]
        assert len(figure["ours"]) == len(beside or figure["ours"]) == 1
        assert min(figure["ours"] + beside) > 0
        assert figure["unit"] in done.stdout


def test_a_short_run_measures_files() -> None:
    command = [sys.executable, "-m", "tests.bench.files", "--size", "8", "--seconds", "0.5", "--runs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.split()[0] for line in said] == ["8", "8", "resident", "frames", "frames"], said
