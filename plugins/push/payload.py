"""Payloads: the contents of a push, for every provider only the kind of event and an id."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

import orjson

URGENT = ("call_offer", "call_hangup")
SUBJECT = {"message_new": "chat_id", "call_offer": "call_id", "call_hangup": "call_id"}


class Push(NamedTuple):
    """One push to one device. ``expires`` is in seconds since 1970. A provider that still holds a push with the same
    ``collapse`` replaces it."""

    kind: str
    data: Mapping[str, str]
    expires: int
    collapse: str

    @property
    def urgent(self) -> bool:
        return self.kind in URGENT


def data(kind: str, subject: UUID | None) -> dict[str, str]:
    """Return the data for the app (contract section 9). Never add anything else to it."""
    name = SUBJECT.get(kind)
    return {"type": kind} if name is None or subject is None else {"type": kind, name: str(subject)}


def padded(value: Mapping[str, Any], size: int) -> bytes:
    """Encode as JSON of ``size`` bytes, so that an observer learns nothing from the length. Pads with spaces at the
    end, which JSON allows."""
    return orjson.dumps(value).ljust(size)


def opaque(digest: bytes) -> str:
    """Return a name of 32 characters that fits into any provider's field."""
    return base64.urlsafe_b64encode(digest[:24]).decode()
