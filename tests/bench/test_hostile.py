"""One account attacks the others, in small: the server lives, and they are all answered. How fast, no test may say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict

from tests.bench import hostile
from tests.bench.attacks import ATTACKS
from tests.running import ROOT, Services
from tests.thorough import THOROUGH

SHORT = ("pages that are not read", "wrong passwords", "chats made and deleted")
if THOROUGH:
    SHORT += ("calls to people who are away", "settings of 16 KiB there")
SECONDS = 2.0  # a login that is refused for want of room is answered after one


def test_others_are_answered_while_one_account_attacks(services: Services) -> None:
    assert set(SHORT) <= set(ATTACKS)
    # A separate process: the load's core and priority are the benchmark's.
    command = [sys.executable, "-m", "tests.bench.test_hostile", json.dumps(asdict(services))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["attacks"]) == len(SHORT), done.stderr
    assert found["unacknowledged"] == 0, done.stderr
    for each in found["attacks"]:
        assert each["times"]["failures"] == each["quiet"]["failures"] == [], (each["name"], done.stderr)
        assert each["times"]["requests"], (each["name"], done.stderr)
        assert each["answers"], f"{each['name']} did nothing"
        assert each["most"]["rss"] < hostile.MEMORY, (each["name"], done.stderr)
        assert each["grown"]["redis"] < hostile.REDIS, (each["name"], done.stderr)


async def main(services: Services) -> None:
    found, unacknowledged, _, _ = await hostile.run(services, 0, list(SHORT), SECONDS, people=200, notes=20)
    print(json.dumps({"attacks": list(map(asdict, found)), "unacknowledged": unacknowledged}))


if __name__ == "__main__":
    asyncio.run(main(Services(**json.loads(sys.argv[1]))))
