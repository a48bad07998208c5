"""The API reference: the OpenAPI document, and a page that renders it with nothing from another host."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

from config.values import Rate
from handlers.http.base import ApiHandler
from handlers.http.compression import accepts_gzip
from handlers.http.downloads import matches_tag
from handlers.reference import openapi
from handlers.wire.client_frames import ClientFrame
from handlers.wire.costs import READS
from handlers.wire.errors import NotFound
from handlers.wire.operations import Answer, Header, operation
from handlers.wire.shapes import encode

MINUTES = 300  # seconds; as long as a proxy may go on with what it has after a new version has come
YEAR = 31_536_000  # seconds; of what another version has another address for
SCRIPTED = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
RENDERER = ("stylesheets/swagger-ui.css", "javascripts/swagger-ui-bundle.js")
PAGE, OWN = "index.html", ("page.css", "page.js")
MEDIA = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "html": "text/html; charset=utf-8",
}

CACHED = (
    Header("ETag", "A tag of this version.", required=True),
    Header("Cache-Control", "How long it may be cached.", required=True),
)
SAME = Answer(words="`If-None-Match` has the tag of this version.", headers=CACHED)
CONDITION = (Header("If-None-Match", "Tags of the client's cached versions."),)


@dataclass(frozen=True, slots=True)
class Published:
    """A file that is the same for all clients, plain and compressed; clients may cache it for ``seconds``."""

    media: str
    content: bytes
    compressed: bytes
    tag: str
    seconds: int

    @classmethod
    def of(cls, media: str, content: bytes, seconds: int) -> Published:
        tag = hashlib.sha256(content).hexdigest()[:32]
        return cls(media, content, gzip.compress(content, mtime=0), tag, seconds)


class _PublishedHandler(ApiHandler):
    public = True
    cors_request_headers = tuple(header.name for header in CONDITION)

    async def publish(self, found: Published) -> None:
        """200 with the bytes, or 304 for who has them."""
        packed = accepts_gzip(self.request.headers.get("Accept-Encoding", ""))
        tag = f'"{found.tag}-gzip"' if packed else f'"{found.tag}"'
        await self.reserve(len(found.content))
        self.set_header("ETag", tag)
        self.set_header("Cache-Control", f"public, max-age={found.seconds}")
        self.add_header("Vary", "Accept-Encoding")
        if matches_tag(self.request.headers.get("If-None-Match"), tag):
            self.set_status(304)
            self.clear_header("Content-Type")
            self.finish()
            return
        self.set_header("Content-Type", found.media)
        if packed:
            self.set_header("Content-Encoding", "gzip")
        self.finish(found.compressed if packed else found.content)


class OpenApi(_PublishedHandler):
    def initialize(self, document: Published) -> None:
        self._document = document

    @operation({200: Answer(dict[str, Any], "The document.", CACHED), 304: SAME}, headers=CONDITION, cost=READS)
    async def get(self) -> None:
        """Get the OpenAPI 3.1 document of this server.

        It has the features that are enabled, and is made of the shapes that check requests. Clients may keep it for
        five minutes, and ask again with `If-None-Match`.
        """
        await self.publish(self._document)


class DocsPage(_PublishedHandler):
    def initialize(self, assets: Mapping[str, Published]) -> None:
        self._assets = assets

    @operation(
        {200: Answer(words="The page.", headers=CACHED, media="text/html"), 304: SAME}, headers=CONDITION, cost=READS
    )
    async def get(self) -> None:
        """Get a page that shows the document. It loads nothing from other hosts."""
        self.set_header("Content-Security-Policy", SCRIPTED)
        self.set_header("Referrer-Policy", "no-referrer")
        await self.publish(self._assets[PAGE])


class DocsAsset(_PublishedHandler):
    def initialize(self, assets: Mapping[str, Published]) -> None:
        self._assets = assets

    @operation(
        {200: Answer(words="The asset.", headers=CACHED, media="*/*"), 304: SAME},
        refuses=(NotFound,),
        headers=CONDITION,
        cost=READS,
    )
    async def get(self, name: str) -> None:
        """Get a part of that page."""
        found = self._assets.get(name)
        if found is None or name == PAGE:
            raise NotFound
        await self.publish(found)


@cache
def assets() -> Mapping[str, Published]:
    """The page and what it is made of, by name. It names them with a mark of their content, so that they may be kept
    for long."""
    ours = resources.files("handlers") / "reference"
    theirs = resources.files("mkdocs_swagger_ui_tag") / "swagger-ui"  # only its files are used, see decision 25
    files = [*(theirs / path for path in RENDERER), *(ours / name for name in OWN)]
    found = {file.name: Published.of(MEDIA[file.name.rpartition(".")[2]], file.read_bytes(), YEAR) for file in files}
    page = (ours / PAGE).read_text()
    marked = re.sub(r"docs/([a-z0-9.-]+)", lambda match: f"docs/{match[1]}?{found[match[1]].tag[:8]}", page)
    return {**found, PAGE: Published.of(MEDIA["html"], marked.encode(), MINUTES)}


def published(
    routes: Iterable[tuple[Any, ...]],
    events: Mapping[str, ClientFrame],
    sends: Mapping[str, type],
    rates: Mapping[str, Rate] | None,
) -> Published:
    """The document as it is served, made when a server starts."""
    addresses = tuple((pattern, handler) for pattern, handler, *_ in routes)
    return _published(addresses, tuple(events.items()), tuple(sends.items()), tuple((rates or {}).items()))


# Many servers with the same features in one process, as tests have them, make one document.
@lru_cache(maxsize=8)
def _published(
    routes: tuple[openapi.Route, ...],
    events: tuple[tuple[str, ClientFrame], ...],
    sends: tuple[tuple[str, type], ...],
    rates: tuple[tuple[str, Rate], ...],
) -> Published:
    made = openapi.document(routes, dict(events), dict(sends), dict(rates))
    return Published.of("application/json", encode(made), MINUTES)


def routes(reference: dict[str, Published]) -> tuple[tuple[str, type[ApiHandler], dict[str, Any]], ...]:
    """Return the routes of the document and of the page that renders it; ``reference`` gets its document later."""
    served = assets()
    return (
        ("/openapi.json", OpenApi, reference),
        ("/docs", DocsPage, {"assets": served}),
        ("/docs/([a-z0-9.-]{1,64})", DocsAsset, {"assets": served}),
    )
