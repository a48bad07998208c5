"""The rules of the house that a reader can check by looking, checked by a test: imports and places of code."""

from __future__ import annotations

import ast
import asyncio
import copy
import importlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from redis.asyncio import Redis
from tornado.web import Application, RequestHandler

import plugins
from handlers.http.base import ApiHandler
from handlers.limits.ledger import Ledger
from handlers.limits.rates import Limits
from handlers.metrics import Metrics
from handlers.sockets.bus import Bus
from handlers.sockets.hub import Hub
from handlers.sockets.socket import SocketHandler
from handlers.tokens import Keyring, Tokens
from handlers.wire.operations import declared
from models.database import Database
from tests.client import Account
from tests.running import ROOT, Services, place, serving

ROOMS = ("config", "handlers", "models", "plugins", "scripts")
PRODUCT = sorted([ROOT / "server.py", *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
OURS = {*ROOMS, "server", "tests"}
MAY_IMPORT = {
    "config": {"config"},
    "handlers": {"handlers", "config"},
    "models": {"models", "config"},
    "plugins": {"plugins", "handlers", "models", "config"},
    "scripts": {"scripts", "models", "config"},
    "server": set(ROOMS),
}
# These describe all that server.py puts together; no module imports them.
SEE_ALL = {"scripts.api_page", "scripts.configuration_page", "scripts.doctor"}

# Closed by default: an endpoint for callers without a token must be listed here as well.
PUBLIC = {
    "handlers.http.base.UnknownRoute",
    "handlers.reference.page.DocsAsset",
    "handlers.reference.page.DocsPage",
    "handlers.reference.page.OpenApi",
    "handlers.reference.page._PublishedHandler",
    "handlers.http.health.Health",
    "handlers.http.health.Live",
    "handlers.http.health.MetricsPage",  # for the networks of METRICS_ALLOW
    "plugins.auth.http.AvailableHandler",
    "plugins.auth.http.LoginHandler",
    "plugins.auth.http.RefreshHandler",
    "plugins.auth.http.RegisterHandler",
    "plugins.auth.http.ResetPasswordHandler",
    "plugins.files.http.FileDownloadHandler",  # for the holder of its signed address
    "plugins.files.http.FileUploadHandler",  # for the holder of its signed address
    "plugins.messages.http.SealedMessages",  # the server must not learn who sends
    "plugins.subscriptions.http.Offers",
    "plugins.subscriptions.http.Purchases",  # anonymous by design: the owner's signature says who, and no token
    "plugins.subscriptions.http.StripeWebhook",  # for Stripe, by its signature
    "plugins.subscriptions.http.Validations",
}

STATE = (
    plugins.App,
    plugins.Timer,
    Bus,
    Database,
    Hub,
    Keyring,
    Ledger,
    Limits,
    Metrics,
    Redis,
    Application,
    Tokens,
    CollectorRegistry,
    MetricWrapperBase,
    Executor,
    asyncio.Event,
    asyncio.Future,
    asyncio.Lock,
    asyncio.Queue,
    asyncio.Semaphore,
    threading.Thread,
)
CONTAINERS = (dict, list, set, bytearray, deque)
EMPTY = {"dict", "list", "set", "bytearray", "deque", "defaultdict", "OrderedDict", "WeakSet", "WeakValueDictionary"}


def name_of(path: Path) -> str:
    """The dotted name of a module of ours."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every module that the code imports, anywhere in it: ``from a import b`` gives a.b, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def trespasses(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of a module of ours that go against the arrows."""
    features = set(plugins.discover())
    room, _, rest = module.partition(".")
    own = rest.split(".")[0]
    found = []
    tree = ast.parse(source)
    for line, target in imported(tree, module if is_package else module.rpartition(".")[0]):
        parts = target.split(".")
        if parts[0] not in OURS:
            continue
        wrong = parts[0] not in ({*ROOMS, "server"} if module in SEE_ALL else MAY_IMPORT[room])
        wrong |= ".".join(parts[:2]) in SEE_ALL
        if room == parts[0] == "plugins":
            wrong = len(parts) > 1 and parts[1] in features and parts[1] != own
        if wrong:
            found.append(f"{module}:{line} imports {target}")
    # A module named at run time would go past everything above.
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if name in ("import_module", "__import__") and module != "plugins":
            found.append(f"{module}:{node.lineno} imports by name")
    return found


def faults(rule: Callable[[Path, str], list[str]]) -> list[str]:
    """What a rule finds in any file of the product. All of it in one test: a test for each rule and file were 1,128."""
    return [f"{path.relative_to(ROOT)}: {fault}" for path in PRODUCT for fault in rule(path, path.read_text())]


def test_imports_follow_the_arrows() -> None:
    assert faults(lambda path, text: trespasses(text, name_of(path), is_package=path.name == "__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("handlers.sockets.hub", "from models import users"),
        ("handlers.sockets.hub", "import plugins"),
        ("models.users", "from handlers.wire.shapes import Shape"),
        ("models.users", "def f():\n    import plugins.calls"),
        ("plugins.calls.calls", "from plugins import auth"),
        ("plugins.calls.calls", "from plugins.auth.sessions import Sessions"),
        ("plugins.calls.calls", "import plugins.auth"),
        ("plugins.calls.calls", "from ..auth import sessions"),
        ("plugins.calls.calls", "import importlib\nimportlib.import_module('plugins.auth')"),
        ("plugins.turn", "from server import running"),
        ("config.settings", "from models.database import Database"),
        ("scripts.migrate", "from handlers.tokens import Tokens"),
        ("scripts.migrate", "from scripts.doctor import look"),
        ("scripts.checks.public", "from handlers.tokens import Tokens"),
        ("scripts.doctor", "from tests.client import Account"),
        ("models.users", "from tests.client import Account"),
    ],
)
def test_the_guard_sees_every_way_to_import(module: str, line: str) -> None:
    assert trespasses(line, module)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("plugins.calls.calls", "from plugins import App, Plugin"),
        ("plugins.calls.calls", "from plugins.calls import shapes"),
        ("plugins.calls.calls", "from . import shapes"),
        ("plugins.turn", "from handlers.http.base import ApiHandler"),
        ("scripts.migrate", "from models import migrations"),
        ("scripts.doctor", "import server"),
        ("scripts.doctor", "from scripts.checks import public"),
        ("server", "import plugins"),
    ],
)
def test_the_guard_lets_the_others_through(module: str, line: str) -> None:
    assert trespasses(line, module) == []


# Everything has a price -------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_each_route_and_each_frame_declares_what_it_costs(services: Services) -> None:
    """A new one must declare which budgets of the account it spends (handlers/limits/ledger.py)."""
    async with place(services) as shared, serving(shared) as running:
        rules = running.site.wildcard_router.rules
    silent = [
        f"{rule.target.__qualname__}.{method}"
        for rule in rules
        if issubclass(rule.target, ApiHandler)
        for method in rule.target.methods()
        if getattr(declared(rule.target, method), "cost", None) is None
    ]
    [events] = [rule.target_kwargs["events"] for rule in rules if rule.target is SocketHandler]
    assert silent + [kind for kind, event in events.items() if event.cost is None] == []
    assert len(events) > 8


def test_each_frame_to_a_group_names_the_account_that_is_charged() -> None:
    """``by`` is the user, or None where the server itself is the cause."""
    silent = []
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and ast.unparse(called.value) in ("self._delivery", "app.delivery"):
                named = {keyword.arg for keyword in node.keywords}  # type: ignore[union-attr]
                if called.attr in ("tell", "announce") and "by" not in named:
                    silent.append(f"{name_of(path)}:{node.lineno}")  # type: ignore[attr-defined]
    assert silent == []


# A change of a chat is announced ------------------------------------------------------------------------------------

# What may be called where: everywhere else it is a way to change a chat without announcing it, or to announce twice.
RESERVED = {
    "Change": {"models.chats.changes"},
    "ChatChanges": {"plugins", "models.accounts"},  # for features; and for scripts, which have no sockets
    "announce_nothing": {"models.accounts"},
    "delivery.announce": {"handlers.sockets.announcing"},
    # Change.append and its kin; and erasing messages, which append_for announces.
    "INSERT INTO chat_events": {"models.chats.events", "models.chats.messages"},
}
_INSERT = "INSERT INTO chat_events"
# The modules that define these names; other modules define a different Change.
_ORIGINS = {
    "Change": "models.chats.events",
    "ChatChanges": "models.chats.changes",
    "announce_nothing": "models.chats.changes",
}


def unannounced(source: str, module: str) -> list[str]:
    """Where a module uses what only ``ChatChanges`` and what stands behind it may use."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if _ORIGINS.get(alias.name) == node.module
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and names.get(node.id) == "announce_nothing":
            used = "announce_nothing"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _INSERT in node.value:
            used = _INSERT
        elif not isinstance(node, ast.Call):
            continue
        elif isinstance(node.func, ast.Name):
            used = names.get(node.func.id, "")
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "announce":
            owner = ast.unparse(node.func.value).rpartition(".")[2].removeprefix("_")
            used = f"{owner}.announce"
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ("Change", "ChatChanges"):
            used = node.func.attr
        else:
            continue
        if module not in RESERVED.get(used, {module}):
            found.append(f"{module}:{node.lineno} uses {used}")  # type: ignore[attr-defined]
    return found


def test_each_change_of_a_chat_is_announced() -> None:
    """``ChatChanges`` is the only way to make one, and nothing but ``Announcer`` sends its events."""
    assert faults(lambda path, text: unannounced(text, name_of(path))) == []


@pytest.mark.parametrize(
    "line",
    [
        "from models.chats.events import Change\nChange(db, chat_id, 'group', 1, 2, user_id, 'owner', 1)",
        "from models.chats.events import Change as Own\nOwn(db, chat_id, 'group', 1, 2, user_id, 'owner', 1)",
        "from models.chats import events\nevents.Change(db, chat_id, 'group', 1, 2, user_id, 'owner', 1)",
        "from models.chats.changes import ChatChanges\nChatChanges(db, nothing)",
        "from models.chats.changes import announce_nothing\nwork(announce_nothing)",
        "async def f(self):\n    await self._delivery.announce(group, access, frames, by=None)",
        "await app.delivery.announce(group, access, frames, by=None)",
        "await db.execute(f'INSERT INTO chat_events {columns}')",
    ],
)
def test_the_guard_sees_a_change_that_is_not_announced(line: str) -> None:
    assert unannounced(line, "plugins.chats.members")


@pytest.mark.parametrize(
    "line",
    [
        "from models.chats.events import Change\ndef f(change: Change) -> None:\n    change.append('chat_updated')",
        "from models.chats.changes import ChatChanges\ndef f(changes: ChatChanges): return changes.lock(chat, user)",
        "class Change: ...\nChange()",
        "self._revocations.announce(ended)",
    ],
)
def test_the_guard_lets_other_changes_through(line: str) -> None:
    assert unannounced(line, "plugins.chats.members") == []


# Nothing is global ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules() -> list[ModuleType]:
    # launch.py is a program that nothing imports, and it is run by path.
    return [importlib.import_module(name_of(path)) for path in PRODUCT if path.name != "launch.py"]


def containers(modules: list[ModuleType]) -> dict[str, Any]:
    """What is held in containers at module level, and in those of the classes there."""
    held = {}
    for module in modules:
        spaces = {module.__name__: vars(module)}
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__:
                spaces[f"{module.__name__}.{name}"] = dict(vars(value))
        for space, names in spaces.items():
            for name, value in names.items():
                if isinstance(value, CONTAINERS) and not name.startswith("__"):
                    held[f"{space}.{name}"] = value
    return held


def test_no_module_holds_the_state_of_a_server(modules: list[ModuleType]) -> None:
    kept = [
        f"{module.__name__}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, STATE)
    ]
    assert kept == []


def kept_to_be_filled(source: str) -> list[str]:
    """Variables declared global, and empty containers at the level of a module or a class."""
    tree = ast.parse(source)
    found = [
        f"{node.lineno}: global {', '.join(node.names)}" for node in ast.walk(tree) if isinstance(node, ast.Global)
    ]
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for statement in (statement for body in bodies for statement in body):
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        value = statement.value
        empty = isinstance(value, ast.Dict) and not value.keys
        empty |= isinstance(value, ast.List | ast.Set) and not value.elts
        if isinstance(value, ast.Call):
            called = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
            empty |= called in EMPTY and not value.args
        if empty:
            found.append(f"{statement.lineno}: {ast.unparse(statement)}")
    return found


def test_no_module_or_class_keeps_something_to_fill() -> None:
    assert faults(lambda path, text: kept_to_be_filled(text)) == []


@pytest.mark.gen_test
async def test_a_server_at_work_changes_nothing_at_module_level(services: Services, modules: list[ModuleType]) -> None:
    held = containers(modules)
    before = copy.deepcopy({name: value for name, value in held.items() if not isinstance(value, dict)})
    # A dict of classes or functions can't be copied deeply; its keys tell enough.
    keys = {name: list(value) for name, value in held.items() if isinstance(value, dict)}
    async with place(services) as shared, serving(shared) as one:
        alice = await Account().register(one.url)
        async with alice.socket() as socket:
            await socket.send("call_heartbeat", call_id=alice.user_id)
    after = containers(modules)
    assert {name: after[name] for name in before} == before
    assert {name: list(after[name]) for name in keys} == keys


# Form ---------------------------------------------------------------------------------------------------------------


def swallowed(source: str) -> list[str]:
    """Places where an error goes without a word."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                found.append(f"{node.lineno}: a bare except")
            silent = all(
                isinstance(statement, ast.Pass)
                or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
                for statement in node.body
            )
            if silent:
                found.append(f"{node.lineno}: an except that does nothing; contextlib.suppress says it is meant")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            broad = {"Exception", "BaseException"} & {ast.unparse(argument) for argument in node.args}
            found += [f"{node.lineno}: suppress({name})" for name in broad]
    return found


def test_no_error_is_swallowed_in_silence() -> None:
    assert faults(lambda path, text: swallowed(text)) == []


def wrong_opening(source: str) -> list[str]:
    """What is wrong with the docstring of a module."""
    words = ast.get_docstring(ast.parse(source), clean=False)
    if not words:
        return ["no docstring"]
    opening = words.partition("\n\n")[0]
    rules = {
        "the sentence begins with a capital letter": opening[0].isupper() or opening.startswith("``"),
        "a sentence ends with a full stop": opening.rstrip().endswith("."),
        "the sentence stands in the opening line": len(words.partition("\n")[0]) <= 117,
    }
    return [rule for rule, kept in rules.items() if not kept]


def test_a_module_opens_with_a_sentence_that_says_what_it_is() -> None:
    assert faults(lambda path, text: wrong_opening(text)) == []


def test_a_file_is_short_enough_to_be_read() -> None:
    assert faults(lambda path, text: ["is longer than 400 lines"] if len(text.splitlines()) > 400 else []) == []


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (kept_to_be_filled, "def f():\n    global a\n"),
        (kept_to_be_filled, "seen = {}\n"),
        (kept_to_be_filled, "class A:\n    seen: set[str] = set()\n"),
        (swallowed, "try:\n    f()\nexcept:\n    raise\n"),
        (swallowed, "try:\n    f()\nexcept ValueError:\n    pass\n"),
        (swallowed, "with suppress(Exception):\n    f()\n"),
        (wrong_opening, "a = 1\n"),
        (wrong_opening, '"""a sentence."""\n'),
        (wrong_opening, '"""A title"""\n'),
        (wrong_opening, f'"""A{"a" * 200}."""\n'),
    ],
)
def test_the_rules_of_form_see_what_is_against_them(rule: Callable[[str], list[str]], source: str) -> None:
    assert len(rule(source)) == 1


# Endpoints ------------------------------------------------------------------------------------------------------------


def below(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def test_every_endpoint_that_needs_no_token_is_listed_here(modules: list[ModuleType]) -> None:
    names = {module.__name__ for module in modules}
    ours = {kind for kind in below(ApiHandler) if kind.__module__ in names}
    assert {f"{kind.__module__}.{kind.__qualname__}" for kind in ours if kind.public} == PUBLIC


def test_every_endpoint_is_an_api_handler(modules: list[ModuleType]) -> None:
    names = {module.__name__ for module in modules}
    others = [kind for kind in below(RequestHandler) if kind.__module__ in names and not issubclass(kind, ApiHandler)]
    assert [kind for kind in others if not issubclass(ApiHandler, kind)] == []  # AnsweringHandler is half of it


def test_no_two_handlers_share_a_name(modules: list[ModuleType]) -> None:
    """The name of its class is a handler's label in metrics and logs, which say nothing of the module."""
    found = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    handlers = {kind for kind in found if issubclass(kind, RequestHandler) and kind.__module__.split(".")[0] in ROOMS}
    modules_by_name: dict[str, list[str]] = {}
    for kind in handlers:
        modules_by_name.setdefault(kind.__qualname__, []).append(kind.__module__)
    assert {name: sorted(where) for name, where in modules_by_name.items() if len(where) > 1} == {}
