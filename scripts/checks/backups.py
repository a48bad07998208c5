"""Backups: the age of the last one, and whether other users of this machine can read them or their secrets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from config import last_backup
from config.findings import Finding, good, skipped, weak, wrong
from config.settings import Core
from scripts.checks.access import open_to_others, reachable

MAX_AGE = 36 * 3600  # seconds: one backup each night, and one that took half a day
NAMES = "mimu-*"  # of what scripts.backup makes
PARTS = AGE, ACCESS, KEYS = "backup", "backup access", "backup keys"


def findings(core: Core, now: float | None = None) -> Iterator[Finding]:
    """Yield findings for each of PARTS."""
    found = last_backup.read(core.mimu_data_dir)
    if not core.production:
        yield from (skipped(part, "Development needs no backups.") for part in PARTS)
        return
    yield _age(core, found, time.time() if now is None else now)
    yield _access(found.backup if found else None)
    yield _keys(found.keys if found else None)


def _age(core: Core, found: last_backup.LastBackup | None, now: float) -> Finding:
    do = "See journalctl --unit mimu-backup, and docs/operations.md, Backup and restore."
    if found is None:
        return weak(AGE, f"{core.mimu_data_dir} has no record of a backup by scripts.backup.", do)
    hours = (now - found.made_at) / 3600
    if now - found.made_at > MAX_AGE:
        return wrong(AGE, f"The last backup is {hours:.0f} hours old.", do)
    if not found.whole:
        return wrong(AGE, "The last backup lacks files that are in the database.", do)
    return good(AGE, f"The last backup is {max(0.0, hours):.0f} hours old.")


def _access(backup: Path | None) -> Finding:
    if backup is None:
        return skipped(ACCESS, "The place of the backups is not recorded.")
    shelf = backup.parent
    try:
        exposed = [path for path in _made(shelf) if open_to_others(path)]
    except OSError as error:
        return skipped(ACCESS, f"{shelf} can't be read ({type(error).__name__}).")
    if exposed:
        says = f"{exposed[-1]} can be read by every user of this machine: all messages and files, as they are stored."
        return wrong(ACCESS, says, f"Run: chmod 700 {shelf} && chmod -R o= {shelf}")
    return good(ACCESS, f"Other users can't read the backups in {shelf}.")


def _keys(archive: Path | None) -> Finding:
    if archive is None:
        return skipped(KEYS, "The place of the archives of secrets is not recorded.")
    folder = archive.parent
    try:
        exposed = [path for path in _made(folder) if path.name.endswith("-keys.tar") and open_to_others(path)]
    except OSError as error:
        return skipped(KEYS, f"{folder} can't be read ({type(error).__name__}).")
    if exposed:
        says = f"{exposed[-1]} can be read by every user of this machine, who can sign tokens for anybody with it."
        do = f"Run: chmod 700 {folder} && chmod 600 {folder}/*-keys.tar; then change the secrets: scripts.rotate_keys"
        return wrong(KEYS, says, do)
    return good(KEYS, f"Other users can't read the archives of secrets in {folder}.")


def _made(folder: Path) -> list[Path]:
    """Return what scripts.backup has made there, the oldest first. Raises OSError."""
    return sorted(path for path in folder.iterdir() if path.match(NAMES)) if reachable(folder) else []
