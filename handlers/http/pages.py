"""Pages: long lists in parts, newest first, by a cursor that names the last entry seen (contract section 1)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from handlers.http.base import ApiHandler
from handlers.wire.errors import Fault, InvalidRequest
from handlers.wire.operations import Header
from handlers.wire.shapes import Shape

PageCursor = tuple[datetime, UUID]
# What cursors are made of: signs that an address bears as they are, so that the longest still fits into a first line.
CURSOR = r"^[A-Za-z0-9_=-]*$"
PAGED = (Header("Link", 'Where there is more: `<…>; rel="next"` (RFC 8288), a path.'),)

Before = Annotated[
    str, Field(min_length=1, max_length=128, pattern=CURSOR, description="From the `Link` of the page before this one.")
]


class PageQuery(Shape):
    """``?limit=`` entries, ``before`` the place that the last page's Link named."""

    limit: Annotated[int, Field(ge=1, le=100)] = 50
    before: Before | None = None

    @property
    def place(self) -> PageCursor | None:
        """Raises InvalidRequest for a cursor that isn't ours."""
        if self.before is None:
            return None
        try:
            text = base64.b64decode(self.before, altchars=b"-_", validate=True).decode("ascii")
            moment, _, entry = text.partition(" ")
            # In UTC, because a moment may leave the calendar on its way there.
            place = datetime.fromisoformat(moment + "Z").astimezone(UTC), UUID(entry)
        except (ValueError, OverflowError, binascii.Error):
            fault = Fault("before", "not a cursor of ours")
            raise InvalidRequest("Some fields are not valid.", details=[fault]) from None
        return place


def reply_page(
    handler: ApiHandler,
    query: PageQuery,
    entries: Sequence[Mapping[str, Any]],
    time: str,
    key: str,
    *,
    more: bool | None = None,
    **filters: str,
) -> None:
    """Answer with a page, and point to the rest. ``time`` and ``key`` name the fields that the list is ordered by;
    ``filters`` are the other parameters of the query.

    ``more`` says whether there is a rest behind a page that ended by its bytes. Without it there is one if there are
    more entries than ``limit``; those are no longer than one page whatever is in them (tests/test_lists.py)."""
    if more is None:
        entries, more = entries[: query.limit], len(entries) > query.limit
    if more:
        handler.link_next(limit=query.limit, before=place_of(entries[-1], time, key), **filters)
    handler.reply(entries)


def place_of(entry: Mapping[str, Any], time: str, key: str) -> str:
    """The cursor of the page behind an entry."""
    moment = entry[time].astimezone(UTC).replace(tzinfo=None).isoformat()
    return base64.urlsafe_b64encode(f"{moment} {entry[key]}".encode()).decode()
