"""``python -m tests.history``: a run at length. Prints its seed first; ends with 1 when something is wrong."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop

from config import logs
from tests.history.run import Plan, Report, run


async def play(plan: Plan) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="mimu-history-"))
    folder.chmod(0o755)  # PostgreSQL runs as an ordinary user when we are root
    try:
        return await run(plan, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.history", description=__doc__)
    parser.add_argument("--server-kills", type=int, default=50)
    parser.add_argument("--postgres-kills", type=int, default=20)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--pace", type=float, default=Plan.pace, help="seconds between two deeds of a client")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--vanishing", type=float, default=0.03, help="share of messages that expire")
    parser.add_argument("--lossy", action="store_true", help="commit without the disk: shows that losses are found")
    given = parser.parse_args()
    logs.configure("critical")  # that PostgreSQL died is no news here
    print(f"seed {given.seed}", flush=True)
    report = uvloop.run(play(Plan(**vars(given))))
    print(report.story())
    for what, times in sorted(report.counts.items()):
        print(f"  {what}: {times}")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
