"""The benchmark works. How fast the server is, no test may say: a busy machine would fail it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.running import ROOT


def test_quick_run_measures_ours_and_the_yardstick(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "--quick", "ice", "profile", "flood", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(report.read_text())["figures"]}
    assert len(figures) == 4
    for name, figure in figures.items():
        beside = [] if name == "frames of the flood" else figure["yardstick"]
        assert len(figure["ours"]) == len(beside or figure["ours"]) == 1
        assert min(figure["ours"] + beside) > 0
        assert figure["unit"] in done.stdout
