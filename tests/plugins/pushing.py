"""Users whose phones receive pushes, for tests: a town with fake providers, and the tokens of the phones."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests import canaries
from tests.client import Account
from tests.plugins.chatting import Town, town
from tests.providers.providers import Device, World, providers
from tests.running import Services

Json = dict[str, Any]


@contextlib.asynccontextmanager
async def pushing(
    services: Services, folder: Path, servers: int = 1, people: int = 2, **settings: str
) -> AsyncIterator[tuple[Town, World]]:
    """Servers that push, with people, and the three providers."""
    async with (
        providers(folder) as world,
        town(services, servers, people, **{**world.settings, **settings}) as made,
    ):
        yield made, world
        world.assert_right()


async def registered(person: Account, provider: str, **more: Any) -> str:
    """Register a device's token with that provider; the token."""
    token = secrets.token_hex(32) if provider.startswith("apns") else secrets.token_urlsafe(90)
    canaries.plant(token)
    answer = await person.put("/push/tokens", {"provider": provider, "token": token, **more})
    assert answer.status == 201, answer.text
    assert answer.json["available"]
    return token


async def subscribed(person: Account, world: World) -> Device:
    """Subscribe a device to the push service."""
    device = world.service.device()
    body = {"provider": "webpush", "subscription": device.subscription(world.service.doors.url)}
    answer = await person.put("/push/tokens", body)
    assert answer.status == 201, answer.text
    return device
