"""The server's secrets, in an archive of their own: who has it and the database can sign tokens for anybody.

A tar archive: ``settings.env`` with what the settings say outright, ``keyring.json`` with what was rotated, and the key
files of the push services under the names of their settings.
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

# Settings that are secrets, and can't be had again from somebody else.
VALUES = ("JWT_SECRET", "JWT_PREVIOUS_SECRETS", "TURN_SECRET")
# Settings that name a file with a private key.
PATHS = ("VAPID_PRIVATE_KEY_FILE", "APNS_KEY_FILE", "FCM_SERVICE_ACCOUNT_FILE")
KEYRING, SETTINGS = "keyring.json", "settings.env"
LARGEST = 1 << 20  # bytes; the largest, a service account of Google's, has some 3,000


def gathered(core: Core, values: Mapping[str, str]) -> dict[str, bytes]:
    """The secrets of a server, by their name in the archive. Raises BackupError for a file that can't be read."""
    said = {name: values[name] for name in VALUES if values.get(name)}
    for name in ("JWT_SECRET", "TURN_SECRET"):
        kept = core.mimu_data_dir / "secrets" / name.lower()
        if name not in said and not core.production and kept.exists():
            said[name] = secrets.keep(kept.parent, kept.name)
    found = {SETTINGS: "".join(f"{name}={value}\n" for name, value in said.items()).encode()}
    paths = {name: Path(values[name]) for name in PATHS if values.get(name)}
    if core.keyring_path.exists():
        paths[KEYRING] = core.keyring_path
    for name, path in paths.items():
        try:
            found[name] = path.read_bytes()
        except OSError as error:
            raise BackupError(f"{name}: {path} can't be read: {error.strerror}") from error
    return found


def write(archive: Path, found: Mapping[str, bytes]) -> None:
    """Write the archive, for its owner's eyes only, whole or not at all."""
    part = archive.with_name(".mimu-keys.part")  # one name, so that the next run replaces what was broken off
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in found.items())
            for name, content in {**found, "SHA256SUMS": sums.encode()}.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(content), 0o600
                tar.addfile(member, io.BytesIO(content))
        file.flush()
        os.fsync(file.fileno())
    part.replace(archive)
    sync(archive.parent)


def read(archive: Path) -> dict[str, bytes]:
    """What is in an archive. Raises BackupError when it is none of ours, or damaged."""
    found = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None or member.size > LARGEST:
                    raise BackupError(f"{archive} is no archive of keys")
                found[member.name] = content.read()
        sums = found.pop("SHA256SUMS").decode()
    except (tarfile.TarError, KeyError, UnicodeDecodeError, EOFError) as error:
        raise BackupError(f"{archive} is no archive of keys, or damaged") from error
    expected = {name: sha256 for sha256, _, name in (line.partition("  ") for line in sums.splitlines())}
    if expected != {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}:
        raise BackupError(f"{archive} is damaged")
    return found


def put_back(core: Core, values: Mapping[str, str], found: Mapping[str, bytes], *, force: bool) -> list[str]:
    """Put secrets where this server looks for them; a line for each, which says where it is, and what is left to do.
    Another secret that is there already is overwritten by ``force`` only. Raises BackupError before it writes any."""
    folder = core.mimu_data_dir / "secrets"
    places: dict[Path, bytes] = {}
    told = []
    for name, content in found.items():
        if name == KEYRING:
            places[core.keyring_path] = content
        elif name in PATHS:
            places[Path(values[name]) if values.get(name) else folder / f"{name.lower()}"] = content
            if not values.get(name):
                told.append(f"{name}: set it to {folder / name.lower()}")
    for line in found.get(SETTINGS, b"").decode().splitlines():
        name, _, value = line.partition("=")
        if values.get(name) == value:
            continue
        if name in ("JWT_SECRET", "TURN_SECRET") and not core.production and not values.get(name):
            places[folder / name.lower()] = value.encode()
        else:
            places.setdefault(folder / SETTINGS, found[SETTINGS])
            told.append(f"{name}: set it to what {folder / SETTINGS} says, and remove that file")
    for path, content in places.items():
        if not force and path.exists() and path.read_bytes().strip() != content.strip():
            raise BackupError(f"{path} is there already, and another one: move it away, or replace it with --force")
    for path, content in places.items():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        told.append(f"wrote {path}")
    return told
