"""``python -m tests.nemesis``: faults on purpose. Prints a table; ends with 1 when something is wrong.

Everything runs on the loopback, in a folder for temporary files, and ends with the program, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from config import logs
from tests.conftest import memory
from tests.history.ledger import Fault
from tests.nemesis import caches, instances, lives, primaries, trial
from tests.nemesis.mixed import mixed
from tests.nemesis.trial import Figures

SCENARIOS = {
    "replaced": primaries.replaced,
    "silent": primaries.silent,
    "alone": primaries.alone,
    "late": primaries.late,
    "hung": instances.hung,
}
NAMES = [*SCENARIOS, *lives.BARE, "mixed"]
MOST = 300.0  # seconds that a scenario may take; beyond it something hangs


async def play(name: str, given: argparse.Namespace) -> Figures:
    """Run one scenario on a new stage."""
    folder = Path(tempfile.mkdtemp(prefix="mimu-nemesis-", dir=given.folder or memory()))
    folder.chmod(0o755)  # PostgreSQL runs as an ordinary user when we are root
    try:
        async with asyncio.timeout(MOST + 60 * given.minutes * (name == "mixed")):
            if name in lives.BARE:
                return await lives.attempt(name, folder)
            scenario = mixed(given.minutes) if name == "mixed" else SCENARIOS[name]
            return await trial.attempt(name, scenario, folder, seed=given.seed, clients=given.clients)
    finally:
        if given.keep:
            print(f"  kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def play_all(given: argparse.Namespace) -> list[Figures]:
    """All that are named, one after the other."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _interrupted, asyncio.current_task())
    done = []
    for name in given.names:
        print(f"{name} ...", flush=True)
        try:
            figures = await play(name, given)
        except Exception as error:
            traceback.print_exception(error)
            figures = Figures(name, faults=[Fault("broken", "", f"the scenario broke off: {error!r}")])
        done.append(figures)
        for text in (
            *figures.notes,
            *dict.fromkeys(f"{f.kind}: {f.chat} {f.seq or ''} {f.text}" for f in figures.faults),
        ):
            print(f"  {text}", flush=True)
    return done


def _interrupted(task: asyncio.Task[object]) -> None:
    task.cancel()


def main() -> int:
    described = "\n".join(f"  {name:<12}{(SCENARIOS | lives.BARE)[name].__doc__}" for name in NAMES[:-1])
    described += f"\n  {'mixed':<12}All kinds at random, for --minutes."
    parser = argparse.ArgumentParser(
        prog="python -m tests.nemesis",
        description=f"{__doc__}\nScenarios:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help="scenarios; without any, all")
    parser.add_argument("--minutes", type=float, default=20, help="of mixed (20)")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="where temporary folders are made")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in NAMES]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(NAMES)}")
    given.names = given.names or NAMES
    logs.configure("critical")  # that services die is no news here
    print(f"seed {given.seed}", flush=True)
    if caches.proxy() is None:
        print("HAProxy is not installed (Debian: apt install haproxy): there is one Redis, which is not failed over.")
    try:
        rows = asyncio.run(play_all(given))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; all that was started has ended")
        return 130
    print(trial.table(rows))
    return 1 if any(row.faults for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
