"""Pages: long lists in parts, newest first, with a cursor that names the last entry received (contract section 1)."""

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
# The characters of cursors: a URL carries them unescaped, so that the longest cursor fits into a request line.
CURSOR = r"^[A-Za-z0-9_=-]*$"
PAGED = (Header("Link", 'If there are more: `<…>; rel="next"` (RFC 8288), a path.'),)

Before = Annotated[
    str, Field(min_length=1, max_length=128, pattern=CURSOR, description="From the `Link` of the page before this one.")
]


class PageQuery(Shape):
    """``?limit=`` entries, from ``before``, the cursor in the Link of the last page."""

    limit: Annotated[int, Field(ge=1, le=100)] = 50
    before: Before | None = None

    @property
    def cursor(self) -> PageCursor | None:
        """Decode ``before``. Raises InvalidRequest if it is not a valid cursor."""
        if self.before is None:
            return None
        try:
            text = base64.b64decode(self.before, altchars=b"-_", validate=True).decode("ascii")
            moment, _, entry = text.partition(" ")
            # Convert to UTC here, because the result may be outside the calendar.
            cursor = datetime.fromisoformat(moment + "Z").astimezone(UTC), UUID(entry)
        except (ValueError, OverflowError, binascii.Error):
            fault = Fault("before", "not a valid cursor")
            raise InvalidRequest("Some fields are not valid.", details=[fault]) from None
        return cursor


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
    """Answer with a page, and link to the next one. ``time`` and ``key`` name the fields that the list is ordered by;
    ``filters`` are the other parameters of the query.

    ``more`` is True if there are more entries, for lists whose pages end by bytes. If it is None, there are more when
    there are more entries than ``limit``; such a page always fits into one answer (tests/test_lists.py)."""
    if more is None:
        entries, more = entries[: query.limit], len(entries) > query.limit
    if more:
        handler.link_next(limit=query.limit, before=cursor_of(entries[-1], time, key), **filters)
    handler.reply(entries)


def cursor_of(entry: Mapping[str, Any], time: str, key: str) -> str:
    """Return the cursor of the page after an entry."""
    moment = entry[time].astimezone(UTC).replace(tzinfo=None).isoformat()
    return base64.urlsafe_b64encode(f"{moment} {entry[key]}".encode()).decode()
