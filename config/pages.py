"""Pages: how long one answer may be, for the statements that cut it and the server that keeps room for it."""

from __future__ import annotations

MAX_PAGE = 1 << 20  # bytes of JSON (contract section 7)
