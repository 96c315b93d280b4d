"""Symbols from the data's own labels: `hebm-train prior --labels`.

Without this a table of labels is no use until somebody has copied its values, in the right order,
into a preset.
"""

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import tiny_pipeline
from toy import draw_images, labelled_preset, short_preset

from hebm_sample import Pipeline
from hebm_sample.cli.train import main
from hebm_sample.data.sources import open_source
from hebm_sample.errors import UserInputError
from hebm_sample.training.label_columns import ALL_LABELS, labels_of_source, with_labels

COLUMNS = (
    {
        "kind": np.array([0, 1, 2, -1] * 10),
        "big": np.array([0, 1] * 20),
        "stars": np.array([0, 3, 1, 1] * 10),
        "number": np.arange(40),
        "same": np.ones(40, int),
        "my kind": np.array([0, 1] * 20),
        "twins": np.array([0, 1] * 20),
    },
    {"kind": ("cat", "dog", "polar bear"), "twins": ("a b", "a_b")},
)


def symbols(names):
    found = with_labels(labelled_preset(), COLUMNS, names)
    return {s.name: s.values for s in found.prior.symbols}, found.label_columns


def test_label_symbols_have_the_columns_values():
    values, columns = symbols(("kind", "big", "stars", "my kind"))
    assert values == {
        "kind": ("cat", "dog", "polar_bear"),
        "big": ("no", "yes"),
        "stars": ("0", "1", "2", "3"),
        "my_kind": ("no", "yes"),
    }
    assert columns == (("my_kind", "my kind"),)


def test_label_symbols_of_all_columns_that_look_like_labels():
    labels = {name: column for name, column in COLUMNS[0].items() if name != "twins"}
    found = with_labels(labelled_preset(), (labels, COLUMNS[1]), ALL_LABELS)
    assert [s.name for s in found.prior.symbols] == ["kind", "big", "stars", "my_kind"]
    with pytest.raises(UserInputError, match=r"no column .* looks like labels; they have \['x'\]"):
        with_labels(short_preset(), ({"x": np.arange(9)}, {}), ALL_LABELS)


@pytest.mark.parametrize(
    "name, message",
    [
        ("kinds", r"no label column 'kinds' \(did you mean 'kind'\?\); they have \['big'"),
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
    for text in ("bright,", "bright,bright"):
        wrong = invoke(tmp_path, *command, tmp_path / "other", "--labels", text)
        assert wrong.exit_code == 2 and "names no columns" in wrong.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (("--init", "MODEL", "--preset", "cifar10"), "has another architecture than preset"),
        (("--validation", 40), "40 validation images asked for; of 40 images it can be 0 to 39"),
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
