"""Canaries: secrets that tests send to servers, and that must come out of no log, metric or error."""

from __future__ import annotations

_planted: set[str] = set()


def plant(*secrets: str) -> None:
    """Watch for these. Short ones are left out: they would turn up by chance."""
    _planted.update(secret for secret in secrets if len(secret) >= 8)


def clear() -> None:
    _planted.clear()


def escaped(text: str) -> list[str]:
    """The canaries that a text contains."""
    return [secret for secret in _planted if secret in text]
