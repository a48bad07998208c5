"""Pages: long lists in parts, newest first, by a cursor that names the last entry seen (contract section 1)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from handlers.base import ApiHandler
from handlers.errors import Fault, InvalidRequest
from handlers.operations import Header
from handlers.shapes import Shape

Place = tuple[datetime, UUID]
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
    def place(self) -> Place | None:
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
    **filters: str,
) -> None:
    """Answer with the first ``limit`` entries; when there is one more, point to the rest. ``time`` and ``key`` name
    the fields that the list is ordered by; ``filters`` are the other parameters of the query."""
    if len(entries) > query.limit:
        last = entries[query.limit - 1]
        cursor = base64.urlsafe_b64encode(
            f"{last[time].astimezone(UTC).replace(tzinfo=None).isoformat()} {last[key]}".encode()
        ).decode()
        handler.link_next(limit=query.limit, before=cursor, **filters)
    handler.reply(entries[: query.limit])
