"""A headless Chromium with a microphone and a camera that are made up, and the server of the page that it shows."""

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, StaticFileHandler

HOST = "127.0.0.1"
PAGE = Path(__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",  # which it needs as root, and in most containers
    "--use-fake-device-for-media-stream",  # a microphone that beeps, and a camera
    "--use-fake-ui-for-media-stream",  # no permission prompt
    "--autoplay-policy=no-user-gesture-required",
    "--ignore-certificate-errors",  # the relay's is of our own making
]


@contextlib.asynccontextmanager
async def running_chromium() -> AsyncIterator[Browser]:
    """The system's Chromium; skip the test where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("NOT TESTED in a browser: Chromium is not installed (Debian's package is chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def serving_page() -> AsyncIterator[str]:
    """The origin, unlike any other one, from which page.html and its scripts are served."""
    [listening] = bind_sockets(0, HOST)
    server = HTTPServer(Application([(r"/([\w.]+\.(?:html|js))", StaticFileHandler, {"path": str(PAGE)})]))
    server.add_socket(listening)
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}"
    finally:
        server.stop()
        await server.close_all_connections()
