"""The files of coturn on this machine: whether it can read its configuration, and does not start when it can't."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from config.findings import Finding, good, skipped, weak, wrong
from config.settings import Core
from scripts.turnserver_conf import ACCOUNT, fault, readable

CONF, UNITS, SYSTEMD = Path("/etc/turnserver.conf"), Path("/etc/systemd/system"), Path("/run/systemd/system")
PARTS = FILE, START = "coturn's file", "coturn's start"


def looked_at(core: Core) -> Iterator[Finding]:
    """Findings for each of PARTS."""
    if not core.production:
        why = "Development has no coturn of its own."
    elif shutil.which("turnserver") is None:
        why = "No coturn is installed on this machine."
    elif _masked(UNITS / "coturn.service"):
        why = "coturn is masked, so it does not start here."
    else:
        yield file(CONF)
        yield start(UNITS / "coturn.service.d") if SYSTEMD.exists() else skipped(START, "No systemd runs here.")
        return
    yield skipped(FILE, why)
    yield skipped(START, why)


def _masked(unit: Path) -> bool:
    return unit.is_symlink() and unit.readlink() == Path(os.devnull)


def file(conf: Path, account: str = ACCOUNT) -> Finding:
    """What is to be said of the configuration, which we may not be able to read, but see whose it is."""
    write = f"Run as root: python -m scripts.turnserver_conf --output {conf} --user {account}"
    if _mapped():
        return skipped(FILE, "Within a user namespace it does not show whose it is; run the doctor outside.")
    try:
        if not readable(conf, account):
            says = f"User {account} can't read {conf}: coturn starts with its defaults, an open relay."
            return wrong(FILE, says, f"{write}, then restart coturn.")
    except KeyError:
        return skipped(FILE, f"There is no user {account}: see as whom coturn runs, and that it can read {conf}.")
    except OSError as error:
        says = f"{conf} can't be found ({type(error).__name__}): coturn starts with its defaults, an open relay."
        return wrong(FILE, says, f"{write}, then restart coturn.")
    if not os.access(conf, os.R_OK):
        return good(FILE, f"User {account} can read {conf}; we can't, and need not.")
    if found := fault(conf):
        return wrong(FILE, f"{conf} {found}", f"{write}, then restart coturn.")
    return good(FILE, f"User {account} can read {conf}, and it opens the relay for no stranger.")


def _mapped(uids: Path = Path("/proc/self/uid_map")) -> bool:
    """True where only some users of the machine can be told apart: under PrivateUsers, and in some containers."""
    try:
        return [line.split() for line in uids.read_text().splitlines()] != [["0", "0", "4294967295"]]
    except OSError:
        return False


def start(folder: Path) -> Finding:
    """Whether the unit looks at the configuration before coturn starts."""
    here = [path for path in folder.glob("*.conf") if "deploy/coturn/check.sh" in path.read_text(errors="replace")]
    if here:
        return good(START, "coturn does not start on a file that it can't read.")
    do = "Install config/deploy/systemd/coturn.service.d/mimu.conf: docs/deploy.md, coturn."
    return weak(START, "Nothing keeps coturn from starting on a file that it can't read, as an open relay.", do)
