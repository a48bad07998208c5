"""Cursors of ``/sync``: which events of all its chats a client has seen, as an opaque text."""

from __future__ import annotations

import base64
import binascii
import struct
import time
from dataclasses import dataclass, field
from uuid import UUID

VERSION = 1
# Chats in each of a cursor's two lists. Events of further chats may be shown twice, but none is skipped. With both
# lists full the text has 11,638 characters, which a request's first line and the shape have room for.
MAX_SEEN = 180
_HEAD = struct.Struct(">B16sIQB")  # version, epoch, time of creation (Unix seconds), since, 1 if _PAGE follows
_PAGE = struct.Struct(">Q16sQH")  # target, chat and seq of the last event shown, number of entries for the target
_ENTRY = struct.Struct(">16sQ")  # chat, seq
ZERO = UUID(int=0)
_MARKS = UUID(int=1)  # in place of a chat: this entry has the position of marks; older servers ignore it


@dataclass(frozen=True, slots=True)
class Cursor:
    """All events below the position ``since`` were seen, and in the chats in ``seen`` those up to that seq.

    During a walk through all chats, ``at`` is its place (a chat and a seq), and the cursor at its end is prepared:
    ``target`` is its ``since``, and ``reached`` the known part of its ``seen``.

    Marks have their own walk: all that moved below ``marks`` were seen.
    """

    epoch: UUID
    made: int
    since: int
    seen: dict[UUID, int] = field(default_factory=dict)
    target: int | None = None
    at: tuple[UUID, int] = (ZERO, 0)
    reached: dict[UUID, int] = field(default_factory=dict)
    marks: int = 0

    def text(self) -> str:
        parts = [_HEAD.pack(VERSION, self.epoch.bytes, self.made, self.since, self.target is not None)]
        reached = list(self.reached.items())[:MAX_SEEN]
        if self.target is not None:
            parts.append(_PAGE.pack(self.target, self.at[0].bytes, self.at[1], len(reached)))
            parts += [_ENTRY.pack(chat.bytes, seq) for chat, seq in reached]
        parts.append(_ENTRY.pack(_MARKS.bytes, self.marks))
        parts += [_ENTRY.pack(chat.bytes, seq) for chat, seq in list(self.seen.items())[:MAX_SEEN]]
        return base64.urlsafe_b64encode(b"".join(parts)).decode().rstrip("=")

    @classmethod
    def read(cls, text: str) -> Cursor:
        """Parse a cursor. Raises ValueError for a text that is not one of ours."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            version, epoch, made, since, paging = _HEAD.unpack_from(raw)
            place, target, at, count = _HEAD.size, None, (ZERO, 0), 0
            if paging:
                target, chat, seq, count = _PAGE.unpack_from(raw, place)
                place += _PAGE.size
                at = UUID(bytes=chat), seq
            entries = [(UUID(bytes=chat), seq) for chat, seq in _ENTRY.iter_unpack(raw[place:])]
        except (struct.error, binascii.Error, UnicodeEncodeError) as error:
            raise ValueError("not a cursor of this server") from error
        numbers = [since, target or 0, at[1], *(seq for _, seq in entries)]
        if version != VERSION or paging > 1 or count > len(entries) or max(numbers) >= 2**62:
            raise ValueError("not a cursor of this server")
        seen = dict(entries[count:])
        marks = seen.pop(_MARKS, since)  # from a server without marks: if any have moved, then after this
        return cls(UUID(bytes=epoch), made, since, seen, target, at, dict(entries[:count]), marks)

    @property
    def age(self) -> float:
        """Seconds since it was created."""
        return time.time() - self.made
