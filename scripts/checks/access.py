"""Access of other users of this machine to a file, by its mode and the modes of the folders above it."""

from __future__ import annotations

import stat
from pathlib import Path


def reachable(path: Path) -> bool:
    """True if other users can reach this folder. Raises OSError."""
    folders = [path, *path.parents] if path.is_dir() else list(path.parents)
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)


def open_to_others(path: Path) -> bool:
    """True if users other than the owner and the group can read or change it. Raises OSError."""
    mode = path.stat().st_mode
    needed = stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH | stat.S_IWOTH
    return bool(mode & needed) and reachable(path.parent)
