"""Play the scenarios and write the files: ``python -m tests.examples``, with names of features only theirs."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from config import logs
from tests.examples import FEATURES, FILES, play, text
from tests.running import ROOT, Services


async def write(services: Services, features: Sequence[str]) -> None:
    for feature in features:
        FILES[feature].write_text(text(await play(services, feature)))
        print(f"wrote {FILES[feature].relative_to(ROOT)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.examples", description=__doc__)
    parser.add_argument("feature", nargs="*", help=f"of {', '.join(FEATURES)}; all of them unless said")
    asked = parser.parse_args()
    logs.configure("error", sys.stderr)
    folder = Path(tempfile.mkdtemp(prefix="mimu-examples-"))
    folder.chmod(0o755)
    command = [sys.executable, "-m", "tests.services", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        addresses = json.loads(process.stdout.readline())
        asyncio.run(write(Services(addresses["dsn"], addresses["redis"]), asked.feature or FEATURES))


if __name__ == "__main__":
    main()
