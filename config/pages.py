"""Pages: the largest size of one answer, for statements, which end a page there, and for the server's memory budget."""

from __future__ import annotations

MAX_PAGE = 1 << 20  # bytes of JSON (contract section 7)
