"""Mimu's server: assemble config, models, handlers and plugins, and run them until a signal arrives."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import asyncpg
import structlog
import uvloop
from redis.exceptions import RedisError

import plugins
from config import embedded, logs, reasons, supervisor, tracing
from config.configuration import read_sections
from config.keyring import KeyringFile
from config.settings import Core, Section, SettingsError, environment
from config.values import Rate
from config.version import VERSION
from handlers import vitals
from handlers.alerts import Alerts
from handlers.http import health
from handlers.http.base import UnknownRoute
from handlers.http.listener import LOOPBACK, Listener, authority, bind, shut_down
from handlers.http.site import Check, Site
from handlers.limits.ledger import Ledger
from handlers.limits.rates import Limits
from handlers.metrics import Metrics
from handlers.passwords import Passwords
from handlers.redis_service import redis_client
from handlers.reference import page as docs
from handlers.revocations import Revocations
from handlers.sockets.bus import Bus
from handlers.sockets.delivery import Delivery
from handlers.sockets.hub import Hub, Peer
from handlers.sockets.socket import Event, SocketHandler, auth_event
from handlers.tokens import Tokens
from handlers.wire import frames
from models.chats.access import Access
from models.database import Database, Unavailable
from models.postgres import migrations
from models.postgres.cluster import WATCH_SECONDS, Cluster, fenced
from models.postgres.epochs import Epoch
from models.postgres.fitness import takes_writes
from models.postgres.statements import Watch
from models.sweeps import Watch as SweepWatch
from plugins import App, Every, Plugin, Timer

log = structlog.get_logger(__name__)

REJECTED = (asyncpg.PostgresError, asyncpg.InterfaceError, RedisError, ValueError)  # a URL or a password is wrong
WRONG_SETTINGS = 78  # sysexits.h: EX_CONFIG
OUTAGES = (Unavailable, RedisError, ConnectionError, TimeoutError, asyncpg.TransactionRollbackError)  # become 503


@dataclass(frozen=True)
class Configuration:
    """All settings, validated: the core's, and a section for each enabled feature."""

    core: Core
    sections: Mapping[str, Section]
    features: Mapping[str, ModuleType]

    @property
    def rates(self) -> dict[str, Rate]:
        """The rate limits by the names of their settings; empty if RATE_LIMITS is off."""
        sections = (self.core, *self.sections.values())
        rates = {name: value for section in sections for name, value in section if isinstance(value, Rate)}
        return rates if self.core.rate_limits == "on" else {}


def configure(values: Mapping[str, str], *, make_secrets: bool = True) -> Configuration:
    """Read and validate the settings. In development missing secrets are generated and kept in the data folder.

    Raises SettingsError with all faults.
    """
    faults: list[str] = []
    disabled = [name.strip() for name in values.get("PLUGINS_DISABLED", "").split(",") if name.strip()]
    try:
        features = plugins.discover(disabled)
    except LookupError as error:
        faults.append(str(error.args[0]))
        features = plugins.discover()
    sections = {name: module.Settings for name, module in features.items()}
    core, read = read_sections(values, sections, faults, make_secrets=make_secrets)
    return Configuration(core, read, features)


@dataclass(frozen=True)
class Server:
    """A running server, and the URLs of the services that it uses."""

    app: App
    features: Sequence[Plugin]
    site: Site
    addresses: Sequence[tuple[str, int]]  # on which it listens
    database_url: str
    redis_url: str

    @property
    def port(self) -> int:
        return self.addresses[0][1]

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        """Its URLs on this machine, one for each address on which it listens."""
        return [f"http://{authority(LOOPBACK.get(host, host), port)}" for host, port in self.addresses]


@contextlib.asynccontextmanager
async def running(configuration: Configuration) -> AsyncIterator[Server]:
    """Start everything in order, and stop it in reverse order, also if the start fails half-way."""
    core = configuration.core
    async with contextlib.AsyncExitStack() as stack:
        instance_id = uuid4()
        # First, so that it can still export the last spans.
        traces = await stack.enter_async_context(tracing.traces(core.otel_exporter_otlp_endpoint, instance_id))
        database_url, redis_url = await _services(core, stack)
        redis = await stack.enter_async_context(redis_client(redis_url))
        cluster = await fenced(database_url, core.mimu_data_dir, redis) if core.database_url else Cluster(database_url)
        if newer := await migrations.ready(cluster):
            log.info("schema_newer", versions=newer)
        metrics = Metrics()
        vitals.show_process(metrics)
        statements, sweeps = vitals.Statements(metrics), vitals.Sweeps(metrics)
        database = Database(
            cluster,
            core.database_max_connections,
            name=f"mimu/{instance_id}",
            watch=Watch(
                statements.acquired,
                statements.answered,
                statements.failed,
                traces.statement if traces.on else None,
            ),
        )
        statements.pool(database.usage)
        vitals.show_database(metrics, cluster.host_in_use, lambda: cluster.refused)
        epoch = Epoch(database)  # read before the first connection is used, so before the first request
        await stack.enter_async_context(database.open())
        bus = Bus(redis, instance_id, metrics)
        hub = Hub(bus, metrics, instance_id)
        access = Access(database)
        epoch.changed += [access.clear, lambda: hub.restart(core.shutdown_seconds)]
        ledger = Ledger(redis, core, metrics, on=core.rate_limits == "on")
        delivery = Delivery(hub, bus, access.members, access.hidden_from, ledger.fan_out)
        keyrings = KeyringFile(core.keyring_path)
        tokens = Tokens(keyrings.ring("jwt", core.jwt_secrets), core.jwt_expiration_hours * 3600)
        limits = Limits(redis, on=core.rate_limits == "on")
        passwords = Passwords(limits)
        stack.callback(passwords.close)
        revocations = Revocations(tokens, hub, bus)
        app = App(
            core=core,
            db=database,
            epoch=epoch,
            redis=redis,
            bus=bus,
            hub=hub,
            access=access,
            delivery=delivery,
            alerts=Alerts(),
            tokens=tokens,
            keyrings=keyrings,
            limits=limits,
            ledger=ledger,
            passwords=passwords,
            revocations=revocations,
            metrics=metrics,
            sweeps=SweepWatch(sweeps.planned, sweeps.backlog, sweeps.failed),
            traces=traces,
            instance_id=instance_id,
        )

        features = [module.setup(app, configuration.sections[name]) for name, module in configuration.features.items()]
        site = assemble(app, features, configuration.rates)
        results: dict[str, str] = {}
        examiner = health.Examiner(site.checks)
        vitals.show_queues(metrics, site, delivery, passwords)
        vitals.show_health(metrics, results, examiner.faults)
        vitals.show_backups(metrics, core.mimu_data_dir)
        await stack.enter_async_context(vitals.measure_lag(metrics))
        await stack.enter_async_context(bus.running())
        await stack.enter_async_context(revocations.listening())
        await stack.enter_async_context(delivery.running())
        for feature in features:
            await stack.enter_async_context(feature.lifespan())

        listener = Listener(site)
        listener.add_sockets(listening := bind(core.hosts, core.port))
        stack.push_async_callback(shut_down, listener, hub, site, core.shutdown_seconds)

        async def reload() -> None:
            if keyrings.reload():
                log.info("keyring_reloaded")

        async def check() -> None:
            results.update(await examiner.examine())

        stack.callback(asyncio.create_task(check()).cancel)
        # "keyring": every server reads a rotated secret well before it signs, a minute after the rotation.
        own = (
            Every(1, hub.tick, "heartbeat"),
            Every(1, ledger.settle, "budgets"),
            Every(20, hub.announce, "announce"),
            Every(15, reload, "keyring"),
            Every(15, check, "checks"),
            Every(15, epoch.look, "epoch"),
            Every(WATCH_SECONDS, cluster.watch, "database_hosts"),
        )
        runs = vitals.Runs(metrics)
        for every in (*own, *(every for feature in features for every in feature.periodic)):
            timer = Timer(every, runs)
            timer.start()
            stack.push_async_callback(timer.stop)

        addresses = [each.getsockname()[:2] for each in listening]
        log.info(
            "started",
            port=addresses[0][1],
            addresses=[authority(*address) for address in addresses],
            features=[feature.name for feature in features],
            environment=core.mimu_env,
            instance=str(instance_id),
            version=VERSION,
        )
        yield Server(app, features, site, addresses, database_url, redis_url)
        log.info("stopping")


async def _services(core: Core, stack: contextlib.AsyncExitStack) -> tuple[str, str]:
    """Return the URLs of PostgreSQL and Redis; start those that have none."""
    if core.database_url is None or core.redis_url is None:
        stack.enter_context(embedded.lock(core.mimu_data_dir))
    if core.database_url is None:
        database_url = await stack.enter_async_context(embedded.postgres(core.mimu_data_dir))
        await migrations.migrate(database_url)
    else:
        database_url = core.database_url.get_secret_value()
    if core.redis_url is None:
        return database_url, await stack.enter_async_context(embedded.valkey(core.mimu_data_dir))
    return database_url, core.redis_url.get_secret_value()


def assemble(app: App, features: Sequence[Plugin], rates: Mapping[str, Rate] | None = None) -> Site:
    """Build the Tornado application of the server and all features; its API document shows the limits ``rates``.
    Raises Clash if two features claim the same name."""

    services = health.services(
        lambda: app.db.value("SELECT 1"),
        lambda: takes_writes(app.db, app.instance_id),
        *(app.redis, lambda: app.bus.up, app.instance_id),
    )

    async def welcome(peer: Peer) -> None:
        for feature in features:
            if feature.welcome:
                await feature.welcome(peer)

    checks: dict[str, Check] = {}
    ready: dict[str, Check] = {}
    events: dict[str, Event] = {}
    reference: dict[str, docs.Published] = {}
    house = Plugin(
        name="house",
        routes=(
            *health.routes(checks, ready, app.db.cluster.chosen_host),
            *docs.routes(reference),
            ("/ws", SocketHandler, {"hub": app.hub, "epoch": app.epoch.shown, "events": events, "welcome": welcome}),
        ),
        events={"auth": auth_event(app.tokens)},
        sends=frames.SENT,
        checks=services,
    )
    routes, claimed_events, sends, claimed_checks = plugins.joined([house, *features])
    for kind, event in claimed_events.items():
        events[kind] = replace(event, handle=app.traces.trace_frames(kind, event.handle))
    checks.update(claimed_checks)
    # Without Redis this server still serves its own users, and without a storage all but files; if load balancers
    # removed it, they would remove all servers, since those lack the same service.
    ready["database"] = services["database"]
    accepts = {kind: event.declared() for kind, event in claimed_events.items()}
    reference["document"] = docs.published(routes, accepts, sends, rates)
    return Site(
        list(routes),
        unknown=UnknownRoute,
        core=app.core,
        tokens=app.tokens,
        limits=app.limits,
        ledger=app.ledger,
        metrics=app.metrics,
        checks=checks,
        traces=app.traces,
        outages=OUTAGES,
    )


async def serve(configuration: Configuration) -> None:
    """Run until SIGTERM or SIGINT. During the start, which may wait for services, they end it at once."""
    stop = asyncio.Event()
    starting = asyncio.current_task()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(logs.log_loop_error)

    def end() -> None:
        if starting is not None and not stop.is_set():
            starting.cancel()
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, end)
    try:
        async with running(configuration) as server:
            starting = None
            await _serve(configuration, server, stop)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        log.info("stopped_while_starting")


async def _serve(configuration: Configuration, server: Server, stop: asyncio.Event) -> None:
    # With the default thresholds 9,000 idle sockets cost 40 % of the throughput, since each collection visits them all.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    core = configuration.core
    own = [name for name, url in (("PostgreSQL", core.database_url), ("Redis", core.redis_url)) if url is None]
    data = f"; {', '.join(own)} and secrets in {core.mimu_data_dir.resolve()}" if own else ""
    if not core.production:  # in production only JSON lines are printed
        print(f"Mimu listens on {', '.join(server.urls)}{data}", flush=True)
    async with supervisor.serving():
        await stop.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-file", type=Path, help="read settings from this file (default: .env beside server.py)")
    parser.add_argument("--check-config", action="store_true", help="report what is wrong with the settings, and end")
    arguments = parser.parse_args()
    try:
        values = environment(arguments.env_file)
        configuration = configure(values, make_secrets=not arguments.check_config)
    except SettingsError as error:
        print("\n".join(error.faults), file=sys.stderr)
        return WRONG_SETTINGS
    if arguments.check_config:
        print("The settings are good.")
        return 0
    logs.configure(configuration.core.log_level)
    logs.catch_all()
    # The SDK reads its variables from the environment, not from an env file.
    os.environ.update({name: value for name, value in values.items() if name.startswith("OTEL_")})
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(configuration))
    except (embedded.EmbeddedError, migrations.MigrationError, plugins.Clash, Unavailable, OSError, *REJECTED) as error:
        log.error("start_failed", reason=reasons.explain(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
