"""The page at /docs in a real Chromium, on a desk and on a phone: it shows the routes, and asks no other host."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page

from tests.browser.chromium import running_chromium
from tests.browser.tab import PATIENCE
from tests.client import Account
from tests.running import Services, place, serving

SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
# Where pictures of the page go, for who wants to see it.
PICTURES = os.environ.get("MIMU_TEST_PICTURES")


class Watched:
    """A tab at the page, with all that its scripts complained of and all that it asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("request", lambda request: self.asked.append(request.url))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    async def picture(self, name: str) -> None:
        if PICTURES:
            await self.page.screenshot(path=Path(PICTURES) / f"{name}.png")


@pytest.mark.parametrize("size", SIZES)
def test_the_page_shows_every_route_and_loads_nothing_from_elsewhere(services: Services, size: str) -> None:
    async def look() -> None:
        async with (
            asyncio.timeout(PATIENCE),
            place(services) as home,
            serving(home) as server,
            running_chromium() as browser,
        ):
            alice = await Account().register(server.url)
            context = await browser.new_context(viewport=SIZES[size])
            watched = Watched(await context.new_page())
            page = watched.page
            await page.goto(f"{server.url}/docs")
            await page.wait_for_selector(".opblock")
            document = await (await page.request.get(f"{server.url}/openapi.json")).json()
            shown = {
                (await block.locator(".opblock-summary-method").inner_text()).lower()
                + " "
                + (await block.locator(".opblock-summary-path").get_attribute("data-path") or "")
                for block in await page.locator(".opblock").all()
            }
            methods = {"get", "put", "post", "delete", "patch", "head", "options"}
            wanted = {
                f"{method} {path}" for path, item in document["paths"].items() for method in item.keys() & methods
            }
            assert shown == wanted
            await watched.picture(f"{size}-all")
            await _no_wider_than_the_screen(page)

            await page.locator("#operations-chats-post_chats").scroll_into_view_if_needed()
            await page.locator("#operations-chats-post_chats .opblock-summary").click()
            await page.wait_for_selector("#operations-chats-post_chats .responses-table")
            await watched.picture(f"{size}-operation")
            await _no_wider_than_the_screen(page)
            text = await page.locator("#operations-chats-post_chats").inner_text()
            assert "RATE_LIMIT_CHATS" in text and "Walking on Sunday" in text and "forbidden" in text

            # With a token it can be tried at once, from the page.
            await page.locator(".btn.authorize").click()
            await page.locator(".auth-container input").first.fill(alice.token)
            await watched.picture(f"{size}-token")
            await page.locator(".auth-btn-wrapper .authorize").first.click()
            await page.locator(".auth-btn-wrapper .btn-done").first.click()
            me = page.locator("#operations-users-get_users_me")
            await me.locator(".opblock-summary").click()
            await me.locator(".try-out__btn").click()
            await me.locator(".execute").click()
            await me.locator(".live-responses-table .response-col_status").first.wait_for()
            assert alice.public_id in await me.locator(".live-responses-table").inner_text()
            await watched.picture(f"{size}-tried")
            await _no_wider_than_the_screen(page)

            own = urlsplit(server.url).netloc
            others = {urlsplit(url).netloc for url in watched.asked if urlsplit(url).scheme != "data"} - {own}
            assert others == set()
            assert watched.complaints == []
            await context.close()

    asyncio.run(look())


async def _no_wider_than_the_screen(page: Page) -> None:
    wide, screen = await page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= screen, "it has to be scrolled sideways"
