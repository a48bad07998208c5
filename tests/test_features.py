"""Features as parts: any of them can be left out, and no two of them may claim the same."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import Any, Literal
from uuid import uuid4

import pytest
from hypothesis import Phase, find, settings, strategies
from typing_extensions import TypedDict

import plugins
import server
from config.settings import SettingsError
from handlers.http.base import ApiHandler
from handlers.http.health import Live
from handlers.sockets.socket import Event
from handlers.wire.shapes import Shape
from plugins import Every, Plugin
from server import Server
from tests.client import Account, ask
from tests.running import Place, Services, place, serving
from tests.waiting import WAIT

FEATURES = tuple(plugins.discover())


async def nothing(*_: Any) -> None:
    """A check, a task or the handler of an event."""


def example(pattern: str) -> str:
    """A path that a route's pattern matches."""
    visible = strategies.characters(codec="ascii", min_codepoint=33)
    one = settings(database=None, derandomize=True, phases=[Phase.generate])
    return find(strategies.from_regex(pattern, fullmatch=True, alphabet=visible), lambda _: True, settings=one)


def patterns(running: Server) -> set[str]:
    site = server.assemble(running.app, running.features)
    return {rule.matcher.regex.pattern for rule in site.wildcard_router.rules}


async def someone(running: Server) -> Account:
    """A user with a token; without the feature ``auth``, one that was never registered."""
    if any(feature.name == "auth" for feature in running.features):
        return await Account().register(running.url)
    user, session = uuid4(), uuid4()
    token = running.app.tokens.issue(user, session, "unregistered", "0" * 64)
    return Account(public_id="unregistered", url=running.url, user_id=str(user), session_id=str(session), token=token)


@pytest.mark.gen_test
@pytest.mark.parametrize("name", FEATURES)
async def test_a_feature_can_be_left_out(services: Services, name: str) -> None:
    async with place(services) as shared, serving(shared) as whole, serving(shared, PLUGINS_DISABLED=name) as rest:
        [left_out] = [feature for feature in whole.features if feature.name == name]
        assert [feature.name for feature in rest.features] == [other for other in FEATURES if other != name]
        assert patterns(whole) - patterns(rest) == {pattern + "$" for pattern, _, _ in left_out.routes}

        health = await ask(rest.url, "GET", "/health")
        assert (health.status, health.json["status"]) == (200, "healthy")
        assert not left_out.checks.keys() & health.json.keys()

        user = await someone(rest)
        for pattern, handler, _ in left_out.routes:
            method = handler.allow().split(",")[0]
            body = {} if method in ("POST", "PUT", "PATCH") else None
            known, unknown = [
                await ask(rest.url, method, example(pattern), body, token=token) for token in (user.token, None)
            ]
            assert (known.status, known.code) == (404, "not_found"), pattern
            assert (unknown.status, unknown.code) == (404, "not_found"), pattern

        async with user.socket() as socket:
            for kind in left_out.events:
                refused = await socket.send(kind)
                assert (refused["type"], refused["code"]) == ("error", "invalid_request"), kind
            for kind in {kind for feature in rest.features for kind in feature.events}:
                assert (await socket.send(kind))["code"] == "invalid_request"
            assert (await socket.send("no_such_type"))["code"] == "invalid_request"


@pytest.mark.gen_test
async def test_a_server_without_any_feature_runs(services: Services) -> None:
    async with place(services) as shared, serving(shared, PLUGINS_DISABLED=", ".join(FEATURES)) as bare:
        assert bare.features == []
        assert (await ask(bare.url, "GET", "/health")).json["status"] == "healthy"
        async with (await someone(bare)).socket() as socket:
            assert (await socket.send("anything"))["type"] == "error"


@pytest.mark.gen_test
async def test_a_feature_left_out_is_not_asked_for_its_settings(services: Services) -> None:
    async with place(services) as shared:
        production = {
            **shared.environment,
            "MIMU_ENV": "production",
            "RATE_LIMITS": "on",
            "JWT_SECRET": "f3a1c58e907b264d" * 2,
            "TURN_SECRET": "",
        }
        with pytest.raises(SettingsError, match="TURN_SECRET"):
            server.configure(production)
        async with server.running(server.configure({**production, "PLUGINS_DISABLED": "turn"})) as running:
            assert (await ask(running.url, "GET", "/health/live")).status == 200


def test_a_name_that_is_no_feature_is_a_fault_of_the_settings() -> None:
    place_ = Place("postgresql://nowhere/mimu", "redis://nowhere")
    with pytest.raises(SettingsError) as caught:
        server.configure({**place_.environment, "PLUGINS_DISABLED": "turn, callz ,chatz", "PORT": "many"})
    disabled, port = caught.value.faults
    assert disabled.startswith("PLUGINS_DISABLED")
    assert "callz, chatz" in disabled
    assert all(name in disabled for name in FEATURES), "it says which names there are"
    assert port.startswith("PORT"), "with every other fault"


# Claims -------------------------------------------------------------------------------------------------------------

ONE_ROUTE: dict[str, Any] = {"routes": (("/claimed", Live, {}),)}
ONE_EVENT: dict[str, Any] = {"events": {"claimed": Event(Shape, nothing)}}
ONE_CHECK: dict[str, Any] = {"checks": {"claimed": nothing}}


class Claimed(TypedDict):
    type: Literal["claimed"]


ONE_FRAME: dict[str, Any] = {"sends": (Claimed,)}


@pytest.mark.parametrize(
    ("claim", "noun"),
    [
        (ONE_ROUTE, "route /claimed"),
        (ONE_EVENT, "event claimed"),
        (ONE_CHECK, "check claimed"),
        (ONE_FRAME, "frame claimed"),
    ],
)
def test_two_features_can_not_claim_the_same(claim: dict[str, Any], noun: str) -> None:
    with pytest.raises(plugins.Clash, match=re.escape(f"second and first both claim the {noun}")):
        plugins.joined([Plugin("first", **claim), Plugin("between"), Plugin("second", **claim)])


@asynccontextmanager
async def with_feature(shared: Place, extra: Plugin, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server with one more feature."""

    class Module:
        Settings = plugins.discover()["calls"].Settings

        @staticmethod
        def setup(*_: object) -> Plugin:
            return extra

    found = {**plugins.discover(), extra.name: Module}
    monkeypatch.setattr(plugins, "discover", lambda disabled=(): found)
    async with serving(shared) as running:
        yield running


@pytest.mark.gen_test
async def test_a_new_feature_needs_no_other_file(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hello(ApiHandler):
        def get(self) -> None:
            self.reply({"hello": self.session.public_id})

    extra = Plugin(
        "extra",
        routes=(("/hello", Hello, {}),),
        events={"hello": Event(Shape, lambda peer, _: {"hello": peer.session.public_id})},
        checks={"hello": nothing},
        periodic=(Every(60, nothing, "hello"),),
    )
    async with place(services) as shared, with_feature(shared, extra, monkeypatch) as running:
        alice = await Account().register(running.url)
        assert (await alice.get("/hello")).json == {"hello": alice.public_id}
        assert (await ask(running.url, "GET", "/hello")).status == 401
        assert (await ask(running.url, "GET", "/health")).json["hello"] == "ok"
        async with alice.socket() as socket:
            assert (await socket.send("hello"))["hello"] == alice.public_id


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "claim",
    [
        {"routes": (("/auth/login", Live, {}),)},
        {"events": {"call_offer": Event(Shape, nothing)}},
    ],
    ids=["route", "event"],
)
async def test_a_clash_stops_the_server_at_its_start(
    services: Services, monkeypatch: pytest.MonkeyPatch, claim: dict[str, Any]
) -> None:
    async with place(services) as shared, asyncio.timeout(WAIT):
        with pytest.raises(plugins.Clash):
            async with with_feature(shared, Plugin("extra", **claim), monkeypatch):
                pytest.fail("it started")


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "claim",
    [
        {"routes": (("/health", Live, {}),)},
        {"events": {"auth": Event(Shape, nothing)}},
        {"checks": {"database": nothing}},
    ],
    ids=["route", "event", "check"],
)
async def test_a_feature_cannot_claim_names_of_the_core(
    services: Services, monkeypatch: pytest.MonkeyPatch, claim: dict[str, Any]
) -> None:
    """A check called ``database`` would hide that PostgreSQL is away; the others would never be reached."""
    async with place(services) as shared:
        with pytest.raises(plugins.Clash):
            async with with_feature(shared, Plugin("extra", **claim), monkeypatch):
                pytest.fail("it started")
