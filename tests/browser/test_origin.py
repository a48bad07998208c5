"""Origins: only pages of an allowed origin may use the server, whatever token another page has."""

import asyncio

from playwright.async_api import Frame, Page

from tests.browser.chromium import serving_page
from tests.browser.conftest import StageOf
from tests.browser.tab import PATIENCE, opened
from tests.client import Account

FETCH = """([server, token]) =>
    fetch(server + '/users/me', { headers: { Authorization: `Bearer ${token}` } }).then(
        (answer) => answer.status,
        (error) => error.name,
    )"""
# What was agreed on and the first frame's type, or the code of the closing.
CONNECT = """([server, token]) => new Promise((resolve) => {
    const socket = new WebSocket(server.replace('http', 'ws') + '/ws', ['mimu.v1', `bearer.${token}`]);
    socket.onmessage = ({ data }) => resolve([socket.protocol, JSON.parse(data).type]);
    socket.onclose = ({ code }) => resolve(code);
})"""
# A frame without an origin, as pages make it for advertisements and the like.
SANDBOX = """() => new Promise((resolve) => {
    const frame = document.createElement('iframe');
    Object.assign(frame, { sandbox: 'allow-scripts', srcdoc: '', onload: resolve });
    document.body.append(frame);
})"""
UNREADABLE = "TypeError"
NEVER_OPEN = 1006
REFUSED = "Unexpected response code: 403"  # only the page's console shows it


def test_only_an_allowed_origin_gets_in(stage: StageOf) -> None:
    async def knock() -> None:
        async with asyncio.timeout(PATIENCE), stage(1) as set_up, serving_page() as stranger:
            account = await Account().register(set_up.urls[0])
            async with opened(set_up.browser, set_up.origin) as page:
                await page.evaluate(SANDBOX)
                allowed, sandboxed = page.frames
                assert await allowed.evaluate(FETCH, [account.url, account.token]) == 200
                assert await allowed.evaluate(CONNECT, [account.url, account.token]) == ["mimu.v1", "ready"]
                await is_refused(page, sandboxed, account)
            async with opened(set_up.browser, stranger) as page:
                await is_refused(page, page.main_frame, account)

    asyncio.run(knock())


async def is_refused(page: Page, frame: Frame, account: Account) -> None:
    assert await frame.evaluate(FETCH, [account.url, account.token]) == UNREADABLE
    async with page.expect_console_message(lambda message: REFUSED in message.text):
        assert await frame.evaluate(CONNECT, [account.url, account.token]) == NEVER_OPEN
