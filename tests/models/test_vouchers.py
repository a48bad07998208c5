"""Voucher codes: what people make of them when they type, and what a slip is noticed by."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from models.vouchers import ALPHABET, make, read


def test_a_code_is_read_as_it_was_made_and_as_people_type_it() -> None:
    for _ in range(200):
        code = make()
        groups = code.split("-")
        assert [len(group) for group in groups] == [5, 5, 5, 5]
        bare = "".join(groups)
        assert set(bare) <= set(ALPHABET)
        for typed in (
            code,
            bare,
            code.lower(),
            f"  {' '.join(groups)} \n",
            code.replace("-", "–"),
            code.replace("0", "O").replace("1", "l"),
            code.replace("0", "o").replace("1", "I"),
            # The same letters on a Russian keyboard.
            code.translate(str.maketrans("ABEKMHPCTX0", "АВЕКМНРСТХО")),
            code.lower().translate(str.maketrans("aekopcx", "аекорсх")),
        ):
            assert read(typed) == bare, typed


def test_codes_have_85_random_bits() -> None:
    codes = {make() for _ in range(2000)}
    assert len(codes) == 2000
    for place in range(17):
        seen = {code.replace("-", "")[place] for code in codes}
        assert seen == set(ALPHABET), place  # a symbol that is missing by chance: 32 * (31/32) ** 2000


def test_every_wrong_symbol_and_every_two_that_changed_places_are_noticed() -> None:
    for code in (make().replace("-", "") for _ in range(5)):
        for place, symbol in itertools.product(range(20), ALPHABET):
            if code[place] != symbol:
                assert read(code[:place] + symbol + code[place + 1 :]) is None
        for one, other in itertools.combinations(range(20), 2):
            if code[one] != code[other]:
                swapped = list(code)
                swapped[one], swapped[other] = code[other], code[one]
                assert read("".join(swapped)) is None
        assert read(code[:-1]) is None
        assert read(code + "0") is None


@given(st.text(max_size=40) | st.text(alphabet=ALPHABET + "-UILO", min_size=18, max_size=24))
def test_rubbish_is_no_code(text: str) -> None:
    code = read(text)
    assert code is None or read(code) == code
