"""Costs: what a route or a frame may cost this server, declared beside it (docs/protocol.md, budgets)."""

from __future__ import annotations

REQUESTS, FRAMES, BYTES_IN, BYTES_OUT, TRANSFER, ROWS, FANOUT = range(7)
KINDS = ("requests", "frames", "bytes-in", "bytes-out", "transfer", "rows", "fan-out")
BYTE_KINDS = frozenset((BYTES_IN, BYTES_OUT, TRANSFER, FANOUT))


class Cost:
    """What a route or a frame may cost: one request or frame, the bytes of both directions, and what is named here.

    ``rows`` are kept for long and are spent before the work is done; a handler spends more where their number depends
    on the request. With ``fans_out`` others receive what is sent, and with ``transfers`` the bytes are those of files.
    ``by_address``: the client's address pays, also where there is an account. ``for_monitors``: requests from
    METRICS_ALLOW cost nothing. ``seconds``: of the time that a request took, so much is charged at most to the share of
    its account (handlers/limits/share.py); what takes longer has waited for others, unless its work is as long as that.
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
        # The kinds that must not be used up before the work begins.
        self.request = (REQUESTS, *((TRANSFER,) if transfers else (BYTES_IN, BYTES_OUT)), *more)
        self.frame = (FRAMES, BYTES_IN, *more)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the budgets that a request needs."""
        return tuple(KINDS[kind] for kind in self.request)


READS = Cost()  # leaves nothing behind
SEARCHES = Cost(seconds=0.1)  # the same, and PostgreSQL may look through all accounts for it
UPDATES = Cost()  # changes or removes what is there
WRITES = Cost(rows=1)  # leaves a row
POSTS = Cost(fans_out=True)  # others receive it; how much of it is kept has a limit elsewhere
CHANGES = Cost(rows=1, fans_out=True)  # leaves an event that all participants receive
JOINS = Cost(rows=2, fans_out=True)  # leaves a participant and an event
DEFENDS = Cost(by_address=True)  # ends sessions: a thief who uses up the budgets must not keep the owner from it
TRANSFERS = Cost(transfers=True)  # bytes of files
MONITORS = Cost(for_monitors=True)  # health and metrics
