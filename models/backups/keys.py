"""The server's secrets, in a separate archive: whoever has it and the database can sign tokens for any user.

A tar archive: ``settings.env`` with the secrets that are settings, ``keyring.json`` with the rotated secrets, and the
key files of the push services under the names of their settings.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from config import secrets
from config.settings import Core
from models.backups import BackupError, sync

# Settings that are secrets, and that no other service can issue again.
VALUES = ("JWT_SECRET", "JWT_PREVIOUS_SECRETS", "TURN_SECRET")
# Settings that name a file with a private key.
PATHS = ("VAPID_PRIVATE_KEY_FILE", "APNS_KEY_FILE", "FCM_SERVICE_ACCOUNT_FILE")
KEYRING, SETTINGS = "keyring.json", "settings.env"
MAX_MEMBER = 1 << 20  # bytes; the largest, a Google service account, has some 3,000


def collect(core: Core, values: Mapping[str, str]) -> dict[str, bytes]:
    """Return the secrets of a server, by their name in the archive. Raises BackupError if a file can't be read."""
    settings = {name: values[name] for name in VALUES if values.get(name)}
    for name in ("JWT_SECRET", "TURN_SECRET"):
        generated = core.mimu_data_dir / "secrets" / name.lower()
        if name not in settings and not core.production and generated.exists():
            settings[name] = secrets.keep(generated.parent, generated.name)
    contents = {SETTINGS: "".join(f"{name}={value}\n" for name, value in settings.items()).encode()}
    paths = {name: Path(values[name]) for name in PATHS if values.get(name)}
    if core.keyring_path.exists():
        paths[KEYRING] = core.keyring_path
    for name, path in paths.items():
        try:
            contents[name] = path.read_bytes()
        except OSError as error:
            raise BackupError(f"{name}: {path} can't be read: {error.strerror}") from error
    return contents


def write(archive: Path, contents: Mapping[str, bytes]) -> None:
    """Write the archive, readable by its owner only, complete or not at all."""
    part = archive.with_name(".mimu-keys.part")  # one name, so that the next run replaces an unfinished one
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
            for name, content in {**contents, "SHA256SUMS": sums.encode()}.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o600
                tar.addfile(member, io.BytesIO(content))
        file.flush()
        os.fsync(file.fileno())
    part.replace(archive)
    sync(archive.parent)


def read(archive: Path) -> dict[str, bytes]:
    """Read an archive. Raises BackupError if it is not one of ours, or damaged."""
    contents = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None or member.size > MAX_MEMBER:
                    raise BackupError(f"{archive} is not an archive of keys")
                contents[member.name] = content.read()
        sums = contents.pop("SHA256SUMS").decode()
    except (tarfile.TarError, KeyError, UnicodeDecodeError, EOFError) as error:
        raise BackupError(f"{archive} is not an archive of keys, or damaged") from error
    expected = {name: sha256 for sha256, _, name in (line.partition("  ") for line in sums.splitlines())}
    if expected != {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}:
        raise BackupError(f"{archive} is damaged")
    return contents


def restore(core: Core, values: Mapping[str, str], contents: Mapping[str, bytes], *, force: bool) -> list[str]:
    """Write secrets to where this server reads them. Returns a line for each, with its path or what the operator has to
    do. Overwrites a different secret only with ``force``. Raises BackupError before it writes any."""
    folder = core.mimu_data_dir / "secrets"
    places: dict[Path, bytes] = {}
    lines = []
    for name, content in contents.items():
        if name == KEYRING:
            places[core.keyring_path] = content
        elif name in PATHS:
            places[Path(values[name]) if values.get(name) else folder / f"{name.lower()}"] = content
            if not values.get(name):
                lines.append(f"{name}: set it to {folder / name.lower()}")
    for line in contents.get(SETTINGS, b"").decode().splitlines():
        name, _, value = line.partition("=")
        if values.get(name) == value:
            continue
        if name in ("JWT_SECRET", "TURN_SECRET") and not core.production and not values.get(name):
            places[folder / name.lower()] = value.encode()
        else:
            places.setdefault(folder / SETTINGS, contents[SETTINGS])
            lines.append(f"{name}: set it to the value in {folder / SETTINGS}, and delete that file")
    for path, content in places.items():
        if not force and path.exists() and path.read_bytes().strip() != content.strip():
            raise BackupError(f"{path} exists and differs: move it away, or replace it with --force")
    for path, content in places.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        lines.append(f"wrote {path}")
    return lines
