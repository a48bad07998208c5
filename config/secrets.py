"""The secrets that a server signs with: check them before production starts, and generate them for development."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

MINIMUM = 32  # characters: 128 bits even when written in hex

# Values in the examples of this and of the former server, which are public.
_EXAMPLES = ("change_me", "changeme", "change-me", "super_secret", "secret", "password", "example")


def faults(named: Mapping[str, str | None]) -> list[str]:
    """Return a line for each secret that is too weak for production; an empty list if all are strong enough."""
    lines = []
    for name, secret in named.items():
        if not secret:
            lines.append(f"{name}: missing; production needs one of at least {MINIMUM} random characters")
        elif any(secret.lower().startswith(example) for example in _EXAMPLES):
            lines.append(f"{name}: is a default or an example; make one with: openssl rand -hex 32")
        elif len(secret) < MINIMUM:
            lines.append(f"{name}: too short; at least {MINIMUM} characters")
        elif len(set(secret)) < 8:
            lines.append(f"{name}: too weak; make one with: openssl rand -hex 32")
    present = [secret for secret in named.values() if secret]
    if len(set(present)) < len(present):
        lines.append(f"{' and '.join(named)}: must not be equal; use a different secret for each")
    return lines


def keep(folder: Path, name: str) -> str:
    """Return the secret called ``name`` in ``folder``. The first call generates it, readable by its owner only."""
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
