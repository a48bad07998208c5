"""A tab with the page of the test client, as one person's phone; what it does is in phone.js and call.js."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Any, Self

from playwright.async_api import Browser, Page

from tests.phones.phone import TELLING
from tests.phones.signal_protocol import Json

PATIENCE = 60.0  # seconds for whatever a tab does; it takes about one, on a machine that has nothing else to do

# What is enough to have heard and seen somebody.
SAMPLES = 48_000  # a second of sound
ENERGY = 0.01  # as WebRTC counts it; a second of Chromium's beeps has 0.2, silence has none
PICTURES = 10


@contextlib.asynccontextmanager
async def opened(browser: Browser, origin: str) -> AsyncIterator[Page]:
    """A tab on the page that shares nothing with others. Errors that its scripts don't handle fail the test."""
    context = await browser.new_context()
    try:
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{origin}/page.html")
        yield page
        assert errors == []
    finally:
        await context.close()


class Tab:
    """One person at a tab. Every call of theirs is the page's present one."""

    def __init__(self, page: Page, public_id: str) -> None:
        self._page = page
        self.public_id = public_id
        self.user_id = ""
        # Of the same meaning as a Phone's; `confess` fetches them.
        self.said: set[str] = set()
        self.signalled: list[str] = []
        self.posted: list[str] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def online(cls, browser: Browser, origin: str, server: str, public_id: str) -> AsyncIterator[Self]:
        """A tab whose user has just registered and opened the socket."""
        async with opened(browser, origin) as page:
            tab = cls(page, public_id)
            account = [server, public_id, secrets.token_urlsafe(16)]
            await tab._do("globalThis.phone = await Phone.register(...given)", account)
            tab.user_id = (await tab._do("return phone.connect()"))["user_id"]
            yield tab

    async def ring(self, public_id: str, over: str, note: str, *, video: bool = True) -> Json:
        """Call a user through the relay over udp, tcp or tls. Returns the server's answer."""
        options = {"over": over, "note": note, "video": video}
        return await self._do("return phone.ring(...given)", [public_id, options])

    async def answer(self, over: str, note: str) -> Json:
        """Wait for a call and take it; the server's answer."""
        return await self._do("return phone.answer(given)", {"over": over, "note": note})

    async def note(self) -> str:
        """What the other side wrote into its offer, or its answer, when that has come."""
        return await self._do("return phone.call.note")

    async def hear(self, *, video: bool = True) -> Json:
        """Wait until some sound has come, and some pictures; what the browser says of it."""
        report: Json | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                while not (report and _enough(report, video=video)):
                    await asyncio.sleep(0.1)
                    report = await self._do("return phone.call.report()")
        except TimeoutError:
            raise AssertionError(f"{self.public_id} has heard and seen no more than {report}") from None
        return report

    async def pitch(self) -> float:
        """The pitch of the received audio, in hertz."""
        return await self._do("return phone.call.pitch()")

    async def heartbeat(self) -> Json:
        return await self._do("return phone.call.heartbeat()")

    async def hangup(self) -> Json:
        return await self._do("return phone.call.hangup()")

    async def hung_up(self) -> Json:
        """Wait until the other side, or the server, ends the call; that frame."""
        return await self._do("return phone.call.hungUp()")

    async def get(self, path: str) -> Any:
        return await self._do("return phone.ask('GET', given)", path)

    async def confess(self) -> None:
        """Fetch the plaintexts and payloads of this tab, to search for them where they must not be."""
        said, self.signalled = await self._do("return [phone.said, phone.signalled]")
        self.said = {line for text in said for line in text.splitlines() if len(line) >= TELLING}

    async def _do(self, script: str, given: object = None) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self._page.evaluate(f"async (given) => {{ {script} }}", given)


def assert_relayed(report: Json, over: str) -> None:
    """The media go from relay to relay, and the tab reaches its own over that transport."""
    assert report["pair"] == ["relay", "relay"]
    assert report["relay_protocol"] == over


def _enough(report: Json, *, video: bool) -> bool:
    heard = report["samples_heard"] >= SAMPLES and report["energy_heard"] >= ENERGY
    return heard and (report["frames_seen"] >= PICTURES or not video)
