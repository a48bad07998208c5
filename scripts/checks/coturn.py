"""The files of coturn on this machine: it must be able to read its configuration, and must not start if it can't."""

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


def findings(core: Core) -> Iterator[Finding]:
    """Yield findings for each of PARTS."""
    if not core.production:
        why = "Not checked in development."
    elif shutil.which("turnserver") is None:
        why = "No coturn is installed on this machine."
    elif _masked(UNITS / "coturn.service"):
        why = "coturn is masked, so it does not start here."
    else:
        yield file(CONF)
        yield (
            start(UNITS / "coturn.service.d")
            if SYSTEMD.exists()
            else skipped(START, "This machine does not run systemd.")
        )
        return
    yield skipped(FILE, why)
    yield skipped(START, why)


def _masked(unit: Path) -> bool:
    return unit.is_symlink() and unit.readlink() == Path(os.devnull)


def file(conf: Path, account: str = ACCOUNT) -> Finding:
    """Check the configuration. Even if we can't read it, we see its owner and mode."""
    write = f"Run as root: python -m scripts.turnserver_conf --output {conf} --user {account}"
    if _mapped():
        return skipped(FILE, "A user namespace hides the owner of this file; run the doctor outside it.")
    try:
        if not readable(conf, account):
            says = f"User {account} can't read {conf}: coturn starts with its defaults, an open relay."
            return wrong(FILE, says, f"{write}, then restart coturn.")
    except KeyError:
        return skipped(FILE, f"There is no user {account}: find out which user coturn runs as, and let it read {conf}.")
    except OSError as error:
        says = f"{conf} can't be found ({type(error).__name__}): coturn starts with its defaults, an open relay."
        return wrong(FILE, says, f"{write}, then restart coturn.")
    if not os.access(conf, os.R_OK):
        return good(FILE, f"User {account} can read {conf}; this user can't and does not need to.")
    if found := fault(conf):
        return wrong(FILE, f"{conf} {found}", f"{write}, then restart coturn.")
    return good(FILE, f"User {account} can read {conf}, which closes the relay to strangers.")


def _mapped(uids: Path = Path("/proc/self/uid_map")) -> bool:
    """True if this process sees only some users of the machine: under PrivateUsers, and in some containers."""
    try:
        return [line.split() for line in uids.read_text().splitlines()] != [["0", "0", "4294967295"]]
    except OSError:
        return False


def start(folder: Path) -> Finding:
    """Check that the unit tests the configuration before coturn starts."""
    here = [path for path in folder.glob("*.conf") if "deploy/coturn/check.sh" in path.read_text(errors="replace")]
    if here:
        return good(START, "coturn does not start if it can't read its file.")
    do = "Install config/deploy/systemd/coturn.service.d/mimu.conf: docs/deploy.md, coturn."
    return weak(START, "If coturn can't read its file, it starts as an open relay.", do)
