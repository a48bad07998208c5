"""The stage of a call between tabs: a coturn with TLS, one or more servers that know the page's origin, a Chromium."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser

from tests.browser.chromium import running_chromium, serving_page
from tests.browser.tab import Tab
from tests.deploy.test_turnserver import issue
from tests.e2e import conftest as e2e
from tests.phones.coturn import HOST, Tls, free_port, running_coturn
from tests.running import Services, place, program

StageOf = Callable[[int], contextlib.AbstractAsyncContextManager["Stage"]]


@dataclass(frozen=True)
class Stage(e2e.Stage):
    browser: Browser
    origin: str
    """Where the page comes from; the servers allow it."""

    def tab(self, public_id: str, server: int = 0) -> contextlib.AbstractAsyncContextManager[Tab]:
        """A tab that is online on one of the servers, by its number."""
        return Tab.online(self.browser, self.origin, self.urls[server], public_id)


@pytest.fixture
def stage(services: Services, tmp_path: Path) -> StageOf:
    """`async with stage(2) as ...`: two servers side by side, and a browser."""

    @contextlib.asynccontextmanager
    async def set_up(count: int) -> AsyncIterator[Stage]:
        tls = Tls(free_port(), tmp_path / "fullchain.pem", tmp_path / "privkey.pem")
        issue(tls.certificate, tls.key)
        async with contextlib.AsyncExitStack() as stack:
            browser = await stack.enter_async_context(running_chromium())
            origin = await stack.enter_async_context(serving_page())
            coturn = await stack.enter_async_context(running_coturn(base=e2e.CONF, tls=tls))
            shared = await stack.enter_async_context(place(services))
            settings = {
                "TURN_HOST": HOST,
                "TURN_PORT": str(coturn.port),
                "TURN_TLS_PORT": str(tls.port),
                "TURN_SECRET": coturn.secret,
                "CORS_ALLOW_ORIGINS": origin,
                "LOG_LEVEL": "debug",
            }
            servers = [await stack.enter_async_context(program(shared, tmp_path, **settings)) for _ in range(count)]
            made = Stage(shared, servers, browser, origin)
            try:
                yield made
            except BaseException:
                print(made.complaints())  # pytest shows it with the failure
                raise

    return set_up
