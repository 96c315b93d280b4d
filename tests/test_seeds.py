"""Guards: the text of --seeds means exactly one list, or is refused with a reason.

Without it a typing slip would silently draw other, fewer or repeated images.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEED, MAX_SEEDS, format_seeds, parse_seeds

seeds = st.lists(
    st.one_of(st.integers(0, 30), st.integers(0, MAX_SEED)), min_size=1, max_size=30, unique=True
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", (0,)),
        ("0,1,4-6", (0, 1, 4, 5, 6)),
        ("0-2,20", (0, 1, 2, 20)),
        (" 7 , 3 - 4 ", (7, 3, 4)),
        ("5-5", (5,)),
        ("0007", (7,)),
        (str(MAX_SEED), (MAX_SEED,)),
        ("0" * 6000 + "1", (1,)),
    ],
)
def test_reads(text, expected):
    assert parse_seeds(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a seed; write numbers and ranges such as 0-15,20"),
        ("1,", "'' is not a seed"),
        ("1,,2", "'' is not a seed"),
        ("-3", "'-3' is not a seed"),
        ("1--3", "is not a seed"),
        ("1-2-3", "is not a seed"),
        ("1 2", "is not a seed"),
        ("1.5", "is not a seed"),
        ("0x10", "is not a seed"),
        ("+1", "is not a seed"),
        ("1_000", "is not a seed"),
        ("٣", "is not a seed"),
        ("x" * 500, r"'x{40}\.\.\.' is not a seed"),
        ("6-4", "the range '6-4' runs backwards; write 4-6"),
        (str(MAX_SEED + 1), r"too large; seeds lie in \[0, 2\*\*32\)"),
        ("9" * 6000, r"the seed 9{40}\.\.\. is too large"),
        ("0-" + "9" * 6000, "is too large"),
        ("1,1", "seed 1 is given twice"),
        ("3,0-4", "seed 3 is given twice"),
        ("0-100000", "more than 100000 seeds"),
        (f"0-{MAX_SEED}", "more than 100000 seeds"),
        ("0-50000,60000-110000", "more than 100000 seeds"),
    ],
)
def test_refuses(text, message):
    with pytest.raises(UserInputError, match=message):
        parse_seeds(text)


def test_most_seeds():
    assert parse_seeds("0-99999") == tuple(range(MAX_SEEDS))


@given(seeds)
def test_format_is_the_inverse(values):
    assert parse_seeds(format_seeds(values)) == tuple(values)


def test_format_is_short():
    assert format_seeds([*range(16), 20]) == "0-15,20"
    assert format_seeds([7, 3]) == "7,3"


@given(seeds, st.data())
def test_spaces_do_not_matter(values, data):
    blank = st.sampled_from(["", " ", "  ", "\t"])
    text = ",".join(data.draw(blank) + str(v) + data.draw(blank) for v in values)
    assert parse_seeds(text) == tuple(values)


@settings(max_examples=300)
@given(st.text(alphabet="0123456789,- x", max_size=12))
def test_any_text_is_a_list_or_an_error(text):
    try:
        result = parse_seeds(text)
    except UserInputError as error:
        assert "\n" not in str(error)
    else:
        assert 0 < len(result) <= MAX_SEEDS
        assert len(set(result)) == len(result)
        assert all(0 <= s <= MAX_SEED for s in result)
