"""Write docs/configuration.md: ``python -m scripts.configuration_page``. A test says when that is due.

What the settings mean is taken from config/env.example, and from nowhere else; their types, ranges, and who reads them
from the code.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo

if not __package__:  # python scripts/configuration_page.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import plugins
from config.settings import Core, Rate, Section

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE, PAGE = ROOT / "config" / "env.example", ROOT / "docs" / "configuration.md"


class Kind(NamedTuple):
    """A type as operators know it. ``examples`` are values that it takes."""

    name: str
    form: str
    examples: tuple[str, ...]


KINDS = {
    "text": Kind("text", "as it is", ("0.0.0.0",)),
    "word": Kind("word", "one of those named", ("on",)),
    "number": Kind("number", "digits; with a decimal point where it says so", ("20", "2.5")),
    "yes or no": Kind("yes or no", "", ("true", "false")),
    "list": Kind("list", "separated by commas", ("https://web.example.org,https://beta.example.org",)),
    "networks": Kind("networks", "CIDR, separated by commas", ("127.0.0.1/32", "10.0.0.0/8,fd00::/8")),
    "rate": Kind(
        "rate",
        "so many, or so many bytes, in so long: second, minute, hour or day",
        ("5/15 minutes", "3/hour", "256MiB/10 minutes"),
    ),
    "size": Kind("size", "bytes, or with a unit", ("50MiB", "1GiB", "1048576")),
    "price": Kind("price", "amount, currency, days", ("4.99 EUR/30 days",)),
    "address": Kind("address", "a URL without a user, query or fragment", ("https://files.example.org",)),
    "path": Kind("path", "of a file or folder, from the working directory", ("var", "/etc/mimu/apns.p8")),
    "key file": Kind("key file", "the path of a key; it is read at the start, as settings are", ("/etc/mimu/apns.p8",)),
    "secret": Kind("secret", "**secret**: in no log and no error; not in a repository", ("openssl rand -hex 32",)),
    "secret address": Kind(
        "secret address", "**secret**: a URL with its password in it", ("redis://:PASSWORD@localhost:6379/0",)
    ),
    "secret list": Kind("secret list", "**secrets**, separated by commas", ("FIRST,SECOND",)),
}

HEAD = """\
# Settings

<!-- Written by python -m scripts.configuration_page; the words are those of config/env.example. -->

Every setting is a variable of the environment, or a line of the file `.env` beside `server.py` (`--env-file`
names another one); the environment wins, and an empty value counts as unset.
[config/env.example](../config/env.example) is such a file with every default. What is wrong is said all at once, by
name and never by value:

```sh
.venv/bin/python server.py --check-config
.venv/bin/python -m scripts.doctor
```

The first looks at the settings alone, and the second, too, at [what they lead to](operations.md#is-it-well-set-up).

**When a change counts**: settings, and the key files that they name, are read once, at the start: change them and
restart the instances, one by one. Only what is in `KEYRING_FILE` is taken on at once, within 15 seconds, by all that
run ([changing the secrets](operations.md#changing-the-secrets)). Scripts read the settings each time. All instances
of one installation have the same settings, but for `HOST`, `PORT`, `MIMU_DATA_DIR`, `LOG_LEVEL` and
`DATABASE_MAX_CONNECTIONS`.

**Who reads it**: the core, or the features that are named; then it means nothing when those are in `PLUGINS_DISABLED`.
"""


@dataclass
class Chapter:
    """What stands under one heading of env.example."""

    title: str
    words: dict[str, str] = field(default_factory=dict)  # of each setting
    defaults: dict[str, str] = field(default_factory=dict)


def chapters(text: str) -> Iterator[Chapter]:
    """env.example in its parts; what is no setting of the server's is left out."""
    chapter = Chapter("")
    comment: list[str] = []
    for line in text.splitlines():
        heading = re.match(r"# --- (.*?) -+$", line)
        if heading:
            if chapter.words:
                yield chapter
            chapter, comment = Chapter(heading[1]), []
        elif line.startswith("# "):
            comment.append(line[2:])
        elif re.match(r"[A-Z]", line):
            name, _, default = line.partition("=")
            chapter.words[name], chapter.defaults[name] = sentences(comment), default
            comment = []
        else:
            comment = []
    if chapter.words:
        yield chapter


def sentences(lines: list[str]) -> str:
    """The lines of a comment as running text; one that ends with an example has no full stop."""
    text = " ".join(lines)
    for line, following in itertools.pairwise(lines):
        if line[-1].isalnum() and following[0].isupper() and not following.split()[0].isupper():
            text = text.replace(f"{line} {following}", f"{line}. {following}")
    return text


def readers() -> dict[str, tuple[list[str], FieldInfo]]:
    """Every setting with the names of who reads it, and its field."""
    sections: dict[str, type[Section]] = {
        "core": Core,
        **{name: module.Settings for name, module in plugins.discover().items()},
    }
    found: dict[str, tuple[list[str], FieldInfo]] = {}
    for reader, section in sections.items():
        for name, info in section.model_fields.items():
            found.setdefault(name.upper(), ([], info))[0].append(reader)
    return found


def plain(annotation: Any) -> Any:
    """An annotation without what is optional or annotated about it."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            inner = [one for one in get_args(annotation) if one is not type(None)]
            if len(inner) > 1:
                return annotation
            annotation = inner[0]
        else:
            return annotation


def kind(name: str, info: FieldInfo) -> str:
    """Which of KINDS a setting is. Raises LookupError for a type that is new here."""
    annotation = plain(info.annotation)
    if get_origin(annotation) is tuple:
        of = plain(get_args(annotation)[0])
        return "secret list" if of is SecretStr else "list" if of is str else "networks"
    if get_origin(annotation) is Literal:
        return "word"
    if annotation is SecretStr:
        return "secret address" if name.endswith("_URL") else "secret"
    if annotation is str:
        return "address" if name.endswith(("_URL", "_ENDPOINT")) else "text"
    simple = {int: "number", float: "number", bool: "yes or no", ByteSize: "size", Rate: "rate", Path: "path"}
    if annotation in simple:
        return simple[annotation]
    if name.endswith("_FILE"):
        return "key file"
    if name.endswith("_PRICE"):
        return "price"
    raise LookupError(f"{name} is of a type that scripts/configuration_page.py has no word for")


def bounds(info: FieldInfo) -> str:
    """What limits a value, in a few characters."""
    annotation = plain(info.annotation)
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(annotation))
    least = most = ""
    for limit in info.metadata:
        for bound, words in (("ge", ""), ("gt", "above ")):
            least = f"{words}{getattr(limit, bound)}" if hasattr(limit, bound) else least
        for bound, words in (("le", ""), ("lt", "below ")):
            most = f"{words}{getattr(limit, bound)}" if hasattr(limit, bound) else most
    if least and most:
        return f"{least} to {most}"
    return f"from {least}" if least else f"to {most}" if most else ""


def cell(text: str) -> str:
    """Words of env.example as a table shows them."""
    text = re.sub(r"\b([a-z]+://[^\s;,]+[^\s;,.:])", r"`\1`", text)
    text = re.sub(r"\b([A-Z][A-Z0-9]*_[A-Z_]*[A-Z](?:=\S*[^\s.,;])?)", r"`\1`", text)
    text = re.sub(r"\b(python -m scripts\.\w+(?: [A-Z]+)?|openssl rand -hex 32)", r"`\1`", text)
    return text.replace("|", "\\|")


def page() -> str:
    """The whole page. Raises LookupError when env.example and the code differ."""
    known = readers()
    parts = [HEAD, "## Kinds of values", "", "| kind | form | for example |", "|---|---|---|"]
    for one in KINDS.values():
        examples = ", ".join(f"`{example}`" for example in one.examples)
        parts.append(f"| {one.name} | {one.form} | {examples} |")
    for chapter in chapters(EXAMPLE.read_text()):
        title, _, about = chapter.title.partition(":")
        parts += ["", f"## {title.split(' (')[0]}", ""]
        rest = about.strip() or chapter.title.partition(" (")[2].rstrip(")")
        if rest:
            parts += [cell(f"{rest[0].upper()}{rest[1:]}."), ""]
        parts += ["| setting | what it is | kind | default | read by |", "|---|---|---|---|---|"]
        for name, words in chapter.words.items():
            who, info = known.pop(name)
            of = kind(name, info)
            told = f"**{of}**" if of.startswith("secret") else of
            limits = bounds(info)
            default = f"`{chapter.defaults[name]}`" if chapter.defaults[name] else "unset"
            row = (f"`{name}`", cell(words), f"{told}, {limits}" if limits else told, default, ", ".join(who))
            parts.append(f"| {' | '.join(row)} |")
    if known:
        raise LookupError(f"config/env.example lacks {', '.join(sorted(known))}")
    return "\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.configuration_page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when the page is out of date")
    asked = parser.parse_args()
    text = page()
    if asked.check:
        due = not PAGE.exists() or PAGE.read_text() != text
        print(f"{PAGE.name} is out of date" if due else "up to date")
        return int(due)
    PAGE.write_text(text)
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
