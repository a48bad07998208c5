"""The cost of a request: spent from the budgets of its account, whose state the answer's headers show."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any

from config.pages import MAX_PAGE
from config.values import Rate
from handlers.http.answering import AnsweringHandler
from handlers.limits.ledger import Account
from handlers.limits.rates import Quota, limit_key, within
from handlers.limits.share import SECONDS_PER_BYTE, Share
from handlers.tokens import Session
from handlers.wire.costs import BYTES_IN, BYTES_OUT, READS, ROWS, TRANSFER
from handlers.wire.errors import Unavailable
from handlers.wire.operations import declared


class AccountingHandler(AnsweringHandler):
    """The part of ApiHandler that counts: rate limits, the budgets of handlers/limits/ledger.py, and shares
    (share.py)."""

    _session: Session | None
    _account: Account | None = None  # None if nothing is counted
    _cost = READS
    _quotas: dict[str, Quota] | None = None
    _received = 0  # bytes of the body
    _sent = 0
    _charged_in = _charged_out = 0  # bytes that the account has paid for
    _rows = 0  # spent before they are stored
    _began = 0.0  # start time of the method
    _own_turn: asyncio.Future[float] | None = None  # the turn that this request waits for
    _gone = False  # True when the client has disconnected

    @property
    def session(self) -> Session:
        """The session of the caller."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """The client's address."""
        raise NotImplementedError

    @property
    def share(self) -> Share | None:
        """The account's share of the loop; None if nothing is counted."""
        return None if self._account is None else self._account.share

    @classmethod
    def methods(cls) -> tuple[str, ...]:
        """The methods that the endpoint has code for."""
        raise NotImplementedError

    async def limit(self, name: str, rate: Rate, key: str | None = None, cost: int = 1) -> None:
        """Count this request; by client address unless another key is given. Raises RateLimited."""
        await self.application.limits.spend(name, key or limit_key(self.address), rate, cost, shown=True)

    def spend_rows(self, rows: int) -> None:
        """Spend rows in addition to those that the operation declares, before they are stored. Raises RateLimited."""
        if self._account is not None:
            try:
                self._account.spend(ROWS, rows)
            finally:
                self._show(self._account.quota(self._cost.request))
            self._rows += rows

    def _admit(self) -> None:
        """Spend the request from the budgets of its account, or of its address. Raises RateLimited."""
        ledger = self.application.ledger
        if not ledger.on:
            return
        operation = declared(type(self), self._answering_method())
        self._cost = cost = (operation and operation.cost) or READS
        if cost.for_monitors and within(self.address, self.application.core.metrics_allow):
            return
        known = self._session is not None and not cost.by_address
        account = ledger.account(self.session.user_id if known else limit_key(self.address))
        self._account, self._rows = account, 0  # the bytes of a refused request count, too
        try:
            account.spend_request(cost)
        finally:
            self._show(account.quota(cost.request))
        self._rows = cost.rows

    def in_turn(self, method: Callable[[], Awaitable[None] | None]) -> Awaitable[None] | None:
        """Run a method of the endpoint in its account's turn. Raises RateLimited, at once or later."""
        account = self._account
        if account is None or self._began:  # a method that calls another already has its turn
            return method()
        return self._run(account.share, method)

    async def _run(self, share: Share, method: Callable[[], Awaitable[None] | None]) -> None:
        self._began = share.begin() or await self._until(share.begin_in_turn())
        try:
            pending = method()
            if pending is not None:
                await pending
        finally:
            share.end(self._began, self._cost.seconds)

    async def reserve(self, size: int = MAX_PAGE, key: Hashable = None) -> None:
        """Wait for memory for a long answer. A request that waited too long for it also waits for another turn: else
        all requests that receive memory at the same moment would be at work at once."""
        await super().reserve(size, key)
        if self.share is not None and not self.share.is_at_work(self._began):
            self._began = self.share.begin() or await self._until(self.share.begin_eventually())

    async def _until(self, turn: Coroutine[Any, Any, float]) -> float:
        """Wait for a turn. Raises Unavailable if the client disconnects: others need the turn, and the memory."""
        if self._gone:
            turn.close()
            raise Unavailable
        self._own_turn = asyncio.ensure_future(turn)
        try:
            return await self._own_turn
        except asyncio.CancelledError:
            if self._gone:
                raise Unavailable from None
            raise
        finally:
            self._own_turn = None

    def on_connection_close(self) -> None:
        self._gone = True
        if self._own_turn is not None:
            self._own_turn.cancel()
        super().on_connection_close()

    def _answering_method(self) -> str:
        """The method that answers: GET for a HEAD request, unless the endpoint has its own HEAD."""
        method = self.request.method or ""
        return "GET" if method == "HEAD" and "HEAD" not in self.methods() else method

    def _charge(self, status: int) -> None:
        """Spend the bytes received and sent since the last call. Refund the rows of a refused request."""
        account = self._account
        if account is None:
            return
        received, sent = self._received - self._charged_in, self._sent - self._charged_out
        self._charged_in, self._charged_out = self._received, self._sent
        if self._cost.transfers:
            account.charge(TRANSFER, received + sent)
        else:
            account.charge(BYTES_IN, received)
            account.charge(BYTES_OUT, sent)
            account.share.add_work(sent * SECONDS_PER_BYTE)
        if status >= 400 and self._rows:
            account.charge(ROWS, -self._rows)
            self._rows = 0

    def write(self, chunk: Any) -> None:
        self._sent += len(chunk)
        super().write(chunk)

    # The headers RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers) --------------------------------

    def _show(self, quota: Quota) -> None:
        """Add the state of a limit or a budget to the answer's headers."""
        if not self._headers_written:
            self._quotas = {**(self._quotas or {}), quota.name: quota}
            self._show_quotas()

    def _show_quotas(self) -> None:
        if self._quotas:
            quotas = self._quotas.values()
            self._headers["RateLimit-Policy"] = ", ".join(quota.policy for quota in quotas)
            self._headers["RateLimit"] = ", ".join(quota.standing for quota in quotas)
