"""Keyrings: the secrets that sign and verify, and the file in which they are rotated while servers run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Key:
    """A secret that signs from ``active_at`` and is accepted until ``until`` (epoch seconds; None: for ever)."""

    secret: str
    active_at: float = 0.0
    until: float | None = None

    @property
    def kid(self) -> str:
        """A name of the secret that reveals nothing about it."""
        return hashlib.sha256(b"mimu-kid|" + self.secret.encode()).hexdigest()[:16]

    def accepted(self, now: float) -> bool:
        return self.until is None or self.until > now


class Keyring:
    """Secrets of one kind. The one that became active last signs; all that have not expired verify."""

    def __init__(self, keys: Sequence[Key | str]) -> None:
        self.replace(keys)

    def replace(self, keys: Sequence[Key | str]) -> None:
        """Use these secrets instead; of plain ones the first signs."""
        if not keys:
            raise ValueError("a keyring needs at least one secret")
        named = [key if isinstance(key, Key) else Key(key, -place) for place, key in enumerate(keys)]
        self._keys = {key.kid: key for key in named}

    def _accepted_keys(self) -> list[Key]:
        """Return the keys that are accepted now, the signing one first."""
        now = time.time()
        order = sorted(self._keys.values(), key=lambda key: (key.active_at <= now, key.active_at), reverse=True)
        return [key for key in order if key.accepted(now)] or order[:1]

    @property
    def signing(self) -> tuple[str, bytes]:
        """The name and the secret that sign now."""
        key = self._accepted_keys()[0]
        return key.kid, key.secret.encode()

    @property
    def secrets(self) -> list[str]:
        """Every accepted secret, the signing one first."""
        return [key.secret for key in self._accepted_keys()]

    def key(self, kid: object) -> bytes | None:
        """Return the accepted secret of that name, or None."""
        key = self._keys.get(kid) if isinstance(kid, str) else None
        return key.secret.encode() if key and key.accepted(time.time()) else None

    def derive(self, purpose: str, message: bytes) -> bytes:
        """Return HMAC-SHA256 under a key that is derived from the signing secret and the purpose."""
        return self._mac(self.signing[1], purpose, message)

    def derivations(self, purpose: str, message: bytes) -> list[bytes]:
        """Return the same for every accepted secret, the signing one first."""
        return [self._mac(secret.encode(), purpose, message) for secret in self.secrets]

    @staticmethod
    def _mac(key: bytes, purpose: str, message: bytes) -> bytes:
        return hmac.digest(hmac.digest(key, purpose.encode(), "sha256"), message, "sha256")


class KeyringFile:
    """A JSON file with rotated secrets by kind, readable by its owner only. Until a kind is rotated for the first
    time it is not in the file, and the secret of the settings is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rings: dict[str, tuple[Keyring, Sequence[str]]] = {}
        self._modified: int | None = None

    def ring(self, kind: str, given: Sequence[str]) -> Keyring:
        """The keyring of a kind, kept fresh by ``reload``; ``given`` are the settings' secrets, the signing first."""
        ring = Keyring(self.keys(kind, given))
        self._rings[kind] = ring, given
        return ring

    def keys(self, kind: str, given: Sequence[str]) -> Sequence[Key | str]:
        return self._load().get(kind) or given

    def reload(self) -> bool:
        """Read the file again if it has changed. Returns True if it had."""
        modified = self.path.stat().st_mtime_ns if self.path.exists() else None
        if modified == self._modified:
            return False
        for kind, (ring, given) in self._rings.items():
            ring.replace(self.keys(kind, given))
        self._modified = modified
        return True

    def rotate(self, kind: str, given: Sequence[str], *, delay: float, keep: float, dry_run: bool = False) -> list[Key]:
        """Add a new secret that signs ``delay`` seconds from now, when every server has read it; the others are
        accepted for ``keep`` more seconds after that. Returns the keys of that kind, the new one first."""
        with contextlib.nullcontext() if dry_run else self._lock():
            now = time.time()
            rings = self._load()
            before = rings.get(kind) or [Key(secret, float(-place)) for place, secret in enumerate(given)]
            new = Key(secrets.token_hex(32), now + delay)
            kept = [key if key.until is not None else replace(key, until=new.active_at + keep) for key in before]
            rings[kind] = [new, *(key for key in kept if key.accepted(now))]
            if not dry_run:
                self._save(rings)
            return rings[kind]

    def renew(self, kind: str) -> Key:
        """Replace all secrets of a kind by a new one that signs at once; signatures by the others become invalid."""
        with self._lock():
            rings = self._load()
            new = Key(secrets.token_hex(32), time.time())
            rings[kind] = [new]
            self._save(rings)
            return new

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(self.path.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _load(self) -> dict[str, list[Key]]:
        if not self.path.exists():
            return {}
        return {kind: [Key(**key) for key in keys] for kind, keys in json.loads(self.path.read_text()).items()}

    def _save(self, rings: dict[str, list[Key]]) -> None:
        part = self.path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({kind: [asdict(key) for key in keys] for kind, keys in rings.items()}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)  # a server reads the old file or the new one, never half of one
