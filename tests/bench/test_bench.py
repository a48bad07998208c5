"""The benchmark works. How fast the server is, no test may say: a busy machine would fail it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.running import ROOT


def test_quick_run_measures_ours_and_the_yardstick(tmp_path: Path) -> None:
    report = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "--quick", "ice", "profile", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(report.read_text())["figures"]}
    assert set(figures) == {"ice relay", "profile"}
    for figure in figures.values():
        assert len(figure["ours"]) == len(figure["yardstick"]) == 1
        assert min(figure["ours"] + figure["yardstick"]) > 0
        assert figure["unit"] in done.stdout
