"""The list of the longest files names files that are there."""

from tests.order import LONGEST
from tests.running import ROOT


def test_each_of_the_longest_files_is_there() -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)
