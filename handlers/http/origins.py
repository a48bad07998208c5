"""Origins: which web pages may call this server, by scheme, host and port (RFC 6454)."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def parse(origin: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of an origin, with the scheme's default port; None if it is not one."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return None
    scheme, host = parts.scheme.lower(), parts.hostname
    if not scheme or not host or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return scheme, host, port if port is not None else DEFAULT_PORTS.get(scheme)


def is_allowed(origin: str, allowed: Iterable[str]) -> bool:
    """True if an Origin header is in a list of origins; ``*`` allows any."""
    own = parse(origin)
    return any(one in ("*", origin) or (own is not None and parse(one) == own) for one in allowed)


def is_own(origin: str, host: str) -> bool:
    """True if an Origin header names the host of the request, with or without the scheme's port."""
    own = parse(origin)
    return own is not None and parse(f"{own[0]}://{host}") == own
