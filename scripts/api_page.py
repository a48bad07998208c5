"""Write docs/api.md: ``python -m scripts.api_page``. A test fails if the page is out of date.

The page shows the OpenAPI document of a server with all features and the default settings, which is built from the
declarations beside the code. Rules that all routes share are in docs/protocol.md, which is written by hand.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import orjson

if not __package__:  # python scripts/api_page.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import server
from handlers.http.base import ApiHandler
from handlers.reference.openapi import DONE, HOUSE
from handlers.reference.page import OpenApi
from handlers.wire.chat_events import ChatEvent
from handlers.wire.client_frames import REFUSED
from handlers.wire.errors import ApiError
from handlers.wire.frames import SENT, by_kind
from plugins import App, Plugin
from scripts import command
from scripts.api_chapters import Chapters, Common, Feature, codes, link
from scripts.schema_words import paragraph, row, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"

# The errors of any route and of any frame, which the page lists once.
COMMON = {kind.code for kind in ApiHandler.refuses} | {"method_not_allowed", "unsupported_media_type"}
FOR_ALL = {kind.code for kind in REFUSED}

HEAD = """\
# Routes and frames

<!-- Written by python -m scripts.api_page from what the code declares. -->

Every route and frame of the server, for client developers. What all of them have in common (JSON, tokens, pages,
budgets) is in [protocol.md](protocol.md). Each server shows the same at `/docs`, with examples, and as an OpenAPI 3.1
document at `/openapi.json`, with its own features and rate limits.
"""

READING = """\
## How to read it

A route needs an access token unless it is **public**. Parts of a path that end in `_id` are UUIDs, except `public_id`.
*Optional* fields may be left out; fields that are *not always there* may be missing in an answer. UUIDs, times and
base64 have [one form](protocol.md#values).

Each route lists its particular errors. Any route may also answer {common}. The server answers each frame with an `id`
by an [ack](#server-frame-ack) or an [error](#server-frame-error). Each frame lists its particular error codes; the
error may also be {frames}.
"""


class _Anything:
    """Stands for a resource. Before the server runs, features only store their resources, so none is used."""

    def __getattr__(self, _: str) -> Any:
        return _Anything()

    def __call__(self, *_: object, **__: object) -> Any:
        return _Anything()


def assemble() -> tuple[list[Plugin], dict[str, Any]]:
    """Return all features, and the document of a server with the default settings."""
    configuration = server.configure({}, make_secrets=False)
    resources: dict[str, Any] = {field.name: _Anything() for field in fields(App)}
    app = App(**{**resources, "core": configuration.core})
    features = [module.setup(app, configuration.sections[name]) for name, module in configuration.features.items()]
    site = server.assemble(app, features, configuration.rates)
    [published] = [rule.target_kwargs for rule in site.wildcard_router.rules if rule.target is OpenApi]
    return features, orjson.loads(published["document"].content)


def errors() -> Iterator[str]:
    """Yield the table of all codes."""
    yield "## Error codes\n"
    yield "A socket sends them without the status, as `code` of an [error](#server-frame-error).\n"
    yield from table("status", "code", "when")
    for kind in sorted(_below(ApiError), key=lambda kind: (kind.status, kind.code)):
        words = paragraph((kind.__doc__ or "").partition("\n\n")[0]) if kind.__doc__ else kind.message
        also = [f"`{name}`" for name in (*kind.body_fields, *kind.sends)]
        yield row(str(kind.status), f"`{kind.code}`", f"{words} With {', '.join(also)}." if also else words)
    yield ""


def with_links(text: str) -> str:
    """Add links to the page where its sentences name a route or a frame, except in headings and links."""
    titles = re.findall(r"^### (.*)$", text, re.MULTILINE)
    targets = {title: title for title in titles if re.fullmatch(r"`[A-Z]+ /\S*`", title)}
    for title in titles:
        if title.partition(" `")[0] in ("Client frame", "Server frame", "Chat event"):
            targets.update((name, title) for name in re.findall(r"`\w+_\w+`", title) if name not in targets)

    def linked(found: re.Match[str]) -> str:
        name = found[0]
        return link(targets[name], name) if name in targets else name

    return "\n".join(
        line if line.startswith("#") else re.sub(r"(\[[^\]]*\]\([^)]*\))|(`[^`]+`)", linked, line)
        for line in text.split("\n")
    )


def features(plugins: list[Plugin], document: dict[str, Any]) -> list[Feature]:
    """Return the features that have a route or a frame, in order, and at the end the server's own routes and frames."""
    words = {tag["name"]: tag["description"] for tag in document["tags"]}
    result = []
    for plugin in plugins:
        if plugin.name in words or plugin.events or plugin.sends:
            own = paragraph((sys.modules[f"plugins.{plugin.name}"].__doc__ or "").partition("\n\n")[0])
            about = words.get(plugin.name, re.sub(r"\s*\([^()]*\)", "", own))
            result.append(Feature(plugin.name, about, plugin.events, by_kind(plugin.sends), plugin.guide))
    others = document["paths"]["/ws"]["get"]["x-frames"].keys() - {kind for each in result for kind in each.accepts}
    return [*sorted(result, key=lambda each: each.name), Feature(HOUSE, words[HOUSE], others, by_kind(SENT))]


def page() -> str:
    """Return the whole page."""
    plugins, document = assemble()
    *own, house = features(plugins, document)
    common = Common(COMMON, FOR_ALL, DONE.values(), by_kind(get_args(get_args(ChatEvent)[0])))
    order = by_kind([*SENT, *(frame for plugin in plugins for frame in plugin.sends)])
    chapters = Chapters(document, common, order)
    written = [line for feature in own for line in chapters.feature(feature)]
    # Without its frames, which are in the chapter of the socket.
    written += [*chapters.feature(Feature(house.name, house.words)), *chapters.websocket(house), *chapters.types()]
    names = [*(feature.name.capitalize() for feature in (*own, house)), "WebSocket", "Types"]
    contents = [f"- {link('How to read it')}, {link('Error codes')}, {link('Rate limits')}"]
    contents.append(wrap(f"- {', '.join(link(name) for name in names)}", indent="  "))
    shared = {"common": ", ".join(codes(sorted(COMMON), ())), "frames": ", ".join(codes(sorted(FOR_ALL), ()))}
    parts = [HEAD, *contents, wrap(READING.format(**shared)), *errors(), *chapters.rates(), *written]
    return with_links("\n".join(parts).rstrip() + "\n")


def wrap(text: str, indent: str = "") -> str:
    """Wrap paragraphs in lines of at most 120 characters."""
    lines = textwrap.TextWrapper(120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(map(lines.fill, text.split("\n\n"))) + "\n"


def _below(kind: type[ApiError]) -> Iterator[type[ApiError]]:
    """Yield all subclasses of an error that the server can answer."""
    for child in kind.__subclasses__():
        if child.__module__.startswith(("handlers.", "plugins.")):
            yield child
            yield from _below(child)


def main() -> int:
    parser = command.parser("api_page", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    options = parser.parse_args()
    text = page()
    if options.check:
        due = not PAGE.exists() or PAGE.read_text() != text
        print(f"{PAGE.name} is out of date" if due else "up to date")
        return int(due)
    PAGE.write_text(text)
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
