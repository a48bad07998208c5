"""Pages limited by bytes: the statement that reads a page adds up the sizes of its rows, and returns only those that
fit.

PostgreSQL knows the length of a value without reading it (``octet_length`` of a TOASTed value), so a row that does not
fit costs nothing. The size of a row is that of its JSON, or a little more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from config.pages import MAX_PAGE
from models.database import Row

_HELPERS = ("total", "number", "more")


def cut(rows: str, size: str, order: str, limit: str) -> str:
    """Return the statement that reads a page of ``rows``, a SELECT in any order: at most ``limit`` (a parameter) of
    them, at most MAX_PAGE bytes by ``size``, at least one. ``size`` and ``order`` use columns of ``rows``."""
    return f"""
SELECT * FROM (
    SELECT page.*, sum({size}) OVER place AS total, row_number() OVER place AS number,
           lead(true) OVER place IS NOT NULL AS more
    FROM ({rows} ORDER BY {order} LIMIT {limit} + 1) AS page
    WINDOW place AS (ORDER BY {order} ROWS UNBOUNDED PRECEDING)
) AS page WHERE number <= {limit} AND (total <= {MAX_PAGE} OR number = 1) ORDER BY {order}"""


def read_page(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], bool]:
    """Return the rows of such a statement, and True if there are more."""
    page = [{name: value for name, value in row.items() if name not in _HELPERS} for row in rows]
    return page, more_behind(rows)


def more_behind(rows: Sequence[Row]) -> bool:
    """True if there are more rows than such a statement returned."""
    return bool(rows and rows[-1]["more"])


def base64_size(column: str) -> str:
    return f"coalesce((octet_length({column}) + 2) / 3 * 4, 0)"


def text_size(*columns: str) -> str:
    return " + ".join(f"coalesce(octet_length(to_json({column})::text), 0)" for column in columns)


def json_size(*columns: str) -> str:
    return " + ".join(f"coalesce(octet_length({column}::text), 0)" for column in columns)


class Page:
    """A page that is filled from several statements, entry by entry, up to MAX_PAGE bytes."""

    def __init__(self) -> None:
        self._size = 0
        self._empty = True

    def add(self, size: int) -> bool:
        """Count an entry; False if it does not fit. The first one always fits."""
        if not self._empty and self._size + size > MAX_PAGE:
            return False
        self._empty = False
        self._size += size
        return True
