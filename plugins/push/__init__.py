"""Push: wakes devices without an open socket; a push does not reveal why it was sent (contract section 9)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field, StringConstraints

from config.findings import Examination
from config.settings import Core, Section
from config.values import Rate, RateLimit, WebAddress, needs
from handlers.http.base import ID
from handlers.redis_service import REDIS_ERRORS
from plugins import App, Every, Plugin
from plugins.push import examination, http
from plugins.push.breaker import Breaker
from plugins.push.preferences import PushPreferences
from plugins.push.providers.apns import Apns, Identity
from plugins.push.providers.client import ProviderClient
from plugins.push.providers.fcm import GOOGLE, Fcm
from plugins.push.providers.outcomes import Provider
from plugins.push.providers.vapid import AccountFile, P256File
from plugins.push.providers.webpush import WebPush, public_key
from plugins.push.queue.judge import Judge
from plugins.push.queue.lane import Lane, running
from plugins.push.queue.missed import MissedActivity
from plugins.push.queue.queue import JUDGE, JUDGE_NOW, Queue, stream
from plugins.push.queue.tally import Tally
from plugins.push.sender import Sender
from plugins.push.tokens import Tokens

log = structlog.get_logger(__name__)

GUIDE = "push.md"
JUDGE_BATCH = 200  # jobs judged in one step
MAX_PUSHES = 64  # pushes in progress to one provider; at 50 ms each that is 1,280 a second
MAX_CALL_PUSHES = 32  # the same for calls, which have separate lanes so that they never queue behind messages


LABEL = "[A-Za-z0-9-]+"
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]{1,255}$")]
# RFC 8292 section 2.1; the form that py_vapid accepts.
Subject = Annotated[str, StringConstraints(pattern=rf"^(mailto:[^@\s]+@|https://)(localhost|{LABEL}(\.{LABEL})+)$")]


class Settings(Section):
    apns_key_file: P256File = Field(
        None,
        repr=False,
        description="Key file (.p8) of the Apple developer team of the app. Unset: no push through APNs.",
    )
    apns_key_id: Annotated[Word | None, needs("apns_key_file")] = Field(
        None, validate_default=True, description="Id of that key, ten characters. Required with APNS_KEY_FILE."
    )
    apns_team_id: Annotated[Word | None, needs("apns_key_file")] = Field(
        None,
        validate_default=True,
        description="Id of the Apple developer team, ten characters. Required with APNS_KEY_FILE.",
    )
    apns_topic: Annotated[Word | None, needs("apns_key_file")] = Field(
        None, validate_default=True, description="Bundle id of the app. Required with APNS_KEY_FILE."
    )
    apns_base_url: WebAddress | None = Field(
        None,
        description="Another address in place of Apple's, for both environments: for tests, or your own proxy. "
        "Unset: Apple's, by the environment of the token.",
    )
    fcm_service_account_file: AccountFile = Field(
        None,
        repr=False,
        description="Service account of Google, a JSON file; its token_uri is used. Unset: no push through FCM.",
    )
    fcm_base_url: WebAddress | None = Field(
        None, description="Another address in place of Google's: for tests, or your own proxy. Unset: Google's."
    )
    vapid_private_key_file: P256File = Field(
        None,
        repr=False,
        description="Key file that signs Web Push; ./mimu vapid-keys FILE makes one. Unset: no Web Push.",
    )
    vapid_subject: Annotated[Subject | None, needs("vapid_private_key_file")] = Field(
        None,
        validate_default=True,
        description="How push services reach you: mailto:ops@example.org, or an https URL. Required with "
        "VAPID_PRIVATE_KEY_FILE.",
    )
    push_ca_file: Path | None = Field(
        None,
        description="PEM file of a certificate authority to trust besides the usual ones: for your own proxy. "
        "Unset: only the usual ones.",
    )
    push_allow_private: bool = Field(
        False, description="Allow Web Push to private addresses. For tests only: users choose these addresses."
    )
    rate_limit_push: RateLimit = Field(
        Rate(120, 3600), description="Push tokens and push settings that a user may store."
    )


def setup(app: App, settings: Settings) -> Plugin:
    client = ProviderClient(settings.push_ca_file, allow_private=settings.push_allow_private)
    providers, vapid = _providers(client, settings)
    tokens, preferences = Tokens(app.db, providers.keys()), PushPreferences(app.db)
    limited = {"rate": settings.rate_limit_push}
    routes = (
        ("/push/tokens", http.PushTokens, {"tokens": tokens, **limited}),
        (f"/push/tokens/{ID}", http.PushToken, {"tokens": tokens}),
        ("/push/settings", http.PushSettings, {"preferences": preferences, **limited}),
        ("/push/vapid", http.Vapid, {"public_key": vapid}),
    )
    queue, breaker, tally = Queue(app.redis, str(app.instance_id)), Breaker(), Tally(app.metrics)
    lanes: list[Lane] = []
    app.metrics.add_counter(
        "mimu_push_jobs_refused_total", "Jobs that were dropped because the queue was full.", lambda: queue.refused
    )
    app.metrics.add_counter(
        "mimu_push_jobs_poisoned_total",
        "Unusable entries that were removed from the queue.",
        lambda: sum(lane.poisoned for lane in lanes),
    )
    if not providers:
        return Plugin("push", guide=GUIDE, routes=routes, lifespan=_idle)

    missed = MissedActivity(app.db, app.hub, queue)
    judge = Judge(app.db, app.hub, queue, providers.keys(), tally)
    sender = Sender(app.db, app.redis, queue, providers, app.tokens.keyring, breaker, tally, app.traces)
    judge.lanes += [Lane(queue, name, JUDGE_BATCH, judge.judge, together=True) for name in (JUDGE, JUDGE_NOW)]
    for name in dict.fromkeys(provider.partition("_")[0] for provider in providers):
        sender.lanes.append(Lane(queue, stream(name), MAX_PUSHES, sender.send))
        sender.lanes.append(Lane(queue, stream(name, now=True), MAX_CALL_PUSHES, sender.send))
    lanes += [*judge.lanes, *sender.lanes]

    async def measure() -> None:
        """Measure the queue, and forget instances that are gone."""
        with contextlib.suppress(*REDIS_ERRORS):
            tally.depths(list((await queue.depth([lane.name for lane in lanes])).items()))
            for lane in lanes:
                await lane.forget_dead()

    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(client.open())
            await stack.enter_async_context(queue.running())
            await stack.enter_async_context(running(lanes))
            await stack.enter_async_context(missed.running())
            app.alerts.listen(missed)
            yield

    return Plugin(
        "push",
        guide=GUIDE,
        routes=routes,
        periodic=(Every(15, measure, "push_queue"),),
        lifespan=lifespan,
        welcome=missed.welcome,
    )


def examine(_: Core, settings: Settings) -> Examination:
    """Return the doctor's check that the providers accept our keys."""
    client = ProviderClient(settings.push_ca_file, allow_private=settings.push_allow_private)
    key, subject = settings.vapid_private_key_file, settings.vapid_subject
    return examination.examination(client, _providers(client, settings)[0], key, subject)


@contextlib.asynccontextmanager
async def _idle() -> AsyncIterator[None]:
    log.info("push_not_configured")
    yield


def _providers(client: ProviderClient, settings: Settings) -> tuple[dict[str, Provider], dict[str, str]]:
    """Return the configured providers by the token's provider name, and the public key of Web Push."""
    providers: dict[str, Provider] = {}
    vapid: dict[str, str] = {}
    if settings.apns_key_file and settings.apns_key_id and settings.apns_team_id and settings.apns_topic:
        identity = Identity(
            settings.apns_key_file,
            settings.apns_key_id,
            settings.apns_team_id,
            settings.apns_topic,
            settings.apns_base_url and settings.apns_base_url.rstrip("/"),
        )
        providers["apns"] = providers["apns_voip"] = Apns(client, identity)
    if settings.fcm_service_account_file:
        providers["fcm"] = Fcm(client, settings.fcm_service_account_file, (settings.fcm_base_url or GOOGLE).rstrip("/"))
    if settings.vapid_private_key_file and settings.vapid_subject:
        key = settings.vapid_private_key_file
        providers["webpush"], vapid = WebPush(client, key, settings.vapid_subject), public_key(key)
    return providers, vapid
