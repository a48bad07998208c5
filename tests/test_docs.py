"""The documents against the code: what they name exists, what exists they name, and their examples run."""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nacl.exceptions import BadSignatureError

import plugins
import server
from config.settings import Core
from config.values import Rate
from handlers.wire import frames
from handlers.wire.costs import KINDS
from handlers.wire.errors import ApiError
from handlers.wire.frames import by_kind
from tests.client import Account
from tests.running import ROOT, Services, place, serving
from tests.scripts.program import script

API = ROOT / "docs/api.md"
PROTOCOL = ROOT / "docs/protocol.md"
OPERATIONS = ROOT / "docs/operations.md"
READMES = (ROOT / "README.md", ROOT / "README.ru.md")
EXAMPLES = ROOT / "docs/examples"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(path for room in ("handlers", "models", "plugins") for path in (ROOT / room).rglob("*.py"))

LOGGERS, LEVELS = ("log", "_log"), ("debug", "info", "warning", "error", "exception")
# Words in capitals that are no settings of ours: of HTTP, SQL, Linux, and what an example reads.
WORDS = {
    "GET",
    "HEAD",
    "PATCH",
    "PUT",
    "POST",
    "OPTIONS",
    "LISTEN",
    "SET",
    "SELECT",
    "INSERT",
    "ANALYZE",
    "BEGIN",
    "COMMIT",
    "NNNN",
    "PR_SET_PDEATHSIG",
    "CONCURRENTLY",
    "CREATEDB",
    "MIMU_ENV_FILE",
    "RUST_LOG",
    "GREETING",
    "UTC",
}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return _FENCE.sub("", path.read_text())


def part(path: Path, title: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", path.read_text(), re.MULTILINE)
    assert found, f"{name_of(path)} has no part {title}"
    following = re.compile(rf"^#{{1,{len(found[1])}}} ", re.MULTILINE).search(path.read_text(), found.end())
    return path.read_text()[found.end() : following.start() if following else None]


def first_cells(path: Path, title: str) -> set[str]:
    """The names in code type in the first column of the tables of a part."""
    rows = re.findall(r"^\|([^|]*)\|", part(path, title), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


# Routes, frames, codes -----------------------------------------------------------------------------------------------


def routes(site: Any) -> list[tuple[re.Pattern[str], set[str]]]:
    """Every route's pattern and its methods but OPTIONS, in the order in which they are tried."""
    return [(rule.matcher.regex, set(rule.target.methods())) for rule in site.wildcard_router.rules]


@pytest.mark.gen_test
async def test_the_api_page_has_every_route_and_no_other(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        served = routes(server.assemble(running.app, running.features))
    missing = {(pattern.pattern, method) for pattern, methods in served for method in methods}
    for method, path in re.findall(r"^### `([A-Z]+) (/\S*)`$", API.read_text(), re.MULTILINE):
        address = path.replace("{public_id}", "Alice_1")
        address = re.sub(r"\{\w+\}", "0f268f7d-b420-4c41-922d-8995ce3c4b1b", address)
        pattern, methods = next(((p, m) for p, m in served if p.fullmatch(address)), (None, set[str]()))
        assert pattern is not None, f"{path} is no route"
        assert method in methods, f"{path} does not take {method}"
        assert (pattern.pattern, method) in missing, f"{method} {path} stands there twice, or another route takes it"
        missing.remove((pattern.pattern, method))
    assert missing == set()


@pytest.mark.gen_test
async def test_the_readme_is_honest_about_what_is_missing(services: Services) -> None:
    ways = {
        "chats": "/chats",
        "`/sync`": "/sync",
        "files": "/files",
        "push notifications": "/push/tokens",
        "subscriptions to buy": "/subscriptions/purchase",
        "OpenAPI": "/openapi.json",
    }
    async with place(services) as shared, serving(shared) as running:
        served = [pattern for pattern, _ in routes(server.assemble(running.app, running.features))]
    missing = {noun for noun, path in ways.items() if not any(pattern.fullmatch(path) for pattern in served)}
    assert {noun for noun in ways if noun in part(READMES[0], "What is not there yet")} == missing


def headings(*nouns: str) -> list[str]:
    """The types of frames in headings like "Client frame `typing`", of which one may have several."""
    found = re.findall(rf"^### (?:{'|'.join(nouns)}) (`.*`)$", API.read_text(), re.MULTILINE)
    return [kind for kinds in found for kind in re.findall(r"`(\w+)`", kinds)]


@pytest.mark.gen_test
async def test_the_api_page_has_every_frame_from_clients_and_no_other(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        taken = {kind for feature in running.features for kind in feature.events}
    assert sorted(headings("Client frame")) == sorted(taken | {"auth"})


def sent(running: server.Server) -> set[str]:
    """The types of frames that the server and its features declare."""
    return set(
        by_kind(kind for sends in (frames.SENT, *(feature.sends for feature in running.features)) for kind in sends)
    )


@pytest.mark.gen_test
async def test_the_api_page_has_every_frame_from_the_server_and_no_other(services: Services) -> None:
    async with place(services) as shared, serving(shared) as running:
        assert sorted(headings("Server frame", "Chat event")) == sorted(sent(running))


def codes(tree: ast.Module) -> Iterator[str]:
    """Every error code that a module names: ``code = "x"``, ``status, code = 404, "x"``, ``code="x"``, and those of a
    table that codes are taken from."""
    tables = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def at(value: ast.expr, place: int | None) -> Iterator[str]:
        if isinstance(value, ast.Tuple) and place is not None:
            value = value.elts[place]
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value
        if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name):
            for row in tables[value.value.id].values:
                yield from at(row, place)

    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "code":
            yield from at(node.value, None)
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id == "code":
                    yield from at(node.value, None)
                elif isinstance(target, ast.Tuple):
                    names = [name.id if isinstance(name, ast.Name) else "" for name in target.elts]
                    if "code" in names:
                        yield from at(node.value, names.index("code"))


def listed_errors() -> dict[str, int]:
    """The codes of the API page with their status."""
    found = {}
    for status, names in re.findall(r"^\| (\d{3}) \| ([^|]+) \|", part(API, "Error codes"), re.MULTILINE):
        found.update(dict.fromkeys(re.findall(r"`(\w+)`", names), int(status)))
    return found


def test_the_api_page_has_every_error_code_and_no_other() -> None:
    named = {code for path in SOURCES for code in codes(ast.parse(path.read_text()))}
    assert sorted(listed_errors()) == sorted(named)


def below(kind: type[ApiError]) -> Iterator[type[ApiError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from below(child)


def test_the_api_page_gives_error_codes_their_status() -> None:
    for path in SOURCES:
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    ours = [kind for kind in below(ApiError) if kind.__module__.startswith(("handlers.", "plugins."))]
    assert {kind.code: kind.status for kind in ours}.items() <= listed_errors().items()


# Settings, logs ---------------------------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    sections = [Core, *(module.Settings for module in plugins.discover().values())]
    return {name.upper(): field.default for section in sections for name, field in section.model_fields.items()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_settings_that_a_document_names_exist(document: Path) -> None:
    named = set(re.findall(r"`([A-Z][A-Z0-9_]+)(?:=[^`]*)?`", prose(document)))
    named = {name for name in named if not name.startswith("OTEL_")}  # OpenTelemetry's own, which its SDK reads
    # Those of the compose file stand at the end of env.example, commented out.
    composed = set(re.findall(r"(?m)^#([A-Z0-9_]+)=", (ROOT / "config/env.example").read_text()))
    assert named - WORDS - settings().keys() - composed == set()


def test_rate_limits_are_documented_with_their_defaults() -> None:
    units = {"second": 1, "minute": 60, "minutes": 60, "hour": 3600, "day": 86400}
    table = {}
    for row in part(API, "Rate limits").splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 4 and cells[3].startswith("`"):
            count, number, unit = re.match(r"(\d+)/(?:(\d+) )?(\w+)", cells[1]).groups()  # type: ignore[union-attr]
            table[cells[3].strip("`")] = (int(count), int(number or 1) * units[unit])
    defaults = {name: value for name, value in settings().items() if name.startswith("RATE_LIMIT_")}
    assert table == {name: (rate.count, rate.seconds) for name, rate in defaults.items()}


def test_budgets_are_documented_with_their_defaults() -> None:
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in part(PROTOCOL, "Budgets").splitlines()]
    table = {row[3].strip("`"): Rate.parse(row[1]) for row in rows if len(row) == 4 and row[3].startswith("`")}
    assert table == {name: value for name, value in settings().items() if re.match("BUDGET_(?!ADDRESS)", name)}
    assert [row[0].strip("`") for row in rows if len(row) == 4 and row[3].startswith("`")] == list(KINDS)


def test_every_event_of_the_log_is_described_and_no_other() -> None:
    logged = set()
    for path in [ROOT / "server.py", *SOURCES, *(ROOT / "config").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute)):
                continue
            if ast.unparse(node.func.value) not in LOGGERS or node.func.attr not in LEVELS:
                continue
            [event] = node.args
            if isinstance(event, ast.Constant):
                logged.add(event.value)
            elif isinstance(event, ast.JoinedStr):
                words = [piece.value if isinstance(piece, ast.Constant) else "{}" for piece in event.values]
                logged |= {"".join(map(str, words)).replace("{}", name) for name in ("postgres", "valkey")}
    assert first_cells(OPERATIONS, "Logs") == logged


# Examples ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_excerpts_are_what_the_examples_say(readme: Path) -> None:
    found = re.findall(
        r"<!-- excerpt of (\S+) -->\n```python\n(.*?)^```$", readme.read_text(), re.MULTILINE | re.DOTALL
    )
    assert {path for path, _ in found} == {"docs/examples/first_call.py", "docs/examples/greeting.py"}
    for path, excerpt in found:
        assert excerpt in (ROOT / path).read_text(), f"{path} says something else"
    assert readme.read_text().count("```python\n") == len(found), "Python that no test runs"


def test_the_readmes_have_the_same_parts_and_the_same_commands() -> None:
    english, russian = (path.read_text() for path in READMES)
    assert _FENCE.findall(english) == _FENCE.findall(russian)
    levels = [
        [len(found) for found in re.findall(r"^(#+) ", _FENCE.sub("", text), re.MULTILINE)]
        for text in (english, russian)
    ]
    assert levels[0] == levels[1]
    links = [re.findall(r"\]\(([^)]+)\)", text) for text in (english, russian)]
    links[1][links[1].index("README.md")] = "README.ru.md"
    assert links[0] == links[1]
    names = [set(re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))) for text in (english, russian)]
    assert names[0] == names[1]


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", part(READMES[0], "Read on")))
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_commands_of_the_readme_exist(readme: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for language, block in _FENCE.findall(readme.read_text()):
        if language != "sh":
            continue
        assert set(re.findall(r"\bmake ([a-z]+)", block)) <= targets
        for module in re.findall(r"python -m ([\w.]+)", block):
            assert importlib.util.find_spec(module)
        for path in re.findall(r"[\w./]+/[\w.]+\.(?:py|example)|\b\w+\.py\b", block):
            assert (ROOT / path).is_file(), path


@pytest.mark.gen_test
async def test_the_first_call_is_heard_as_the_readme_says(services: Services) -> None:
    async with place(services) as shared, serving(shared, RATE_LIMITS="on") as running:
        script = str(EXAMPLES / "first_call.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, running.url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        said, failed = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, failed.decode()) == (0, "")
        *frames, last = said.decode().splitlines()
        heard = [re.fullmatch(r'(alice|bob) reads +\{"type":"(\w+)".*\}', line) for line in frames]
        assert [found and found.groups() for found in heard] == [
            ("alice", "ready"),
            ("bob", "ready"),
            ("bob", "call_offer"),
            ("alice", "ack"),
            ("alice", "call_answer"),
            ("bob", "call_hangup"),
        ]
        command = re.fullmatch(rf"Look back: curl -s -H 'Authorization: Bearer (\S+)' {running.url}(/calls)", last)
        assert command, last
        [call] = (await Account(url=running.url, token=command[1]).get(command[2])).json
        assert (call["direction"], call["status"], call["end_reason"]) == ("outgoing", "ended", "hangup")


@pytest.mark.gen_test
async def test_the_example_client_reads_what_was_written(services: Services) -> None:
    async with place(services) as shared, serving(shared, RATE_LIMITS="on") as running:
        script = str(EXAMPLES / "messaging_client.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, running.url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        said, failed = await asyncio.wait_for(process.communicate(), 40)
        assert (process.returncode, failed.decode()) == (0, "")
        assert said.decode().splitlines() == [
            "bob reads: Hello, Bob.",
            "alice reads: Hello, Alice.",
            "bob reads: Hello, both of you; this was encrypted once.",
            "carol was away, and comes back",
            "carol reads: Hello, both of you; this was encrypted once.",
        ]
        stored = await running.app.db.fetch("SELECT message_type, encrypted_payload FROM messages ORDER BY created_at")
        assert [row["message_type"] for row in stored] == ["pair", "pair", "pair", "pair", "group"]
        assert not any(b"Hello" in row["encrypted_payload"] for row in stored)


def example(name: str) -> Any:
    """A module of the examples, which are no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.gen_test(timeout=90)
async def test_the_example_client_sends_again_what_a_server_has_lost(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", ["messaging_client.py"])
    client = example("messaging_client")
    alice, bob = client.Client("alice"), client.Client("bob")
    home = {"MIMU_DATA_DIR": str(tmp_path / "home")}

    async def write(by: Any, to: Any, text: str) -> None:
        await by.write(to, {"text": text})
        assert await asyncio.wait_for(to.texts.get(), 10) == text

    async with place(services) as old, serving(old, **home) as running:
        client.SERVER = running.url
        for person in (alice, bob):
            await person.register()
            await person.connect()
        await write(alice, bob, "one")
        made = await script(old, "backup", "--output", str(tmp_path), "--without-keys", "--json", **home)
        assert made.code == 0, made.err
        await write(bob, alice, "two")
        await write(alice, bob, "three")
    for person in (alice, bob):
        person.socket.close()
        await asyncio.gather(person.listening, return_exceptions=True)  # a receipt may have met no server any more
    async with place(services) as new:
        restored = await script(new, "restore", made.json["backup"], "--keep-sessions", "--yes", **home)
        assert restored.code == 0, restored.err
        async with serving(new, **home) as running:
            client.SERVER = running.url
            await alice.connect()
            await bob.connect()
            await write(bob, alice, "four")
            ids = await running.app.db.fetch("SELECT client_id FROM messages ORDER BY seq")
            sent = {message["client_id"] for message in alice.sent + bob.sent}
            assert {str(row["client_id"]) for row in ids} == sent
            assert len(ids) == len(sent) == 4
            assert (alice.texts.qsize(), bob.texts.qsize()) == (0, 0)
            for person in (alice, bob):
                person.socket.close()
                await person.listening


def test_a_sender_key_steps_over_what_was_deleted_and_reads_nothing_twice() -> None:
    kind = example("signal_device").SenderKey
    own = kind.generate("chat alice")
    own.encrypt(b"before")
    theirs = kind.received("chat alice", own.shared())
    first, _, third = (own.encrypt(text) for text in (b"1", b"2", b"3"))
    assert [theirs.decrypt(first), theirs.decrypt(third)] == [b"1", b"3"]
    with pytest.raises(ValueError, match="read before"):
        theirs.decrypt(first)
    with pytest.raises(BadSignatureError):
        kind.received("chat mallory", own.shared()).decrypt(own.encrypt(b"4"))


@pytest.fixture
def with_greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example in a folder where plugins are looked for, as if it had been copied into plugins/."""
    shutil.copy(EXAMPLES / "greeting.py", tmp_path)
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop("plugins.greeting", None)
    if hasattr(plugins, "greeting"):
        del plugins.greeting


@pytest.mark.gen_test
@pytest.mark.usefixtures("with_greeting")
async def test_the_example_of_a_feature_is_one(services: Services) -> None:
    async with place(services) as shared:
        async with serving(shared, GREETING="Welcome") as running:
            alice = await Account().register(running.url)
            assert (await alice.get("/greeting")).json == {"greeting": f"Welcome, {alice.public_id}!"}
            assert (await Account(url=running.url).get("/greeting")).status == 401
        async with serving(shared, PLUGINS_DISABLED="greeting") as running:
            alice.url = running.url
            assert (await alice.get("/greeting")).status == 404


# Form ----------------------------------------------------------------------------------------------------------------


def test_the_architecture_page_names_every_feature() -> None:
    [row] = re.findall(r"(?m)^\| a folder for each \|(.*)\|$", (ROOT / "docs/architecture.md").read_text())
    assert set(re.findall(r"`(\w+)(?:\.py)?`", row)) == set(plugins.discover())


@pytest.mark.parametrize("room", ["config", "handlers", "models"])
def test_the_architecture_page_has_every_file_of_the_shared_folders(room: str) -> None:
    """Each table of a folder begins with its name. A file without a folder lies in that of the file before it."""
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(rf"^\| `{room}/`[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", page, re.MULTILINE)
    cells = [row.split("|")[1] for table in rows for row in table.splitlines()]
    cells += re.findall(rf"^\|([^|]*`{room}/[^|]*)\|", page, re.MULTILINE) if not cells else []
    named = set()
    for cell in cells:
        folder = ""
        for name in re.findall(r"`([\w/]+\.py)`", cell):
            path = name.removeprefix(f"{room}/")
            folder = path.rpartition("/")[0] or folder
            named.add(path if "/" in path else f"{folder}/{path}".lstrip("/"))
    whole = {name for cell in cells for name in re.findall(r"`(?:\w+/)?(\w+)/`", cell)}
    files = {path.relative_to(ROOT / room) for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"}
    explained = {str(path) for path in files if not (len(path.parts) > 1 and path.parts[0] in whole - _listed(named))}
    assert named == explained


def _listed(named: set[str]) -> set[str]:
    """The folders of which single files are named; of others the folder stands for all."""
    return {name.partition("/")[0] for name in named if "/" in name}


def test_decisions_are_numbered_and_have_their_parts() -> None:
    notes = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    numbers = [int(path.name[:4]) for path in notes]
    assert numbers == sorted(set(numbers))
    listed = (ROOT / "docs/decisions/README.md").read_text()
    for number, path in zip(numbers, notes, strict=True):
        lines = path.read_text().splitlines()
        assert lines[0].startswith(f"# {number}. ")
        assert [line for line in lines if line.startswith("## ")] == ["## Context", "## Decision", "## What it costs"]
        assert len(lines) <= 50, "half a page"
        assert f"[{lines[0][2:]}]({path.name})" in listed
