"""The last backup: a file in the data folder from which servers and the doctor read how old it is."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

NAME = "last_backup.json"


class LastBackup(NamedTuple):
    """When it was made, in seconds since 1970, and whether it has all files. ``backup`` is its folder, and ``keys`` the
    archive of its secrets; None in files of older versions, and if no archive was made."""

    made_at: float
    whole: bool
    backup: Path | None = None
    keys: Path | None = None


def write(folder: Path, made_at: str, *, whole: bool, backup: Path | None = None, keys: Path | None = None) -> None:
    """Write the time of a backup (``2026-11-30T04:00:00Z``), and where it is. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = folder / f"{NAME}.part"
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        places = {name: str(path.absolute()) for name, path in (("backup", backup), ("keys", keys)) if path}
        json.dump({"made_at": made_at, "whole": whole, **places}, file)
    part.replace(folder / NAME)


def read(folder: Path) -> LastBackup | None:
    """Read the last backup; None if the file is missing or can't be read."""
    try:
        values = json.loads((folder / NAME).read_text())
        made_at = datetime.fromisoformat(values["made_at"]).timestamp()
        backup, keys = (Path(values[name]) if values.get(name) else None for name in ("backup", "keys"))
        return LastBackup(made_at, bool(values["whole"]), backup, keys)
    except (OSError, ValueError, KeyError, TypeError):
        return None
