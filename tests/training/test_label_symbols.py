"""Symbols from the data's own labels: `hebm-train prior --labels`.

Without this a table of labels is no use until somebody has copied its values, in the right order,
into a preset.
"""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import tiny_pipeline
from toy import draw_images, labelled_preset, short_preset

from hebm_sample import Pipeline
from hebm_sample.cli.train import main
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.data.labels import encode_labels
from hebm_sample.data.sources import open_source
from hebm_sample.errors import UserInputError
from hebm_sample.training.label_columns import (
    ALL_LABELS,
    check_columns,
    label_columns,
    labels_of_source,
    with_labels,
    with_values,
)

COLUMNS = (
    {
        "kind": np.array([0, 1, 2, -1] * 10),
        "big": np.array([0, 1] * 20),
        "stars": np.array([0, 3, 1, 1] * 10),
        "number": np.arange(40),
        "same": np.ones(40, int),
        "my kind": np.array([0, 1] * 20),
        "twins": np.array([0, 1] * 20),
        "flag": np.array([0, 1] * 20),
        "Said": np.array([0, 1, 2, -1] * 10),
        "code": np.array([1, 2] * 20),
    },
    {
        "kind": ("cat", "dog", "polar bear"),
        "twins": ("a b", "a_b"),
        "flag": ("False", "True"),
        "Said": ("Y", "no", "yes"),
    },
)


def symbols(names):
    found = with_labels(labelled_preset(), COLUMNS, names)
    return {s.name: s.values for s in found.prior.symbols}, found.label_columns


def test_label_symbols_have_the_columns_values():
    values, columns = symbols(("kind", "big", "stars", "my kind"))
    assert values == {
        "kind": ("cat", "dog", "polar_bear"),
        "big": ("no", "yes"),
        "stars": ("0", "1", "3"),
        "my_kind": ("no", "yes"),
    }
    assert columns == (("my_kind", "my kind"),)


def test_label_symbols_of_all_columns_that_look_like_labels():
    labels = {name: column for name, column in COLUMNS[0].items() if name != "twins"}
    found = with_labels(labelled_preset(), (labels, COLUMNS[1]), ALL_LABELS)
    names = ["kind", "big", "stars", "my_kind", "flag", "Said", "code"]
    assert [s.name for s in found.prior.symbols] == names
    for all_of_them in (("ALL",), ("All",)):
        assert with_labels(labelled_preset(), (labels, COLUMNS[1]), all_of_them) == found
    with pytest.raises(UserInputError, match=r"no column .* looks like labels; they have \['x'\]"):
        with_labels(short_preset(), ({"x": np.arange(9)}, {}), ALL_LABELS)


@pytest.mark.parametrize(
    "typed, values, numbers",
    [
        ("FLAG", ("no", "yes"), [0, 1, 0, 1]),
        ("said", ("no", "yes"), [1, 0, 1, -1]),
        ("code", ("1", "2"), [0, 1, 0, 1]),
        ("stars", ("0", "1", "3"), [0, 2, 1, 1]),
        ("Kind", ("cat", "dog", "polar_bear"), [0, 1, 2, -1]),
    ],
)
def test_labels_are_numbers_of_the_symbols_values(typed, values, numbers):
    labels, names = COLUMNS
    preset = with_labels(labelled_preset(), COLUMNS, (typed,))
    (symbol,) = preset.prior.symbols
    assert symbol.values == values
    images = ImageDataset(np.zeros((40, 3, 1, 1), np.uint8), labels, names, (0,), "identity")
    columns = label_columns(preset, images)
    found = with_values(preset, images, columns)
    assert found.labels[columns[0]][:4].tolist() == numbers and found.identity == "identity"
    again = found.label_rows(torch.arange(40), columns)[:, 0]
    assert torch.equal(again, torch.from_numpy(found.labels[columns[0]]))
    assert images.labels is labels and np.array_equal(labels["code"], [1, 2] * 20)


def test_a_label_that_the_symbol_has_not_is_refused():
    preset = with_labels(labelled_preset(), COLUMNS, ("code",))
    with pytest.raises(UserInputError, match="'code' holds 3; symbol 'code' has 1, 2"):
        check_columns(preset, ({"code": np.array([1, 2, 3])}, {}))


def test_minus_one_and_one_are_no_and_yes_as_in_celeba():
    labels, names = encode_labels({"pm": [-1, 1, None, "-1"], "x": [-1, 0, 1, 1]}, {})
    assert labels["pm"].tolist() == [0, 1, -1, 0] and labels["x"].tolist() == [-1, 0, 1, 1]
    found = with_labels(labelled_preset(), (labels, names), ("PM",))
    assert found.prior.symbols[0].values == ("no", "yes")


@pytest.mark.parametrize(
    "name, message",
    [
        ("kinds", r"no label column 'kinds' \(did you mean 'kind'\?\); they have \['Said'"),
        ("same", "'same' has 1 values; a symbol needs two"),
        ("twins", "'twins' has values that become one word, such as 'a b'"),
    ],
)
def test_label_symbols_that_cannot_be(name, message):
    with pytest.raises(UserInputError, match=message):
        symbols((name,))


def invoke(home, *arguments):
    env = {"HEBM_CACHE": str(home / "cache")}
    return CliRunner().invoke(main, [str(a) for a in arguments], env=env)


def test_label_symbols_of_a_run(tmp_path):
    draw_images(tmp_path / "images", labels=True)
    labels, names = labels_of_source(open_source(str(tmp_path / "images"), None))
    assert set(labels) == {"bright"} and not names
    tiny_pipeline().save_pretrained(tmp_path / "generator")
    command = ("prior", "--preset", "tiny", "--data", tmp_path / "images", "--device", "cpu")
    dry = invoke(tmp_path, *command, "--labels", "bright", "--dry-run")
    assert dry.exit_code == 0 and not (tmp_path / "cache").exists(), dry.output
    command += ("--generator", tmp_path / "generator", "--max-steps", 2, "--out")
    done = invoke(tmp_path, *command, tmp_path / "run", "--labels", "all")
    assert done.exit_code == 0, done.output
    assert "symbols: bright (no, yes)" in done.stderr
    assert "\r" not in done.stderr and "it/s" not in done.stderr and "step" not in done.stderr
    pipe = Pipeline.from_pretrained(tmp_path / "run/model")
    assert pipe.symbols == {"bright": ("no", "yes")}
    wrong = invoke(tmp_path, *command, tmp_path / "other", "--labels", "brigth")
    assert wrong.exit_code == 2 and "did you mean 'bright'" in wrong.stderr
    assert "symbols: bright (no, yes)" in dry.stderr
    for text in ("bright,", "bright,bright"):
        wrong = invoke(tmp_path, *command, tmp_path / "other", "--labels", text)
        assert wrong.exit_code == 2 and "names no columns" in wrong.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (("--init", "MODEL", "--preset", "cifar10"), "has another architecture than preset"),
        (
            ("--validation", 40),
            "or the preset says; of 40 images it can be 0 to 39",
        ),
        (("--out", "RUN"), "already holds a run; go on with --resume"),
        (("--resume",), "nothing to resume"),
    ],
)
def test_label_symbols_and_sizes_are_checked_before_images_are_decoded(tmp_path, options, message):
    draw_images(tmp_path / "images")
    tiny_pipeline().save_pretrained(tmp_path / "model")
    if "RUN" in options:
        first = ("generator", "--preset", "tiny", "--data", tmp_path / "images", "--max-steps", 1)
        done = CliRunner().invoke(
            main,
            [str(a) for a in (*first, "--device", "cpu", "--out", tmp_path / "run")],
            env={"HEBM_CACHE": str(tmp_path / "first")},
        )
        assert done.exit_code == 0, done.output
    named = {"MODEL": tmp_path / "model", "RUN": tmp_path / "run"}
    options = [named.get(word, word) for word in options]
    command = ["generator", "--preset", "tiny", "--data", tmp_path / "images", "--device", "cpu"]
    command += ["--max-steps", 1, "--out", tmp_path / "new", *options]
    found = invoke(tmp_path, *command)
    assert found.exit_code == 2 and message in found.stderr, found.output
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (("--labels", "nix"), "no label column 'nix'"),
        (("--labels", "one"), "'one' has 1 values; a symbol needs two"),
        (("--labels", "bright,BRIGHT"), "label columns 'bright' become the symbol 'bright' twice"),
        (("--preset", "celeba64"), "preset celeba64 has the symbol 'Bangs', but the data have no"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_labels_are_looked_at_before_an_image_is_decoded(tmp_path, more, message, dry):
    folder = draw_images(tmp_path / "images", count=20, labels=True)
    table = folder / "metadata.jsonl"
    table.write_text(table.read_text().replace("}", ', "one": 1}'))
    command = ("prior", "--data", folder, "--device", "cpu", "--out", tmp_path / "run")
    command += () if "--preset" in more else ("--preset", "tiny")
    if not dry:
        tiny_pipeline().save_pretrained(tmp_path / "generator")
        command += ("--generator", tmp_path / "generator")
    found = invoke(tmp_path, *command, *more, *dry)
    assert found.exit_code == 2 and message in found.stderr, found.output
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()
