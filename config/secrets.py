"""The secrets a server signs with: judged before production starts, and made once for the embedded default."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

MINIMUM = 32  # characters: 128 bits even when written in hex

# What the examples of this and of the former server show; whoever copies them has no secret.
_KNOWN = ("change_me", "changeme", "change-me", "super_secret", "secret", "password", "example")


def faults(named: Mapping[str, str | None]) -> list[str]:
    """What is wrong with these secrets, a line each; empty when all may guard a production server."""
    found = []
    for name, secret in named.items():
        if not secret:
            found.append(f"{name}: missing; production needs one of at least {MINIMUM} random characters")
        elif any(secret.lower().startswith(known) for known in _KNOWN):
            found.append(f"{name}: is a default or an example; make one with: openssl rand -hex 32")
        elif len(secret) < MINIMUM:
            found.append(f"{name}: too short; at least {MINIMUM} characters")
        elif len(set(secret)) < 8:
            found.append(f"{name}: too weak; make one with: openssl rand -hex 32")
    present = [secret for secret in named.values() if secret]
    if len(set(present)) < len(present):
        found.append(f"{' and '.join(named)}: equal; each needs a secret of its own")
    return found


def keep(folder: Path, name: str) -> str:
    """The secret called ``name`` in ``folder``, made at the first call, readable by its owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / name
    if not path.exists():
        part = path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)  # a crash leaves the whole secret or none
    return path.read_text().strip()
