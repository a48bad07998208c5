"""Write config/env.example and docs/configuration.md: ``python -m scripts.configuration_page``.

A setting's ``description``, default, type and range come from its field in the code, and
scripts/configuration_chapters.py groups the settings. A test fails if a file is out of date.
"""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo

if not __package__:  # python scripts/configuration_page.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import plugins
from config.settings import Core, Section
from config.values import UNITS, Rate
from scripts import command
from scripts.configuration_chapters import COMPOSE, Chapter, sort_into_chapters

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE, PAGE = ROOT / "config" / "env.example", ROOT / "docs" / "configuration.md"
WIDTH = 120  # characters of a line of env.example
OPEN = {"MIMU_ENV"}  # settings whose default depends on another one, so that their line has no value
SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20))


class Kind(NamedTuple):
    """A type in the words of operators. ``examples`` are valid values."""

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

EXAMPLE_HEAD = """\
# Mimu's settings. Copy this file to .env beside server.py (chmod 600), or set the same names in the environment, which
# wins over the file. A line such as #PORT=8080 shows a default: remove the # to change it. An empty value means unset.
# `python server.py --check-config` reports everything that is wrong.
#
# In Mimu's repository this file is written by python -m scripts.configuration_page.
"""

HEAD = """\
# Settings

<!-- Written by python -m scripts.configuration_page from the code. -->

Every setting is a variable of the environment, or a line of the file `.env` beside `server.py` (`--env-file`
names another one); the environment wins, and an empty value means unset.
[config/env.example](../config/env.example) is such a file, with every default commented out. Two commands report
everything that is wrong, by name and never by value:

```sh
.venv/bin/python server.py --check-config
./mimu doctor
```

The first looks at the settings alone, the second also at [the services that they
name](operations.md#is-it-well-set-up).

**When a change counts**: a server reads the settings, and the key files that they name, once, at the start: change them
and restart the instances, one by one. Only a change of `KEYRING_FILE` reaches running servers, within 15 seconds
([changing the secrets](operations.md#changing-the-secrets)). Scripts read the settings each time. All instances
of one installation have the same settings, except for `HOST`, `PORT`, `MIMU_DATA_DIR`, `LOG_LEVEL` and
`DATABASE_MAX_CONNECTIONS`.

**Read by**: the core, or the features in the last column; a setting has no effect when all of these are in
`PLUGINS_DISABLED`.
"""


def readers() -> dict[str, tuple[list[str], FieldInfo]]:
    """Return every setting with the features that read it, and its field."""
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
    """Return an annotation without Annotated and Optional."""
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
    """Return which of KINDS a setting is. Raises LookupError for an unknown type."""
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
    """Describe the limits of a value, in a few characters."""
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


def default(name: str, info: FieldInfo) -> str:
    """Return a setting's default as operators write it; empty if it is unset."""
    return "" if name in OPEN else _format(info.default)


def _format(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Rate):
        return f"{_count(value.count)}/{_period(value.seconds)}"
    if isinstance(value, ByteSize):
        return _count(value)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _count(number: int) -> str:
    unit, size = next((one for one in SIZES if number % one[1] == 0 and number), ("", 1))
    return f"{number // size}{unit}"


def _period(seconds: int) -> str:
    unit, size = next(one for one in reversed(UNITS.items()) if seconds % one[1] == 0)
    return unit if seconds == size else f"{seconds // size} {unit}s"


def chapters() -> list[tuple[Chapter, dict[str, tuple[list[str], FieldInfo]]]]:
    """Return every chapter with its settings."""
    known = readers()
    chapters_with_names = sort_into_chapters({name: features for name, (features, _) in known.items()})
    return [(chapter, {name: known[name] for name in names}) for chapter, names in chapters_with_names]


def cell(text: str) -> str:
    """Format a description for a cell of a table."""
    text = re.sub(r"\b([a-z]+://[^\s;,]+[^\s;,.:])", r"`\1`", text)
    text = re.sub(r"\b([A-Z][A-Z0-9]*_[A-Z_]*[A-Z](?:[=/][^\s.,;]+)?)", r"`\1`", text)
    text = re.sub(r"(\./mimu [a-z-]+(?: [A-Z]+)?|\bopenssl rand -hex 32)", r"`\1`", text)
    return text.replace("|", "\\|")


def example() -> str:
    """Return the text of config/env.example. Raises LookupError for a setting without a description."""
    parts = [EXAMPLE_HEAD]
    for chapter, settings in chapters():
        parts.append(f"# --- {chapter.title} ".ljust(WIDTH, "-"))
        parts += [*comment(chapter.about), ""]
        for name, (_, info) in settings.items():
            if not info.description:
                raise LookupError(f"{name} has no description")
            mark = "" if chapter.first else "#"
            parts += [*comment(info.description), f"{mark}{name}={default(name, info)}"]
        parts.append("")
    return "\n".join(parts) + "\n" + COMPOSE


def comment(text: str) -> list[str]:
    """Wrap a text in lines of comment."""
    lines = textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return [f"# {line}" for line in lines]


def page() -> str:
    """Return the text of docs/configuration.md."""
    parts = [HEAD, "## Kinds of values", "", "| kind | form | for example |", "|---|---|---|"]
    for one in KINDS.values():
        examples = ", ".join(f"`{example}`" for example in one.examples)
        parts.append(f"| {one.name} | {one.form} | {examples} |")
    for chapter, settings in chapters():
        parts += ["", f"## {chapter.title}", ""]
        if chapter.about:
            parts += [cell(chapter.about), ""]
        parts += ["| setting | what it is | kind | default | read by |", "|---|---|---|---|---|"]
        for name, (who, info) in settings.items():
            of, limits, unchanged = kind(name, info), bounds(info), default(name, info)
            shown = f"**{of}**" if of.startswith("secret") else of
            shown = f"{shown}, {limits}" if limits else shown
            row = (f"`{name}`", cell(info.description or ""), shown, f"`{unchanged}`" if unchanged else "unset")
            parts.append(f"| {' | '.join(row)} | {', '.join(who)} |")
    return "\n".join(parts) + "\n"


def main() -> int:
    parser = command.parser("configuration_page", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is out of date")
    check = parser.parse_args().check
    files = {EXAMPLE: example(), PAGE: page()}
    due = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in due:
        if not check:
            path.write_text(files[path])
        print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}")
    if not due:
        print("up to date")
    return command.FAILED if check and due else 0


if __name__ == "__main__":
    sys.exit(main())
