"""The chapters of docs/api.md: features with their routes, frames and types, as an OpenAPI document has them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from config.values import Rate
from scripts.schema_words import Json, SchemaWords, literal, name_of, paragraph, row, table

METHODS = ("get", "put", "post", "delete", "head", "patch")
PLAIN_BUDGETS = {"requests", "bytes-in", "bytes-out"}
PLAIN_HEADERS = {"X-Request-ID", "RateLimit", "RateLimit-Policy"}
FRAME = frozenset(("type", "id"))
EVENT = frozenset(("type", "chat_id", "seq", "created_at"))
UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))

CHAT_EVENTS = """\
The server sends changes of a chat over sockets, and again in [`GET /sync`](#get-sync), in one form: `type`, `chat_id`,
`seq`, `created_at`, and the fields of the event. In each chat `seq` is 1, 2, 3, … without a gap, the same for all
participants. The server sends an event after the commit, to every socket of every participant, and to a participant who
was just removed; only the socket that sent a message receives no `message_new` for it. Two events of one chat may
overtake each other if they come from different instances: [what to do](messaging.md#keeping-in-step).

In `/sync` a deleted message appears at its place as `message_deleted`, and messages and chats have their present
content; for participants who have left, the content when they left, or
[`hidden`](messaging.md#what-a-membership-shows). Earlier servers stored events of type `receipt`
([ReceiptEvent](#receiptevent)); receipts are marks now. These events keep their place, and between users who have
blocked one another they are `hidden`. The server makes no new ones; the last of them are deleted after 31 days.
"""


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature with its description, the types of frames that it accepts and sends, and its page in docs/."""

    name: str
    words: str
    accepts: Collection[str] = ()
    sends: Collection[str] = ()
    guide: str = ""


@dataclass(frozen=True, slots=True)
class Common:
    """What all features share: the error codes of any route and of any frame, the descriptions of answers that say no
    more than the status, and the types of chat events."""

    of_routes: Collection[str]
    of_frames: Collection[str]
    plain: Collection[str]
    events: Collection[str]


def slug(title: str) -> str:
    """Return the anchor that GitHub makes from a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def link(title: str, words: str = "") -> str:
    return f"[{words or title}](#{slug(title)})"


def is_plain_id(parameter: Json) -> bool:
    """True for a UUID in the path, which needs no description."""
    return bool(parameter["in"] == "path" and parameter["schema"].get("format") == "uuid")


def codes(of: Iterable[str], common: Collection[str]) -> list[str]:
    return [f"`{code}`" for code in of if code not in common]


def format_rate(rate: Rate) -> str:
    """Format a rate as settings write it."""
    unit, length = next((unit, length) for unit, length in UNITS if rate.seconds % length == 0)
    number = rate.seconds // length
    return f"{rate.count}/{f'{number} {unit}s' if number > 1 else unit}"


class Chapters:
    """The chapters of one document. ``order`` has all types of frames from the server, in the features' order."""

    def __init__(self, document: dict[str, Any], common: Common, order: Iterable[str]) -> None:
        self._document, self._common, self._order = document, common, list(order)
        self._mentioned: dict[str, bool] = {}  # types, and whether they are written
        self._schemas = SchemaWords(document["components"]["schemas"], self._mention)
        self._socket = document["paths"]["/ws"]["get"]
        self._text = orjson.dumps(document).decode()
        frames = self._grouped(self._socket["x-server-frames"])
        self._frames = {name_of(schema): self._server(kinds) for kinds, schema in frames}  # their headings by shape

    def _mention(self, name: str) -> str:
        """Return a link to a type, or to the frame that has this shape."""
        if name in self._frames:
            return link(self._frames[name], self._frames[name].partition(" `")[2].join(("`", "")))
        self._mentioned.setdefault(name, False)
        return link(f"`{name}`", name)

    # Features ----------------------------------------------------------------------------------------------------

    def rates(self) -> Iterator[str]:
        """Yield the table of all rate limits."""
        users: dict[tuple[str, str], list[str]] = {}
        limits: dict[tuple[str, str], Rate] = {}
        for title, limit in self._limited():
            key = limit["setting"].upper(), limit["for"]
            users.setdefault(key, []).append(link(title, title.rpartition("frame ")[2]))
            limits[key] = Rate(limit["count"], limit["seconds"])
        yield "## Rate limits\n"
        yield "These are the defaults. [How they count, and other limits](protocol.md#rate-limits).\n"
        yield from table("what", "limit", "for each", "setting")
        for (setting, counted), rate in sorted(limits.items()):
            yield row(", ".join(users[setting, counted]), format_rate(rate), counted, f"`{setting}`")
        yield ""

    def _limited(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, method, operation in self._operations():
            yield from ((f"`{method} {path}`", limit) for limit in operation.get("x-rate-limits", ()))
        for kind, reply in self._socket["x-replies"].items():
            yield from ((f"Client frame `{kind}`", limit) for limit in reply.get("x-rate-limits", ()))

    def _operations(self) -> Iterator[tuple[str, str, Json]]:
        for path, item in self._document["paths"].items():
            for method in METHODS:
                if method in item:
                    yield path, method.upper(), item[method]

    def feature(self, feature: Feature) -> Iterator[str]:
        """Yield the chapter of a feature: its routes and its frames."""
        name, guide = feature.name, feature.guide
        own = [one for one in self._operations() if name in one[2]["tags"] and one[0] != "/ws"]
        accepts, sends = sorted(feature.accepts), self._grouped(feature.sends)
        also = f" How a client uses it: [{guide.partition('#')[0]}]({guide})." if guide else ""
        yield f"## {name.capitalize()}\n\n{feature.words}{also}\n"
        yield from table("", "")
        for path, method, operation in own:
            words = f"As `GET {path}`, without the body" if self._is_bare(path, method) else operation["summary"]
            yield row(link(f"`{method} {path}`"), f"{words}.")
        yield from (row(link(self._client(kind)), self._summary(self._socket["x-frames"][kind])) for kind in accepts)
        yield from (row(link(self._server(kinds)), self._summary(schema)) for kinds, schema in sends)
        yield ""
        for one in own:
            yield from self._route(*one)
        for kind in accepts:
            yield from self._client_frame(kind)
        for kinds, schema in sends:
            yield from self._server_frame(kinds, schema)

    def _summary(self, schema: Json) -> str:
        words = paragraph(self._schemas.resolved(schema).get("description", ""))
        return re.split(r"(?<=\.) (?=[A-Z`])", words)[0]

    def _route(self, path: str, method: str, operation: Json) -> Iterator[str]:
        yield f"### `{method} {path}`\n"
        if self._is_bare(path, method):
            yield f"As `GET {path}`, without the body.\n"
            return
        marks = ["**Public.**"] if operation.get("security") == [] else []
        keys = [f"`{name}`" for each in operation.get("security", ()) for name in each]
        marks += [f"**Public**, with the header {', '.join(keys)}."] if keys else []
        yield " ".join([*marks, f"{operation['summary']}.\n"])
        if "description" in operation:
            yield operation["description"] + "\n"
        budgets = [f"`{kind}`" for kind in operation.get("x-budgets", ()) if kind not in PLAIN_BUDGETS]
        if budgets:
            yield f"Also spends the [budget](protocol.md#budgets) {', '.join(budgets)}.\n"
        yield from self._parameters(operation)
        yield from self._body(operation)
        yield from self._answers(operation["responses"])

    def _is_bare(self, path: str, method: str) -> bool:
        """True for a HEAD that is declared as the GET beside it."""
        item = self._document["paths"][path]
        return method == "HEAD" and "get" in item and item["get"]["summary"] == item["head"]["summary"]

    def _parameters(self, operation: Json) -> Iterator[str]:
        result = [one for one in operation.get("parameters", ()) if not is_plain_id(one)]
        if not result:
            return
        yield from table("parameter", "in", "type", "")
        for one in result:
            words = one.get("description") or self._schemas.words(one["schema"])
            default = one["schema"].get("default")
            if not one.get("required"):
                words = f"Optional{'' if default is None else f'; default {literal(default)}'}. {words}"
            yield row(f"`{one['name']}`", one["in"], self._schemas.kind(one["schema"]), paragraph(words).strip())
        yield ""

    def _body(self, operation: Json) -> Iterator[str]:
        body = operation.get("requestBody", {})
        for media, content in body.get("content", {}).items():
            if "schema" not in content:
                yield f"The body is `{media}`.\n"
                continue
            schema = self._schemas.resolved(content["schema"])
            if "description" in schema:
                yield paragraph(schema["description"]) + "\n"
            if not body["required"]:
                yield "The body is optional.\n"
            yield from table("body", "type", "")
            yield from self._schemas.fields(schema, accepted=True)
            yield ""

    def _answers(self, responses: Mapping[str, Json]) -> Iterator[str]:
        inline: list[str] = []
        yield from table("status", "answer")
        for status, response in sorted(responses.items()):
            refused = self._refused(response)
            if refused:
                own = codes(refused, self._common.of_routes)
                if own:
                    yield row(status, ", ".join(own))
                continue
            words = [] if response["description"] in self._common.plain else [paragraph(response["description"])]
            for media, content in response.get("content", {}).items():
                schema = content.get("schema")
                words.insert(0, f"`{media}`." if schema is None else f"{self._answer(schema, inline)}.")
            headers = [f"`{name}`" for name in response.get("headers", {}) if name not in PLAIN_HEADERS]
            words += [f"With {', '.join(headers)}."] if headers else []
            yield row(status, " ".join(words) or "No body.")
        yield ""
        yield from inline

    def _refused(self, response: Json) -> list[str]:
        """Return the error codes of a response; it is inline, not a reference, if it has a particular example."""
        words = response.get("description", "")
        if "$ref" in response:
            words = self._document["components"]["responses"][name_of(response)]["description"]
        return re.findall(r"^`(\w+)`: ", words, re.MULTILINE)

    def _answer(self, schema: Json, inline: list[str]) -> str:
        """Return the type of an answer. If it is used only here, its fields are added to ``inline``, for below."""
        of = schema.get("items", schema)
        if "$ref" not in of or self._text.count(f'"{of["$ref"]}"') > 1:
            return self._schemas.kind(schema)
        resolved = self._schemas.resolved(of)
        if "description" in resolved:
            inline.append(paragraph(resolved["description"]) + "\n")
        inline += [*table("answer", "type", ""), *self._schemas.fields(resolved, accepted=False), ""]
        return "A list of the fields below" if "items" in schema else "The fields below"

    # Frames ------------------------------------------------------------------------------------------------------

    def _client(self, kind: str) -> str:
        return f"Client frame `{kind}`"

    def _server(self, kinds: list[str]) -> str:
        noun = "Chat event" if kinds[0] in self._common.events else "Server frame"
        return f"{noun} {', '.join(f'`{kind}`' for kind in kinds)}"

    def _grouped(self, kinds: Iterable[str]) -> list[tuple[list[str], Json]]:
        """Group frames from the server by their shape, which several may share."""
        groups: dict[str, list[str]] = {}
        for kind in sorted(kinds, key=self._order.index):
            groups.setdefault(self._socket["x-server-frames"][kind]["$ref"], []).append(kind)
        return [(kinds, {"$ref": name}) for name, kinds in groups.items()]

    def _client_frame(self, kind: str) -> Iterator[str]:
        schema, reply = self._schemas.resolved(self._socket["x-frames"][kind]), self._socket["x-replies"][kind]
        yield f"### {self._client(kind)}\n"
        yield from self._paragraphs(schema)
        for limit in reply.get("x-rate-limits", ()):
            rate = format_rate(Rate(limit["count"], limit["seconds"]))
            yield f"At most {rate} for each {limit['for']} (`{limit['setting'].upper()}`).\n"
        yield from table("field", "type", "")
        yield from self._schemas.fields(schema, accepted=True)
        yield ""
        ack = list(self._schemas.fields(reply["ack"], accepted=False, hide=FRAME))
        if ack:
            yield from self._paragraphs(reply["ack"])
            yield from (*table("ack", "type", ""), *ack, "")
        own = codes(reply["error"]["properties"]["code"]["enum"], self._common.of_frames)
        yield f"{'' if ack else 'The ack has no more fields. '}Particular errors: {', '.join(own) or 'none'}.\n"

    def _server_frame(self, kinds: list[str], reference: Json) -> Iterator[str]:
        schema = self._schemas.resolved(reference)
        yield f"### {self._server(kinds)}\n"
        yield from self._paragraphs(schema)
        hide = EVENT if kinds[0] in self._common.events else frozenset(("type",))
        result = list(self._schemas.fields(schema, accepted=False, hide=hide))
        if result:
            yield from (*table("field", "type", ""), *result, "")

    def _paragraphs(self, schema: Json) -> Iterator[str]:
        if "description" in schema:
            yield "\n\n".join(paragraph(part) for part in schema["description"].split("\n\n")) + "\n"

    def websocket(self, house: Feature) -> Iterator[str]:
        """Yield the chapter of the socket: a table of all frames, and the frames that belong to no feature."""
        yield "## WebSocket\n"
        yield "How a client uses it is in [realtime.md](realtime.md).\n"
        yield from self._route("/ws", "GET", self._socket)
        yield "### Frames from clients\n"
        yield from table("frame", "")
        for kind in self._socket["x-frames"]:
            yield row(link(self._client(kind), f"`{kind}`"), self._summary(self._socket["x-frames"][kind]))
        yield "\n### Frames from the server\n"
        yield from table("frame", "")
        for kinds, schema in self._grouped(self._socket["x-server-frames"]):
            yield row(link(self._server(kinds), ", ".join(f"`{kind}`" for kind in kinds)), self._summary(schema))
        yield "\n### Chat events\n"
        yield CHAT_EVENTS
        for kind in sorted(house.accepts):
            yield from self._client_frame(kind)
        for kinds, schema in self._grouped(house.sends):
            yield from self._server_frame(kinds, schema)

    def types(self) -> Iterator[str]:
        """Yield the types that the earlier chapters mention, and those that these mention in turn."""
        yield "## Types\n"
        written: dict[str, list[str]] = {}
        while missing := [name for name, done in self._mentioned.items() if not done]:
            for name in missing:
                self._mentioned[name] = True
                written[name] = list(self._type(name))
        for name in sorted(written):
            yield from written[name]

    def _type(self, name: str) -> Iterator[str]:
        schema = self._schemas.named[name]
        yield f"### `{name}`\n"
        yield from self._paragraphs(schema)
        if "properties" not in schema:
            yield f"{self._schemas.kind(schema)}.\n"
            return
        yield from table("field", "type", "")
        yield from self._schemas.fields(schema, accepted=False)
        yield ""
