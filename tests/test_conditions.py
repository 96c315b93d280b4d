"""Conditions in every form that can be written, and one line for each that cannot.

A condition misread is an image of something else; a contradiction let through is a chain on -inf.
"""

import pytest
import torch
from tiny import SYMBOLS

from hebm_sample.config import SymbolConfig
from hebm_sample.errors import UserInputError
from hebm_sample.pipeline.conditions import allowed_values, find_symbol, read_condition
from hebm_sample.prior.symbols import SymbolTable

TABLE = SymbolTable(SYMBOLS)
LETTERS, SMILING = SYMBOLS


def read(symbols, guidance=1.0, count=2, table=TABLE):
    return read_condition(table, symbols, guidance, count, "tiny")


@pytest.mark.parametrize(
    ("condition", "left"),
    [
        ("a", {0}),
        (["a"], {0}),
        (("a", "c"), {0, 2}),
        (["a", "a"], {0}),
        ("~b", {0, 2}),
        (["~a", "~b"], {2}),
        (["a", "c", "~b"], {0, 2}),
        (["a", "b", "c"], {0, 1, 2}),
    ],
)
def test_what_a_condition_allows(condition, left):
    assert allowed_values(LETTERS, condition) == left


@pytest.mark.parametrize(("condition", "left"), [(True, {1}), (False, {0}), ("~no", {1})])
def test_yes_and_no(condition, left):
    assert allowed_values(SMILING, condition) == left


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("d", r"symbol 'class' has no value 'd'; it has a, b, c$"),
        ("A", r"no value 'A' \(did you mean 'a'\?\); it has a, b, c$"),
        ("~d", r"symbol 'class' has no value 'd'"),
        (["a", "~a"], r"'class' is asked to be a and not to be; leave one of the two out$"),
        (["~a", "~b", "~c"], r"'class' is asked to be any value and not to be"),
        ([], r"'class' is asked to be \[\]; write a value, ~value, or a list$"),
        ("", r"has no value ''"),
        (None, r"'class' is asked to be None"),
        (3, r"'class' is asked to be 3; write a value"),
        ([1], r"'class' is asked to be \[1\]"),
        ({"a"}, r"'class' is asked to be \{'a'\}"),
        (True, r"'class' has no value 'yes'"),
    ],
)
def test_conditions_that_cannot_be(condition, message):
    with pytest.raises(UserInputError, match=message) as caught:
        allowed_values(LETTERS, condition)
    assert "\n" not in str(caught.value)


def test_the_nearest_names_are_offered():
    names = ("Smiling", "Male", "Young")
    symbols = tuple(SymbolConfig(n, ("no", "yes")) for n in names)
    for asked, near in (("smiling", "Smiling"), ("Smile", "Smiling"), ("Yuong", "Young")):
        message = f"tiny has no symbol '{asked}' \\(did you mean '{near}'\\?\\); it has Smiling,"
        with pytest.raises(UserInputError, match=message):
            find_symbol(symbols, asked, "tiny")
    with pytest.raises(UserInputError, match=r"no symbol 'zzz'; it has Smiling, Male, Young$"):
        find_symbol(symbols, "zzz", "tiny")


def test_long_tables_are_cut_short():
    symbol = SymbolConfig("class", tuple(f"v{i}" for i in range(300)))
    with pytest.raises(UserInputError, match=r"v22, v23, \.\.\.$"):
        allowed_values(symbol, "none-of-them")


def test_a_model_without_symbols():
    with pytest.raises(UserInputError, match=r"tiny has no symbols, so 'class' cannot be asked"):
        read({"class": "a"}, table=SymbolTable(()))
    assert read(None, table=SymbolTable(())) is None


def test_one_mapping_goes_for_all():
    found = read({"class": ["a", "c"]}, 2.0)
    assert found.allowed.tolist() == [[True, False, True, True, True]] * 2
    assert found.weight.tolist() == [[2.0, 0.0]] * 2
    assert found.allowed.dtype == torch.bool


def test_one_mapping_an_image():
    found = read([{"class": "b", "Smiling": False}, {"Smiling": "yes"}, {}], count=3)
    assert found.allowed.tolist() == [
        [False, True, False, True, False],
        [True, True, True, False, True],
        [True] * 5,
    ]
    assert found.weight.tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]


def test_guidance_a_variable():
    both = {"class": "a", "Smiling": "yes"}
    assert read(both, {"class": 3.0}).weight[0].tolist() == [3.0, 1.0]
    assert read(both, {"class": 0, "Smiling": 0.5}).weight[0].tolist() == [0.0, 0.5]
    rows = [{"class": "a"}, {"Smiling": "no"}]
    assert read(rows, {"class": 2.0}).weight.tolist() == [[2.0, 0.0], [0.0, 1.0]]


def test_nothing_asked():
    assert read(None) is None
    assert read({}).weight.sum() == 0 and read({}).allowed.all()


@pytest.mark.parametrize(
    ("symbols", "guidance", "message"),
    [
        ({"class": "a"}, -1, r"guidance is -1; it must lie in \[0.0, 100.0\]"),
        ({"class": "a"}, 101, r"guidance is 101"),
        ({"class": "a"}, float("nan"), r"guidance is nan"),
        ({"class": "a"}, True, r"guidance is True"),
        ({"class": "a"}, "2", r"guidance is '2'"),
        ({"class": "a"}, {"class": -1.0}, r"guidance of class is -1.0"),
        ({"class": "a"}, {"class": "2"}, r"guidance of class is '2'"),
        ({"class": "a"}, {"Smiling": 2.0}, r"given for 'Smiling', which is not asked for"),
        ({"class": "a"}, {"Clas": 2.0}, r"tiny has no symbol 'Clas' \(did you mean 'class'"),
        (None, 2.0, r"guidance is given, but no symbols"),
        (None, {"class": 2.0}, r"guidance is given, but no symbols"),
        ({"klass": "a"}, 1.0, r"tiny has no symbol 'klass' \(did you mean 'class'"),
        ([{"class": "a"}], 1.0, r"symbols is a list of 1 for 2 images"),
        ([{"class": "a"}] * 3, 1.0, r"symbols is a list of 3 for 2 images"),
        ([{"class": "a"}, "b"], 1.0, r"give one mapping per image, or one for all"),
        ([], 1.0, r"symbols is a list of 0 for 2 images"),
        ("class", 1.0, r"give one mapping per image, or one for all"),
        (5, 1.0, r"symbols is"),
        ({3: "a"}, 1.0, r"tiny has no symbol"),
    ],
)
def test_refusals_are_one_line(symbols, guidance, message):
    with pytest.raises(UserInputError, match=message) as caught:
        read(symbols, guidance)
    assert "\n" not in str(caught.value)
