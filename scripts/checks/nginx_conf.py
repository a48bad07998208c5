"""Parser for the configuration of nginx: directives in their blocks, ``include`` resolved, and which location serves a
path (nginx.org: "Beginner's Guide" and ngx_http_core_module)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

MOST_FILES = 500
# Spaces and comments; { } or ;; a quoted word; a word, in which ${name} is no block.
_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<mark>[{};])|"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'"""
    r"""|(?P<word>(?!["'])(?:\$\{\w*\}|\\.|[^\s{};])+)""",
    re.DOTALL,
)


class Directive(NamedTuple):
    """One directive: its name, its words, and the directives of its block, if it has one."""

    name: str
    words: tuple[str, ...]
    block: tuple[Directive, ...] | None = None

    def all(self, name: str) -> list[Directive]:
        """The directives of that name in the block itself."""
        return [one for one in self.block or () if one.name == name]


class Malformed(ValueError):
    """A file that nginx would reject as well, or more files than MOST_FILES."""


def read(path: Path) -> Directive:
    """Read the whole configuration as one block. Raises OSError and Malformed."""
    try:
        return Directive("main", (), tuple(_file(path, path.parent, [0])))
    except RecursionError:
        raise Malformed("it includes itself") from None


def _file(path: Path, folder: Path, files: list[int]) -> Iterator[Directive]:
    files[0] += 1
    if files[0] > MOST_FILES:
        raise Malformed("too many files")
    tokens = _tokens(path.read_text(errors="replace"))
    yield from _block(tokens, folder, files, nested=False)


def _tokens(text: str) -> Iterator[tuple[str, bool]]:
    """Yield words and marks; True for a mark."""
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Malformed("a quote has no end")
        at = found.end()
        if found["mark"]:
            yield found["mark"], True
        elif found.lastgroup:
            yield re.sub(r"\\([\"'])", r"\1", found[found.lastgroup]), False


def _block(tokens: Iterator[tuple[str, bool]], folder: Path, files: list[int], *, nested: bool) -> Iterator[Directive]:
    words: list[str] = []
    for text, mark in tokens:
        if not mark:
            words.append(text)
        elif text == "}":
            if not nested or words:
                raise Malformed("a block is not closed correctly")
            return
        elif not words:
            raise Malformed("a directive has no name")
        else:
            name, *rest = words
            words = []
            if text == "{":
                yield Directive(name, tuple(rest), tuple(_block(tokens, folder, files, nested=True)))
            elif name == "include" and rest:
                for path in _included(folder, rest[0]):
                    yield from _file(path, folder, files)
            else:
                yield Directive(name, tuple(rest))
    if nested or words:
        raise Malformed("a block or a directive has no end")


def _included(folder: Path, pattern: str) -> list[Path]:
    whole = folder / pattern
    if not re.search(r"[*?\[]", pattern):
        return [whole]
    return sorted(path for path in Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))) if path.is_file())


def location(server: Directive, path: str) -> Directive | None:
    """Return the location of a server that serves a path, or None."""
    prefix: Directive | None = None
    patterns: list[Directive] = []
    for one in server.all("location"):
        *how, what = one.words or ("",)
        kind = how[0] if how else ""
        if kind == "=":
            if what == path:
                return one
        elif kind in ("~", "~*"):
            patterns.append(one)
        elif path.startswith(what) and (prefix is None or len(what) > len(prefix.words[-1])):
            prefix = one
    if prefix is None or prefix.words[0] != "^~":
        for one in patterns:
            try:
                if re.search(one.words[1], path, re.IGNORECASE if one.words[0] == "~*" else 0):
                    return one
            except re.error:  # PCRE syntax that Python does not have
                continue
    return prefix


def value(name: str, blocks: Sequence[Directive]) -> tuple[str, ...] | None:
    """Return the words of a directive in the innermost block that has it; ``blocks`` begins with the outermost."""
    for block in reversed(blocks):
        found = block.all(name)
        if found:
            return found[-1].words
    return None


def seconds(text: str) -> float | None:
    """Parse a time of nginx into seconds: ``90s``, ``1m30s``, ``1500ms``, or a number. None if it is not one."""
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "M": 2_592_000, "y": 31_536_000, "": 1}
    if not re.fullmatch(r"(\d+(ms|[smhdwMy])?)+", text):
        return None
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwMy])?", text))
