"""A busy machine fails no test: they wait long, and prepare by connections without the time limits of requests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import ROOT

SHORT = 10  # seconds; less may pass on a busy machine between any two lines
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def short(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value < SHORT


def waits_for_nothing(node: ast.With) -> bool:
    """True where the end of the wait is what the test expects."""
    calls = [item.context_expr for item in node.items]
    return any(isinstance(call, ast.Call) and "TimeoutError" in ast.unparse(call) for call in calls)


def faults(node: ast.AST) -> Iterator[tuple[int, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.With) and waits_for_nothing(child):
            continue
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Attribute):
            called, last = child.func.attr, child.args[-1] if child.args else None
            if called in ("timeout", "wait_for", "expect") and short(last):
                yield child.lineno, f"{called}() waits for less than {SHORT} s"
            if called == "many":
                yield child.lineno, "rows are prepared by the server's pool; use connected()"
        yield from faults(child)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("async with asyncio.timeout(5): await it", 1),
        ("await asyncio.wait_for(it, 1)", 1),
        ("await socket.expect('closed', 1)", 1),
        ("await db.many('INSERT', rows)", 1),
        ("async with asyncio.timeout(WAIT): await it", 0),
        ("with pytest.raises(TimeoutError): await asyncio.wait_for(it, 1)", 0),
        ("await socket.expect('closed', 60)", 0),
    ],
)
def test_a_short_wait_is_found(text: str, number: int) -> None:
    assert len(list(faults(ast.parse(text)))) == number


def test_tests_wait_long_and_prepare_without_time_limits() -> None:
    def shown(path: Path) -> list[str]:
        return [f"{path.relative_to(ROOT)}:{line} {why}" for line, why in faults(ast.parse(path.read_text()))]

    assert [fault for path in TESTS if "bench" not in path.parts for fault in shown(path)] == []
