"""A whole installation for the doctor: PostgreSQL, Valkey, two servers, nginx, coturn and a backup, as docs/deploy.md
has them, with ways to spoil each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from config import embedded
from models.postgres import migrations
from server import Server
from tests import canaries
from tests.deploy import nginx
from tests.deploy.relay import Relay, relaying
from tests.providers.certificates import certified
from tests.running import Place, serving
from tests.scripts.examining import Found, examine
from tests.scripts.program import script
from tests.scripts.valkey import valkey

MONTHS = timedelta(days=90)
COTURN = "127.0.0.2"  # another address than this machine's own, which no phone could use


@dataclass
class Installation:
    """What a fault can be planted in. ``settings`` stand in ``env_file``."""

    home: Path
    settings: dict[str, str]
    env_file: Path
    data: Path  # of PostgreSQL
    redis: Any
    relay: Relay
    proxy: nginx.Proxy
    shelf: Path
    archives: Path
    second: Second

    @property
    def place(self) -> Place:
        return Place(self.settings["DATABASE_URL"], self.settings["REDIS_URL"])

    async def run_examination(
        self, only: str, changed: Mapping[str, str], proxy: nginx.Proxy | None = None, instances: int = 2
    ) -> Found:
        """What the doctor finds, with the settings of the file and some that were changed."""
        behind = proxy or self.proxy
        words = ["--nginx", str(behind.folder / "nginx.conf"), "--instances", str(instances)]
        return await examine(changed, only, url=behind.url, env_file=self.env_file, words=words)

    async def database(self, *statements: str) -> None:
        """Run statements as the servers' role."""
        await _run(self.settings["DATABASE_URL"], statements)

    async def superuser(self, *statements: str) -> None:
        """Run statements as PostgreSQL's superuser."""
        parts = urlsplit(self.settings["DATABASE_URL"])
        await _run(f"postgresql://postgres@127.0.0.1:{parts.port}{parts.path}", statements)

    def reload(self) -> None:
        _reload(self.data)

    @contextlib.contextmanager
    def fronted(self, changes: Mapping[str, str]) -> Iterator[nginx.Proxy]:
        """Another nginx before the same servers, whose configuration was changed."""
        with nginx.proxying(*self.second.addresses, changes=changes, ends=MONTHS) as proxy:
            (proxy.folder / "privkey.pem").chmod(0o600)
            with _trusted(self.home / "ca.pem", proxy.authority):
                yield proxy


@dataclass
class Second:
    """The second of two servers, which can be stopped."""

    addresses: list[str]
    stack: contextlib.AsyncExitStack

    async def stop(self) -> None:
        await self.stack.aclose()


async def _run(dsn: str, statements: tuple[str, ...]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _reload(data: Path) -> None:
    os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGHUP)


@contextlib.contextmanager
def _trusted(bundle: Path, *authorities: Path) -> Iterator[None]:
    """Have these authorities trusted as well as those of the bundle, as if the system knew them."""
    before = bundle.read_text() if bundle.exists() else ""
    bundle.write_text(before + "".join(path.read_text() for path in authorities))
    try:
        yield
    finally:
        bundle.write_text(before)


async def _migrated(stack: contextlib.AsyncExitStack, home: Path) -> tuple[str, Path]:
    """The address of a new database, and its folder; its superuser is let in without a password."""
    dsn = await stack.enter_async_context(embedded.postgres(home))
    await migrations.migrate(dsn)
    data = home / "postgres" / "data"
    rules = data / "pg_hba.conf"
    rules.write_text("host all postgres 127.0.0.1/32 trust\n" + rules.read_text())
    _reload(data)
    await asyncio.sleep(0.2)
    return dsn, data


@contextlib.asynccontextmanager
async def installation(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Installation]:
    """Everything, until the block ends."""
    async with contextlib.AsyncExitStack() as stack:
        home = stack.enter_context(nginx.folder())
        bundle, certificate = home / "ca.pem", home / "certificate"
        certificate.mkdir()
        authority, _ = certified(certificate, ends=MONTHS, names=(COTURN,))
        (certificate / "server.pem").chmod(0o644)  # for coturn's user; this folder is the tests' own
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        stack.enter_context(_trusted(bundle, authority))
        dsn, data = await _migrated(stack, home)
        kept = home / "redis"
        kept.mkdir()
        redis_url, redis = await stack.enter_async_context(valkey(kept))
        pem = f"cert={certificate}/server.pem\npkey={certificate}/server.pem\n"
        relay = await stack.enter_async_context(relaying(COTURN, more=pem))
        settings = {
            "MIMU_ENV": "production",
            "MIMU_DATA_DIR": str(home / "var"),
            "DATABASE_URL": dsn,
            "REDIS_URL": redis_url,
            "JWT_SECRET": secrets.token_hex(32),
            "TURN_SECRET": relay.secret,
            "TURN_HOST": COTURN,
            "TURN_PORT": str(relay.port),
            "TURN_TLS_PORT": str(relay.tls_port),
            "TRUSTED_PROXIES": "127.0.0.1/32",
            "RATE_LIMITS": "on",
            "DATABASE_MAX_CONNECTIONS": "10",  # of the embedded one's 60
        }
        canaries.plant(settings["JWT_SECRET"], relay.secret)
        (home / "var").mkdir(mode=0o700)
        env_file = home / "mimu.env"
        env_file.touch(0o600)
        env_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        shared = Place(dsn, redis_url)
        one: Server = await stack.enter_async_context(serving(shared, **settings))
        inner = await stack.enter_async_context(contextlib.AsyncExitStack())
        other: Server = await inner.enter_async_context(serving(shared, **settings))
        addresses = [f"127.0.0.1:{server.port}" for server in (one, other)]
        proxy = stack.enter_context(nginx.proxying(*addresses, ends=MONTHS))
        (proxy.folder / "privkey.pem").chmod(0o600)
        stack.enter_context(_trusted(bundle, proxy.authority))
        shelf, archives = home / "backups", home / "keys"
        made = await script(None, "backup", "--output", str(shelf), "--keys", str(archives), **settings)
        assert made.code == 0, made.err
        second = Second(addresses, inner)
        yield Installation(home, settings, env_file, data, redis, relay, proxy, shelf, archives, second)
