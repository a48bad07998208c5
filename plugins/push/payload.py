"""Payloads: what a push says, which is what happened and an id, whoever carries it and however it is read."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

import orjson

URGENT = ("call_offer", "call_hangup")
SUBJECT = {"message_new": "chat_id", "call_offer": "call_id", "call_hangup": "call_id"}


class Push(NamedTuple):
    """One push to one device. ``expires`` is in seconds since 1970. Of those with the same ``collapse`` a provider
    that still holds one keeps the last only."""

    kind: str
    data: Mapping[str, str]
    expires: int
    collapse: str

    @property
    def urgent(self) -> bool:
        return self.kind in URGENT


def data(kind: str, subject: UUID | None) -> dict[str, str]:
    """What the app gets (contract section 9): nothing else may ever be in here."""
    name = SUBJECT.get(kind)
    return {"type": kind} if name is None or subject is None else {"type": kind, name: str(subject)}


def padded(value: Mapping[str, Any], size: int) -> bytes:
    """JSON of always the same size, so that who sees the bytes pass learns nothing from how many there are: spaces at
    its end, which JSON allows."""
    return orjson.dumps(value).ljust(size)


def opaque(digest: bytes) -> str:
    """A name of 32 characters that fits into any provider's field."""
    return base64.urlsafe_b64encode(digest[:24]).decode()
