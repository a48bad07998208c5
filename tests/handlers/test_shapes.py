"""Shapes: base64 in all forms that clients send."""

from __future__ import annotations

import base64
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handlers.wire.shapes import unb64

SIGNS = string.ascii_letters + string.digits + "+/-_="
ANY_FORM = re.compile("([A-Za-z0-9+/_-]{4})*([A-Za-z0-9+/_-]{2}(==)?|[A-Za-z0-9+/_-]{3}=?)?", re.ASCII)


@given(st.binary(max_size=64), st.booleans(), st.booleans())
def test_bytes_come_from_every_form(content: bytes, safe: bool, padded: bool) -> None:
    text = (base64.urlsafe_b64encode if safe else base64.b64encode)(content).decode()
    assert unb64(text if padded else text.rstrip("=")) == content


@given(st.text(SIGNS, max_size=12))
@example("AAAA====")
@example("AAAA====AAAA")
@example("AA=A")
@example("A===")
@example("====")
@example("\u0410AAA")
@example("AAA\n")
def test_only_base64_is_taken(text: str) -> None:
    if ANY_FORM.fullmatch(text):
        plain = text.rstrip("=").translate(str.maketrans("-_", "+/"))
        assert unb64(text) == base64.b64decode(plain + "=" * (-len(plain) % 4))
    else:
        with pytest.raises(ValueError, match="base64"):
            unb64(text)
