"""The folder of an embedded program: locked against a second server, and owned by an ordinary user if we are root."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE


class EmbeddedError(Exception):
    """The embedded default can't run. The text is for the operator: why, and what to do."""


class InUse(EmbeddedError):
    """The port was taken after we looked, or a killed PostgreSQL still has its shared memory: try again."""


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock ``folder``, which is created if it is missing, against other servers on this machine, until the process
    ends. Raises EmbeddedError at once if another process has the lock."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedError(
            f"The data folder {folder} can't be used: {error.strerror}. Give it to the user who runs Mimu "
            "(a start as root may have taken it), or choose another MIMU_DATA_DIR."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            raise EmbeddedError(
                f"The data folder {folder} is in use by another Mimu server{f' (process {holder})' if holder else ''}. "
                "Stop that server, or set another MIMU_DATA_DIR for this one."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # the file stays: removing it would let two servers lock two files of one name


@dataclass(frozen=True)
class Home:
    """``path`` is ours; ``path``/data belongs to ``user``, or to us when that is None."""

    path: Path
    user: pwd.struct_passwd | None

    @property
    def data(self) -> Path:
        return self.path / "data"

    def give_to_user(self, tree: Path) -> None:
        """Make the user the owner of everything in ``tree``. Costs nothing if it is already."""
        if self.user is None or tree.stat().st_uid == self.user.pw_uid:
            return
        for parent, folders, files in os.walk(tree):
            for name in (*folders, *files):
                os.chown(Path(parent) / name, self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)
        os.chown(tree, self.user.pw_uid, self.user.pw_gid)  # last: if we are interrupted, the next start does it again

    def write(self, name: str, text: str) -> Path:
        """Write a file here, atomically, that only the user (and root) can read."""
        path, part = self.path / name, self.path / f"{name}.part"
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        self.give_to_user(part)
        return part.replace(path)

    def sync(self) -> None:
        """Make the names that were created or changed here durable."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def lock_home(folder: Path, name: str) -> Iterator[Home]:
    """Lock the folder of the program ``name`` in the data folder. Raises EmbeddedError."""
    with suppress(OSError):  # ``lock`` reports the fault
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()
    with lock(folder / name):
        user = _unprivileged()
        if user is not None:
            for way in (folder, folder / name):
                mode = way.stat().st_mode
                if not mode & 0o001:  # that user's group, and only it, may pass to its data
                    os.chown(way, -1, user.pw_gid)
                    way.chmod(S_IMODE(mode) | 0o010)
        yield Home(folder / name, user)


def _unprivileged() -> pwd.struct_passwd | None:
    """Return the user for PostgreSQL, which refuses to run as root, and for Valkey; None if we aren't root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedError("Started as root, and there is neither a user postgres nor nobody: start as an ordinary user.")


def shipped(package: str, pattern: str, setting: str) -> Path:
    """Return the program at ``pattern`` in an installed wheel. Raises EmbeddedError, which suggests ``setting``."""
    spec = importlib.util.find_spec(package)  # doesn't import it
    for place in (spec and spec.submodule_search_locations) or ():
        for found in Path(place).glob(pattern):
            return found.resolve()
    raise EmbeddedError(
        f"{setting} is unset and the embedded default isn't installed: set {setting}, or install the package "
        f"{package.replace('_', '-')} for this system."
    )
