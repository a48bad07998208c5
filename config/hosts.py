"""Hosts: which database host is in use, as models report it and ``/health`` and the metrics show it."""

from __future__ import annotations

from typing import NamedTuple


class DatabaseHost(NamedTuple):
    """The host in use, its timeline (0 if it is unknown), and how many connections to other hosts were refused."""

    host: str
    timeline: int
    refused: int
