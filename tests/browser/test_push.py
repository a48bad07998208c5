"""The page's part of Web Push, as docs/push.md has it; the push service itself is made up."""

import asyncio
from pathlib import Path

from tests.browser.chromium import running_chromium, serving_page
from tests.browser.tab import PATIENCE, opened
from tests.plugins.pushing import pushing
from tests.running import ROOT, Services
from tests.test_docs import part

# What a browser's PushSubscription is when it becomes JSON; it can be had only from a push service of the vendor's.
SUBSCRIBE = """const registration = { pushManager: { subscribe: async (asked) => {
    globalThis.asked = asked;
    return { toJSON: () => made };
} } };"""


def test_a_page_registers_its_subscription(services: Services, tmp_path: Path) -> None:
    code = part(ROOT / "docs/push.md", "Browsers").split("```js\n")[1].partition("```")[0]
    register = f"async ([server, token, made]) => {{ {SUBSCRIBE} {code} return globalThis.asked; }}"

    async def registering() -> None:
        async with (
            asyncio.timeout(PATIENCE),
            running_chromium() as browser,
            serving_page() as origin,
            pushing(services, tmp_path, people=1, CORS_ALLOW_ORIGINS=origin) as (town, world),
            opened(browser, origin) as page,
        ):
            [alice] = town.people
            subscription = world.service.device().subscription(world.service.doors.url)
            asked = await page.evaluate(register, [alice.url, alice.token, subscription])
            assert asked["userVisibleOnly"]
            assert asked["applicationServerKey"] == (await alice.get("/push/vapid")).json["application_server_key"]
            [token] = (await alice.get("/push/tokens")).json
            assert token["provider"] == "webpush"

    asyncio.run(registering())
