"""The lock files: what the tests ran with is what `make run` and the image install, package by package."""

from __future__ import annotations

import re

import pytest

from tests.running import ROOT


def locked(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Each package's version and hashes. Where the system decides between two versions, both are in it."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    for package, version, hashes in re.findall(
        r"^([\w.-]+)==(\S+)[^\\\n]*\\\n((?:    --hash=\S+.*\n)+)", text, re.MULTILINE
    ):
        known = found.get(package, ("", frozenset()))
        found[package] = (f"{known[0]} {version}".strip(), known[1] | set(re.findall(r"sha256:\w+", hashes)))
    return found


@pytest.mark.parametrize("name", ["server", "embedded"])
def test_the_image_installs_the_tested_versions(name: str) -> None:
    installed, tested = locked(name), locked("dev")
    assert len(installed) > 20
    assert {package: lock for package, lock in installed.items() if tested.get(package) != lock} == {}


@pytest.mark.parametrize("name", ["server", "embedded", "dev"])
def test_every_package_has_a_hash(name: str) -> None:
    named = re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE)
    assert set(named) == set(locked(name))
