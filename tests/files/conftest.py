"""Both storages for the tests of files: a folder, and a bucket of a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files.seaweed import Seaweed, seaweed


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The settings of a server with its own storage."""
    own = {"MIMU_DATA_DIR": str(tmp_path)}
    if request.param == "s3":
        own |= request.getfixturevalue("s3").settings()
    return own
