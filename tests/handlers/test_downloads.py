"""Ranges and tags of downloads, compared with the simplest implementation of RFC 9110."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handlers.http.downloads import RangeNotSatisfiable, byte_range, matches_tag

sizes = st.integers(1, 2**40)
places = st.integers(0, 2**41)


def expected(places_: list[int], size: int) -> tuple[int, int] | None:
    """Return the first position and the one after the last that exist."""
    inside = [place for place in places_ if 0 <= place < size]
    return (inside[0], inside[-1] + 1) if inside else None


@given(size=st.integers(1, 60), first=st.integers(0, 80), last=st.integers(0, 80))
def test_a_range_is_the_bytes_that_there_are(size: int, first: int, last: int) -> None:
    wanted = expected(list(range(first, last + 1)), size)
    if last < first:
        assert byte_range(f"bytes={first}-{last}", size) is None, "nonsense is ignored"
    elif wanted is None:
        with pytest.raises(RangeNotSatisfiable) as refused:
            byte_range(f"bytes={first}-{last}", size)
        assert refused.value.headers == {"Content-Range": f"bytes */{size}"}
    else:
        assert byte_range(f"bytes={first}-{last}", size) == wanted


@given(size=sizes, first=places)
def test_an_open_range_goes_to_the_end(size: int, first: int) -> None:
    if first < size:
        assert byte_range(f"bytes={first}-", size) == (first, size)
    else:
        with pytest.raises(RangeNotSatisfiable):
            byte_range(f"bytes={first}-", size)


@given(size=sizes, suffix=places)
@example(size=1, suffix=0)
def test_a_suffix_is_the_last_bytes(size: int, suffix: int) -> None:
    if suffix:
        assert byte_range(f"bytes=-{suffix}", size) == (max(size - suffix, 0), size)
    else:
        with pytest.raises(RangeNotSatisfiable):
            byte_range("bytes=-0", size)


@given(header=st.text(max_size=40) | st.from_regex(r"bytes=[-0-9, ]{0,30}"), size=sizes)
@example(header="bytes=0-1,3-4", size=10)
@example(header="bytes=-", size=10)
@example(header="lines=0-1", size=10)
@example(header="bytes=٣-٤", size=10)
@example(header="bytes=" + "9" * 5000 + "-", size=10)
@example(header="bytes=0-" + "9" * 5000, size=10)
def test_every_range_lies_within_the_file(header: str, size: int) -> None:
    try:
        found = byte_range(header, size)
    except RangeNotSatisfiable:
        return
    assert found is None or 0 <= found[0] < found[1] <= size


def test_no_range_is_all_of_it() -> None:
    assert byte_range(None, 5) is None
    assert byte_range("", 5) is None


@pytest.mark.parametrize("header", ['"a"', '"b", "a"', 'W/"a"', "*", ' "a" ', '"b",W/"a"'])
def test_a_tag_is_found_in_a_list(header: str) -> None:
    assert matches_tag(header, '"a"')


@pytest.mark.parametrize("header", [None, "", '"b"', "a", '"a', '"ba"', '"b a"'])
def test_another_tag_is_not(header: str | None) -> None:
    assert not matches_tag(header, '"a"')
