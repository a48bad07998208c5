"""Files on S3 as a page of another origin gets them: by their address, for it can't follow the redirect."""

import asyncio
import secrets
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.storage.sigv4 import Signer
from tests.browser.chromium import running_chromium, serving_page
from tests.browser.tab import PATIENCE, opened
from tests.client import Account, b64
from tests.files.seaweed import ACCESS, SECRET, Seaweed, seaweed
from tests.files.transfer import shared
from tests.running import ROOT, Services, place, serving
from tests.test_docs import part

CORS = """<CORSConfiguration><CORSRule><AllowedOrigin>{origin}</AllowedOrigin>
<AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod>
<AllowedHeader>Range</AllowedHeader><AllowedHeader>Content-Type</AllowedHeader>
<AllowedHeader>If-None-Match</AllowedHeader>
<ExposeHeader>ETag</ExposeHeader><ExposeHeader>Content-Range</ExposeHeader></CORSRule></CORSConfiguration>"""
FOLLOWED = """([server, token, id]) =>
    fetch(`${server}/files/${id}/content`, { headers: { Authorization: `Bearer ${token}` } }).then(
        (answer) => answer.status,
        (error) => error.name,
    )"""
BASE64 = "btoa(String.fromCharCode(...new Uint8Array(bytes)))"


@pytest.fixture(params=["disk", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Seaweed | None]:
    if request.param == "disk":
        yield None
        return
    with seaweed(tmp_path) as server:
        yield server


def allow(bucket: Seaweed, origin: str) -> None:
    """Let a page of that origin into the bucket, as docs/files.md says."""
    url = Signer(bucket.endpoint, "files", "us-east-1", ACCESS, SECRET).sign("PUT", "", 60, query={"cors": ""})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(url, CORS.format(origin=origin).encode(), method="PUT"), timeout=5).close()


def test_a_page_of_another_origin_reads_a_file(services: Services, bucket: Seaweed | None) -> None:
    [documented] = [
        code.partition("```")[0]
        for code in part(ROOT / "docs/files.md", "From a page of another origin").split("```js\n")[1:]
    ]
    read = f"async ([server, token, id]) => {{ {documented} return {BASE64}; }}"
    content = secrets.token_bytes(1000)

    async def reading() -> None:
        async with (
            asyncio.timeout(PATIENCE),
            running_chromium() as browser,
            serving_page() as origin,
            place(services) as home,
            serving(home, CORS_ALLOW_ORIGINS=origin, **(bucket.settings() if bucket else {})) as running,
            opened(browser, origin) as page,
        ):
            alice = await Account().register(running.url)
            file_id = await shared(alice, content)
            if bucket:
                await asyncio.to_thread(allow, bucket, origin)
            given = [running.url, alice.token, file_id]
            assert await page.evaluate(read, given) == b64(content)
            # Why the address is needed: on S3 the redirect arrives as from nowhere.
            assert await page.evaluate(FOLLOWED, given) == ("TypeError" if bucket else 200)

    asyncio.run(reading())
