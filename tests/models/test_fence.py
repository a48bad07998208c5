"""The file of the fence: one that can't be read or written is logged once, and keeps no server from its work."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from models.postgres.fence import Fence, Mark

MARK = Mark(7_000_000_000_000_000_000, 3, "16384", None, True)


@pytest.mark.gen_test
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"system": "x"}', b"\xff"])
async def test_a_file_that_is_none_is_written_again(tmp_path: Path, log: io.StringIO, text: bytes) -> None:
    (tmp_path / "fence-mimu.json").write_bytes(text)
    fence = Fence(tmp_path)
    assert await fence.read() == (None, None)
    assert "fence_not_read" in log.getvalue()
    fence.mark = MARK
    await fence.load()
    assert await Fence(tmp_path).read() == (None, MARK)


@pytest.mark.gen_test
async def test_a_file_that_can_not_be_used_is_logged_once(tmp_path: Path, log: io.StringIO) -> None:
    (tmp_path / "fence-mimu.json").mkdir()
    fence = Fence(tmp_path)
    fence.mark = MARK
    for _ in range(2):
        await fence.load()
    assert fence.mark == MARK
    assert [log.getvalue().count(event) for event in ("fence_not_read", "fence_not_kept")] == [1, 1]
