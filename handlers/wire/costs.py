"""Costs: what a route or a frame may cost this server, declared with it (docs/protocol.md, budgets)."""

from __future__ import annotations

REQUESTS, FRAMES, BYTES_IN, BYTES_OUT, TRANSFER, ROWS, FANOUT = range(7)
KINDS = ("requests", "frames", "bytes-in", "bytes-out", "transfer", "rows", "fan-out")
BYTE_KINDS = frozenset((BYTES_IN, BYTES_OUT, TRANSFER, FANOUT))


class Cost:
    """The cost of a route or a frame: one request or frame, the bytes of both directions, and these.

    ``rows`` are stored for long, and are spent before the work is done; a handler spends more if their number depends
    on the request. ``fans_out``: others receive what is sent. ``transfers``: the bytes are those of files.
    ``by_address``: the client's address pays, even if there is an account. ``for_monitors``: requests from
    METRICS_ALLOW cost nothing. ``seconds``: the most time of a request that is charged to the share of its account
    (handlers/limits/share.py), because a longer request usually waited for others.
    """

    __slots__ = ("by_address", "fans_out", "for_monitors", "frame", "request", "rows", "seconds", "transfers")

    def __init__(
        self,
        *,
        rows: int = 0,
        fans_out: bool = False,
        transfers: bool = False,
        by_address: bool = False,
        for_monitors: bool = False,
        seconds: float = 0.01,
    ) -> None:
        self.rows, self.fans_out, self.transfers = rows, fans_out, transfers
        self.by_address, self.for_monitors, self.seconds = by_address, for_monitors, seconds
        more = ((ROWS,) if rows else ()) + ((FANOUT,) if fans_out else ())
        # The budgets that must not be exhausted when the work begins.
        self.request = (REQUESTS, *((TRANSFER,) if transfers else (BYTES_IN, BYTES_OUT)), *more)
        self.frame = (FRAMES, BYTES_IN, *more)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the names of the budgets that a request needs."""
        return tuple(KINDS[kind] for kind in self.request)


READS = Cost()  # stores nothing
SEARCHES = Cost(seconds=0.1)  # stores nothing; PostgreSQL may scan all accounts
UPDATES = Cost()  # changes or deletes rows
WRITES = Cost(rows=1)  # stores a row
POSTS = Cost(fans_out=True)  # others receive it; another limit bounds how much is stored
CHANGES = Cost(rows=1, fans_out=True)  # stores an event that all participants receive
JOINS = Cost(rows=2, fans_out=True)  # stores a participant and an event
DEFENDS = Cost(by_address=True)  # ends sessions: the owner can do it after a thief exhausts the account's budgets
TRANSFERS = Cost(transfers=True)  # bytes of files
MONITORS = Cost(for_monitors=True)  # health and metrics
