"""Links of the documents: each target exists, as GitHub resolves it, and every named file exists."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.running import ROOT

SKIPPED = {".git", ".venv", "node_modules", "var", ".pytest_cache"}
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not SKIPPED & set(path.relative_to(ROOT).parts))
# Names and addresses of examples, which the test does not follow.
LOCAL = {"localhost", "127.0.0.1"}

_FENCE = re.compile(r"^( *)(```+|~~~+)[^\n]*\n.*?^\1\2`*[ \t]*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_INLINE = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]*)>?(?:\s+\"[^\"]*\")?\s*\)")
_DEFINED = re.compile(r"^ {0,3}\[([^\]]+)\]:\s*<?(\S+?)>?(?:\s+\"[^\"]*\")?\s*$", re.MULTILINE)
_REFERRED = re.compile(r"\]\[([^\]]*)\]")
_HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]*)\"", re.IGNORECASE)
_AUTO = re.compile(r"<(https?://[^>\s]+)>")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A document without its blocks of code and comments."""
    return _COMMENT.sub("", _FENCE.sub("", path.read_text()))


def links(text: str) -> Iterator[str]:
    """Where a document's links and images lead."""
    bare = _CODE.sub("", text)
    # The text of a link may be code, and what is in brackets there no link: so code goes, and the brackets stay.
    yield from (found[1] for found in _INLINE.finditer(bare))
    defined = {found[1].lower(): found[2] for found in _DEFINED.finditer(bare)}
    yield from defined.values()
    yield from (
        defined.get(found[1].lower(), "#undefined-" + found[1]) for found in _REFERRED.finditer(bare) if found[1]
    )
    yield from (found[1] for found in _HTML.finditer(bare))
    yield from (found[1] for found in _AUTO.finditer(bare))


def slug(title: str) -> str:
    """The anchor that GitHub makes of a heading: its text in small letters, without punctuation, hyphens for spaces."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", title)  # of a link its text
    text = re.sub(r"<[^>]+>|[*`]|(?<!\w)_|_(?!\w)", "", text)
    kept = (
        character
        for character in text.strip().lower()
        if character in "-_ " or unicodedata.category(character)[0] in "LNM" or unicodedata.category(character) == "Pc"
    )
    return "".join(kept).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """The anchors of a document; of two headings of one name the second gets ``-1``."""
    text = prose(path)
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for title in re.findall(r"^#{1,6}[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*$", text, re.MULTILINE):
        first = name = slug(title)
        number = 0
        while name in found:
            number += 1
            name = f"{first}-{number}"
        found.add(name)
    return found


def exactly(path: Path) -> bool:
    """True if a file or folder of exactly that name exists: some systems do not tell ``API.md`` from ``api.md``."""
    here = ROOT
    for part in path.relative_to(ROOT).parts:
        if part not in {child.name for child in here.iterdir()}:
            return False
        here /= part
    return True


def faults(document: Path, text: str) -> Iterator[str]:
    """What is wrong with a document's links."""
    for link in links(text):
        parts = urlsplit(link)
        if parts.scheme == "mailto":
            continue
        if parts.scheme:
            yield from (f"{link}: {fault}" for fault in outside(link))
            continue
        path, anchor = unquote(parts.path), unquote(parts.fragment)
        target = (document.parent / path).resolve() if path else document
        if path.startswith("/") or not target.is_relative_to(ROOT):
            yield f"{link}: leads out of the repository"
        elif not exactly(target):
            yield f"{link}: there is no {path}"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield f"{link}: {target.name} has no such heading"
        elif anchor and target.suffix != ".md" and not re.fullmatch(r"L\d+(-L\d+)?", anchor):
            yield f"{link}: only documents have headings"
        elif not path and not anchor:
            yield f"{link!r}: leads nowhere"


def outside(link: str) -> Iterator[str]:
    """What is wrong with a link to the outside; whether it is still there, no test asks."""
    parts = urlsplit(link)
    host = parts.hostname or ""
    if parts.scheme == "http" and host in LOCAL:
        return
    if parts.scheme != "https":
        yield "not https"
    if not re.fullmatch(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}", host):
        yield "no name of a host"
    if parts.username or parts.password:
        yield "bears a user"
    if re.search(r"[\s<>\"{}|\\^`]", link):
        yield "has characters that no address has"
    if re.search(r"[?&](utm_|fbclid|gclid)", link):
        yield "tells where a reader came from"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    assert list(faults(document, prose(document))) == []


def test_the_documents_are_found() -> None:
    names = {name_of(path) for path in DOCUMENTS}
    assert {"README.md", "README.ru.md", "CHANGELOG.md", "THREAT_MODEL.md", "docs/operations.md"} <= names
    assert sum(1 for path in DOCUMENTS for _ in links(prose(path))) > 200


@pytest.mark.parametrize(
    "text",
    [
        "[x](nothing.md)",
        "[x](API.md)",
        "[x](api.md#nothing)",
        "[`x`](nothing.md)",
        "[x [y]](nothing.md)",
        "![x](nothing.png)",
        "[x](#nothing)",
        "[x]()",
        "[x](../../elsewhere.md)",
        "[x](/docs/api.md)",
        "[x][y]\n\n[y]: nothing.md",
        "[x][y]",
        '<a href="nothing.md">x</a>',
        '<img src="nothing.png" alt="x">',
        "[x](http://example.org/)",
        "<http://example.org/>",
        "[x](ftp://example.org/)",
        "[x](https://exa_mple/)",
        "[x](https://user@example.org/)",
        "[x](https://example.org/?utm_source=mimu)",
        "[x](examples/greeting.py#heading)",
    ],
)
def test_a_link_that_leads_nowhere_is_noticed(text: str) -> None:
    assert list(faults(ROOT / "docs" / "operations.md", text))


@pytest.mark.parametrize(
    "text",
    [
        "[x](api.md)",
        "[`x`](api.md#rate-limits)",
        "[x](../README.md)",
        "[x](decisions)",
        "[x](examples/greeting.py#L3)",
        "[x](https://www.rfc-editor.org/rfc/rfc8656#section-17)",
        "<https://tus.io/protocols/resumable-upload>",
        "`[x](nothing.md)`",
        "``[x](nothing.md) ` ``",
        "[x](mailto:ops@example.org)",
        "[x](http://localhost:8080/health)",
        "[x][y]\n\n[y]: api.md",
    ],
)
def test_a_link_that_leads_somewhere_is_not(text: str) -> None:
    assert list(faults(ROOT / "docs" / "operations.md", text)) == []


@pytest.mark.parametrize(
    ("title", "anchor"),
    [
        ("Rate limits", "rate-limits"),
        ("`GET /users/{public_id}`", "get-userspublic_id"),
        ("A *page* of sync", "a-page-of-sync"),
        ("What's new, and why?", "whats-new-and-why"),
        ("Что сделано", "что-сделано"),
        ("See [this](api.md)", "see-this"),
        ("C++ & co", "c--co"),
        ("snake_case_name", "snake_case_name"),
    ],
)
def test_anchors_are_githubs(title: str, anchor: str) -> None:
    assert slug(title) == anchor


def test_the_second_of_two_equal_headings_has_a_number(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text("# One\n\n## Two\n\n## Two\n\n```\n# no heading\n```\n\n### One\n")
    assert anchors(document) == {"one", "two", "two-1", "one-1"}


# Names of files ------------------------------------------------------------------------------------------------------

ROOMS = ("config", "docs", "handlers", "migrations", "models", "plugins", "requirements", "scripts", "tests")
PLACE = re.compile(rf"(?:{'|'.join(ROOMS)})/[\w./-]*|[\w-]+\.(?:py|conf|cfg|toml|md|yml)|Makefile|Dockerfile")
# Files that are made where it runs, of other programs, or of a feature that a reader is to write.
ELSEWHERE = {
    "nginx.conf",
    "sentinel.conf",
    "turnserver.conf",
    "valkey.conf",
    "redis.conf",
    "pg_hba.conf",
    "postgresql.conf",
}


def mentioned(text: str) -> Iterator[str]:
    """What stands in code type and looks like a file or folder of ours."""
    for found in _CODE.finditer(text):
        word = found[2].strip()
        if PLACE.fullmatch(word):
            yield word


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=name_of)
def test_files_that_a_document_names_exist(document: Path) -> None:
    known = {path.name for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()}
    known |= {path.name for path in ROOT.iterdir()} | ELSEWHERE
    for word in mentioned(prose(document)):
        place = ROOT / word
        beside = document.parent / word
        assert place.exists() or beside.exists() or ("/" not in word and word in known), f"there is no {word}"


def test_modules_that_a_document_runs_exist() -> None:
    for document in DOCUMENTS:
        for module in re.findall(r"python3? -m ((?:scripts|tests)[\w.]*)", document.read_text()):
            place = ROOT / module.rstrip(".").replace(".", "/")
            file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__main__.py"
            assert file.exists(), f"{name_of(document)} runs {module}"
            ast.parse(file.read_text())


# Names in the code ----------------------------------------------------------------------------------------------------

CODE_ROOMS = ("config", "handlers", "models", "plugins", "scripts", "server", "tests")
# Names in capitals and small letters that are others': of Python and its libraries, headers, systemd, Linux, phones.
FOREIGN = {
    *("TypedDict", "WebSocketProtocol13", "RateLimit", "LimitNOFILE", "WatchdogSec", "VmHWM"),
    *("DisconnectCause", "ConnectionService", "IsolateNameServer", "LibSignalClient", "WebSocket"),
}
_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:[ (\[=:].*)?", re.DOTALL)
_CAMEL = re.compile(r"[A-Z][a-z]+[A-Z]\w*")


class Code:
    """The names that our code declares: of each module, and of each class with the classes that it builds on."""

    def __init__(self, files: Iterable[tuple[str, str]]) -> None:
        """``files`` are names of modules, and their text."""
        self.modules: dict[str, set[str]] = {}
        self.members: dict[str, set[str]] = {}
        self._bases: dict[str, set[str]] = {}
        for module, text in files:
            tree = ast.parse(text)
            self.modules[module] = set(_declared(tree.body))
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    own = _declared(part for part in ast.walk(node) if isinstance(part, ast.stmt) and part is not node)
                    self.members.setdefault(node.name, set()).update(own)
                    bases = (ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases)
                    self._bases.setdefault(node.name, set()).update(bases)

    def has_member(self, kind: str, name: str, *heirs: str) -> bool:
        """True if a class, or one of ours that it builds on, has a member."""
        bases = [base for base in self._bases[kind] if base in self.members and base not in (kind, *heirs)]
        return name in self.members[kind] or any(self.has_member(base, name, kind, *heirs) for base in bases)

    def lacks(self, name: str) -> bool:
        """True if a name looks like one of ours and is none."""
        first, *rest = name.split(".")
        if first in self.members:
            return bool(rest) and not self.has_member(first, rest[0])
        if first not in CODE_ROOMS or not rest:
            return not rest and bool(_CAMEL.fullmatch(name)) and name not in FOREIGN
        parts = [first, *rest]
        module = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in self.modules), 0)
        inside = parts[module:]
        if not module or not inside:
            return not module
        if inside[0] not in self.modules[".".join(parts[:module])]:
            return True
        return len(inside) > 1 and inside[0] in self.members and not self.has_member(inside[0], inside[1])


def _declared(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """The names of functions, classes, variables and attributes of ``self``."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                    yield ast.unparse(one).removeprefix("self.")


def names(text: str) -> Iterator[str]:
    """The dotted names, and single ones, that stand in code type."""
    for found in _CODE.finditer(text):
        if (name := _NAME.fullmatch(found[2].strip())) and not PLACE.fullmatch(name[1]):
            yield name[1]


@pytest.fixture(scope="module")
def code() -> Code:
    paths = [ROOT / "server.py", *(path for room in CODE_ROOMS for path in (ROOT / room).rglob("*.py"))]
    dotted = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return Code(zip(dotted, (path.read_text() for path in paths), strict=True))


def test_names_in_the_code_that_a_document_mentions_exist(code: Code) -> None:
    alerts = set(re.findall(r"alert: (\w+)", (ROOT / "config/deploy/prometheus/alerts.yml").read_text()))
    missing = [
        f"{name_of(document)}: {name}"
        for document in DOCUMENTS
        if document.name != "CHANGELOG.md"
        for name in names(prose(document))
        if code.lacks(name) and name not in alerts
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("models.calls.ring", False),
        ("models.calls.rang", True),
        ("models.chats", False),
        ("models.chat", True),
        ("models.calls.Call.status", False),
        ("models.calls.Call.told", True),
        ("Owner.run", False),
        ("Heir.run", False),
        ("Heir.kept", False),
        ("Heir.walk", True),
        ("JournalOfAll", True),
        ("TypedDict", False),
        ("example.org", False),
    ],
)
def test_names_that_are_gone_are_noticed(name: str, lacking: bool) -> None:
    calls = "class Call:\n    status: str\n\nasync def ring(): ...\n"
    others = "class Owner:\n    def run(self):\n        self.kept = 1\n\nclass Heir(Owner): ...\n"
    assert Code([("models.chats", ""), ("models.calls", calls), ("plugins.x", others)]).lacks(name) is lacking
