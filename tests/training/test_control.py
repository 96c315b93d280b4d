"""The control tables are shares of what a classifier predicts, counted on the right images.

A painter stands in for the model: it writes what it is asked for into the pixels, wholly at
guidance 2 and for even seeds only at guidance 1; an oracle reads it back. So every share is known
by hand. Without this a share could be counted over other rows than were asked, and an edit be
compared with another image than its own.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import symbolic_config, symbolic_pipeline, tiny_latents, tiny_modules

from hebm_sample import Pipeline
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation import classifiers as module
from hebm_sample.evaluation.classifiers import (
    find_attribute_classifier,
    label_columns,
    parse_condition,
)
from hebm_sample.evaluation.control import ControlContext, _over_all, control
from hebm_sample.evaluation.control_results import ControlPlan, Share, steering
from hebm_sample.metrics.attribute_classifier import (
    AttributeClassifier,
    Predictions,
    accuracies,
)
from hebm_sample.pipeline.outputs import Samples

STEP = 40  # levels between values
COLUMNS = {"class": "label", "Smiling": "Smiling"}
PLAN = ControlPlan(num_images=6, guidance=(1.0, 2.0), layer_images=0)
VALUES = {"class": ("a", "b", "c"), "Smiling": ("no", "yes")}


def paint(classes, smiles) -> np.ndarray:
    images = np.zeros((len(classes), 3, 16, 16), dtype=np.uint8)
    images[:, 0] = STEP * np.asarray(classes)[:, None, None]
    images[:, 1] = STEP * np.asarray(smiles)[:, None, None]
    return images


def shown(classes, smiles) -> torch.Tensor:
    return torch.from_numpy(paint(classes, smiles)).float() / 255


class Oracle:
    columns = {"label": 3, "Smiling": 2}

    def predict(self, images):
        found = {}
        for i, (name, count) in enumerate(self.columns.items()):
            found[name] = np.eye(count)[np.rint(images[:, i, 0, 0] / STEP).astype(int)]
        return Predictions(found, images[:, 0, 0].astype(float))


class Painter(Pipeline):
    """Unasked, seed s shows class s mod 3, and smiles if 4 divides it."""

    def __init__(self):
        config = symbolic_config()
        super().__init__(config, *(tiny_modules(config)[i] for i in (0, 2, 1)))
        self.calls = []

    def __call__(self, num_images=None, seeds=None, *, symbols=None, guidance=1.0, **options):
        seeds = list(seeds)
        self.calls.append((len(seeds), guidance, options))
        rows = []
        for i, seed in enumerate(seeds):
            row = {"class": seed % 3, "Smiling": int(seed % 4 == 0)}
            if symbols is not None and (guidance >= 2 or seed % 2 == 0):
                row |= {name: VALUES[name].index(v) for name, v in symbols[i].items()}
            rows.append(row)
        images = shown([r["class"] for r in rows], [r["Smiling"] for r in rows])
        return Samples(images, tiny_latents(self.config, len(seeds)), None, tuple(seeds))

    def encode(self, images, **_):
        return (images,)

    def decode(self, latents, **_):
        return latents[0]

    def edit(self, images, symbols, *, seeds, **options):
        """Even seeds smile; the lower half loses its blue, which is 10 levels everywhere."""
        edited = images.clone()
        even = torch.tensor([s % 2 == 0 for s in seeds])
        edited[even, 1] = STEP / 255
        edited[:, 2, 8:] = 10 / 255
        return Samples(edited, (), None, tuple(seeds))

    def vary(self, source, keep, num_variations, **_):
        """The first row's pixels differ by 1, 1/2, ... with the number of clamped groups."""
        count, scale = len(source), len(range(3)[keep]) + 1
        images = torch.zeros(count * num_variations, 3, 16, 16)
        values = torch.arange(num_variations).repeat(count) * 8 / scale
        images[:, 0, 0, 0] = values.round() / 255
        return Samples(images, (), None, tuple(range(len(images))))


def table_of(count: int = 24, identity: str = "rows"):
    """Rows with every combination; a quarter of the smiles are unknown, most of them there."""
    rows = np.arange(count)
    classes, smiles = rows % 3, (rows % 5 == 0).astype(int)
    labels = {"label": classes, "Smiling": np.where(rows % 4 == 3, -1, smiles)}
    return ImageDataset(paint(classes, smiles), labels, {}, (0,), identity)


def measured(plan=PLAN, pipe=None, classifier=None, columns=COLUMNS, **options):
    options = {"batch_size": 5, "progress": False} | options
    data = table_of(), table_of(30, "held out")
    return control(pipe or Painter(), *data, classifier or Oracle(), {}, columns, plan, **options)


@pytest.fixture(scope="module")
def result():
    condition = {"class": "b", "Smiling": "yes"}
    plan = replace(PLAN, combinations=(condition,), edit={"Smiling": "yes"}, layer_images=2)
    return measured(plan)


def test_shares_of_each_value_by_hand(result):
    found = [a.by_guidance for a in result.variables["class"].conditions]
    assert [a.condition for a in result.variables["class"].conditions] == [
        {"class": value} for value in "abc"
    ]
    for shares in found:  # of seeds 0 ... 5 the even ones obey, and one of the odd ones happens to
        assert shares["0"] == Share.of([True] * 6 + [False] * 12)
        assert shares["1"] == Share.of([True] * 4 + [False] * 2)
        assert (shares["2"].share, shares["2"].count) == (1.0, 6)
    assert result.unconditional == 18
    # Seeds that obey and those that do not, each with all classes: of a seed's three samples all
    # show what was asked for, or one of them does.
    over_all = result.variables["class"].by_guidance
    assert over_all["1"] == Share.clustered(np.array([[1, 1, 1], [1, 0, 0]] * 3))
    assert over_all["1"].share == pytest.approx(12 / 18) and over_all["1"].count == 18
    # Without a condition class j is counted on seeds 6 j ... 6 j + 5, of which two show it.
    assert over_all["0"] == Share.of([True] * 6 + [False] * 12)


def test_of_two_values_the_rarer_one_is_asked(result):
    (asked,) = result.variables["Smiling"].conditions
    assert asked.condition == {"Smiling": "yes"}
    labels = table_of().labels["Smiling"]
    assert asked.labelled == Share.of(labels[labels >= 0] == 1)
    assert asked.by_guidance["0"] == Share.of([s % 4 == 0 for s in range(18)])
    assert asked.by_guidance["1"].share == pytest.approx(3 / 6)
    common = table_of()
    labels = {"Smiling": 1 - np.abs(common.labels["Smiling"]), "label": common.labels["label"]}
    swapped = replace(common, labels=labels)
    plan = replace(PLAN, attributes=("Smiling",))
    other = control(Painter(), swapped, common, Oracle(), {}, COLUMNS, plan, progress=False)
    assert other.variables["Smiling"].conditions[0].condition == {"Smiling": "no"}
    assert list(other.variables) == ["Smiling"] and other.unconditional == 6


def test_an_oracle_is_right_about_images_and_reconstructions(result):
    for variable in result.variables.values():
        for report in (variable.real, variable.reconstructed):
            assert report["accuracy"] == report["balanced_accuracy"] == 1.0
        for asked in variable.conditions:
            assert asked.real.share == asked.reconstructed.share == 1.0
    assert result.variables["class"].real["count"] == 30
    assert result.variables["Smiling"].real["count"] == 23  # the others are unknown
    assert result.variables["Smiling"].conditions[0].real.count == 5


def test_values_together(result):
    (together,) = result.combinations
    assert together.name == "class=b,Smiling=yes"
    assert together.by_guidance["0"] == Share.of([s in (4, 16) for s in range(18)])
    assert together.by_guidance["1"].share == pytest.approx(3 / 6)
    assert together.by_guidance["2"].share == 1.0
    assert together.real.count == 2  # rows 10 and 25


def test_an_edit_is_compared_with_its_own_image(result):
    edit = result.edit
    assert edit.images == 18  # known not to smile
    assert edit.flipped == Share.of([True] * 9 + [False] * 9)
    assert edit.others == {"reconstruction": 0.0, "edit": 0.0}
    assert edit.whole["reconstruction"] == edit.upper["reconstruction"] == 0
    assert edit.upper["edit"] == pytest.approx(STEP / 2 / 3)
    assert edit.whole["edit"] == pytest.approx(STEP / 2 / 3 + 10 / 3 / 2)


def test_layers_are_mean_distances_of_pairs(result):
    positions = torch.arange(8.0)
    for k, distance in enumerate(result.layers.distances):
        x = (positions * 8 / (k + 1)).round()
        pairs = (x[:, None] - x[None]).abs()
        assert distance == pytest.approx(float(pairs.sum() / (8 * 7)))
    assert len(result.layers.distances) == 3
    assert sorted(result.layers.distances, reverse=True) == result.layers.distances


def test_the_batches_mix_what_is_asked_and_change_nothing(result):
    pipe = Painter()
    other = measured(PLAN, pipe, batch_size=7, steps=3, sampler=None)
    assert {name: v.conditions[0].by_guidance for name, v in other.variables.items()} == {
        name: v.conditions[0].by_guidance for name, v in result.variables.items()
    }
    drawn = [(count, guidance) for count, guidance, _ in pipe.calls]
    assert drawn == [(7, 1.0), (7, 1.0), (4, 1.0)] + [(7, w) for w in (1.0, 1.0, 1.0)] + [
        (3, 1.0)
    ] + [(7, 2.0)] * 3 + [(3, 2.0)]
    assert all(options["steps"] == 3 for *_, options in pipe.calls)
    assert "sampler" not in pipe.calls[0][2] and other.sampling["steps"] == 3


def test_shares_and_their_errors():
    share = Share.of([True, True, True, False])
    assert (share.share, share.count) == (0.75, 4)
    assert share.error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert str(share) == "0.750 ± 0.217"
    for hits, share in (([True] * 100, 1.0), ([False] * 100, 0.0)):  # and not ± 0
        assert Share.of(hits) == Share(share, 1 / 101, 100)
    assert Share.clustered(np.ones((100, 3))) == Share(1.0, 1 / 101, 300)
    nothing = Share.of([])
    assert math.isnan(nothing.share) and nothing.count == 0


def test_over_all_values_errors_are_the_spread_of_repeats():
    """Of ten classes that one sample cannot show twice, over independent seeds for each: else all
    of them come to 0.1 exactly, whatever the model does.
    """
    rng, found = np.random.default_rng(0), []
    law = rng.dirichlet(np.full(10, 0.5))
    for _ in range(400):
        shown = rng.choice(10, size=300, p=law)
        found.append(_over_all([shown == j for j in range(10)], "0"))
    spread = np.std([x.share for x in found])
    assert spread > 0.01
    assert np.mean([x.share for x in found]) == pytest.approx(0.1, abs=4 * spread / 20)
    assert np.mean([x.error for x in found]) == pytest.approx(spread, rel=0.2)


def test_values_that_share_their_seeds_have_an_error_that_knows_it():
    rng, found = np.random.default_rng(1), []
    for _ in range(400):
        easy = rng.random((60, 1)) < 0.5  # seeds that obey every condition
        hits = easy | (rng.random((60, 4)) < 0.2)
        found.append(_over_all(list(hits.T), "2"))
    spread = np.std([x.share for x in found])
    assert np.mean([x.error for x in found]) == pytest.approx(spread, rel=0.15)
    binomial = Share.of(np.arange(240) < 144).error
    assert spread > 1.4 * binomial


def test_table_and_json_hold_the_figures(result):
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["variables"]["class"]["found"]["2"]["share"] == 1.0
    assert plain["edit"]["flipped"]["count"] == 18
    table = result.table()
    for word in ("guidance 2", "class=b,Smiling=yes", "0.667 ± 0.192", "flipped 0.500 ± 0.118"):
        assert word in table
    assert (
        "class: share of the reconstruction upper bound, by guidance 0: 0.333, 1: 0.667" in table
    )
    assert all(len(line) < 200 for line in table.splitlines())
    nothing = replace(result, edit=None, layers=None, combinations=[])
    assert "Edit" not in nothing.table() and nothing.to_dict()["edit"] is None


def of_rates(unconditional, conditional, real, weight="4"):
    """A measurement's file with the variable `Smiling` and these rates."""
    found = {"0": {"share": unconditional}, weight: {"share": conditional}}
    row = {"found": found, "real": {"share": real}}
    return {"variables": {"Smiling": {"asked": [row], "found": found, "real": {}}}}


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((0.5, 0.75, 1.0), {"Smiling": True}),
        ((0.5, 0.74, 1.0), {"Smiling": False}),
        ((0.06, 0.35, 0.78), {"Smiling": False}),
        ((0.5, 0.4, 0.9), {"Smiling": False}),
        ((0.9, 0.9, 0.9), {}),
        ((0.1, 0.9, None), {}),
        ((0.1, 0.9, 0.9, "2"), {}),
    ],
)
def test_what_steers_has_come_half_of_the_way(rates, expected):
    assert steering(of_rates(*rates)) == expected


def test_a_variable_of_many_values_steers_over_all_of_them(result):
    plain = replace(result, combinations=[]).to_dict()
    several = plain["variables"]["class"]
    several["found"] = {"0": {"share": 1 / 3}, "4": {"share": 0.6}}
    for accuracy, strong in ((0.85, True), (0.9, False)):
        several["real"] = {"accuracy": accuracy}
        assert steering(plain)["class"] is strong


def test_the_table_says_what_steers(result):
    weak = replace(
        result.variables["class"], by_guidance={"0": Share.of([1, 0]), "4": Share.of([1, 0])}
    )
    table = replace(result, variables={"class": weak}).table()
    assert table.splitlines()[-1].endswith("at guidance 4): class")
    assert table.splitlines()[-1].startswith("Steer weakly (0.5 of the way")


def test_an_undefined_share_is_null_in_json(result):
    edit = replace(result.edit, flipped=Share.of([]), others={"edit": math.nan})
    plain = replace(result, edit=edit).to_dict()
    assert plain["edit"]["flipped"]["share"] is plain["edit"]["others"]["edit"] is None
    json.dumps(plain, allow_nan=False)


def test_columns_that_the_classifier_has_not_are_refused():
    classifier = Oracle()
    classifier.columns = {"label": 3}
    with pytest.raises(UserInputError, match="'Smiling' cannot be measured: .* label"):
        measured(classifier=classifier)
    only = replace(PLAN, attributes=("class",))
    assert list(measured(only, classifier=classifier).variables) == ["class"]
    for changes in ({"edit": {"Smiling": "yes"}}, {"combinations": ({"Smiling": "yes"},)}):
        with pytest.raises(UserInputError, match="'Smiling' cannot be measured"):
            measured(replace(only, **changes), classifier=classifier)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"guidance": (1.0, -1.0)}, "guidance is -1"),
        ({"guidance": (math.nan,)}, "guidance is nan"),
        ({"variations": 1}, "variations is 1"),
        ({"layer_images": -1}, "layer_images is -1"),
    ],
)
def test_plans_that_make_no_sense(changes, message):
    with pytest.raises(UserInputError, match=message):
        ControlPlan(**changes)


def test_an_edit_without_images_to_edit_is_refused():
    data = table_of()
    full = replace(data, labels=data.labels | {"Smiling": np.ones(len(data), dtype=int)})
    plan = replace(PLAN, edit={"Smiling": "yes"})
    with pytest.raises(UserInputError, match="no held-out image is labelled as lacking"):
        control(Painter(), data, full, Oracle(), {}, COLUMNS, plan, progress=False)


@pytest.mark.parametrize("method", ["flow", "noise"])
def test_an_edit_that_cannot_be_is_refused_before_anything_is_sampled(method):
    """Hours of samples would be lost with it."""
    data, pipe = table_of(), Painter()
    full = replace(data, labels=data.labels | {"Smiling": np.ones(len(data), dtype=int)})
    plan = replace(PLAN, edit={"Smiling": "yes"}, edit_method=method)
    if method == "flow":  # which needs another level between data and noise
        short = replace(pipe.config.prior, levels=pipe.config.prior.levels[:2])
        pipe.model.config = replace(pipe.config, prior=short)
        pipe.prior.config = short
        full, message = data, "needs a level between data and noise"
    else:
        message = "no held-out image is labelled as lacking"
    with pytest.raises(UserInputError, match=message):
        control(pipe, data, full, Oracle(), {}, COLUMNS, plan, progress=False)
    assert pipe.calls == []


def test_columns_by_preset_by_name_and_by_hand():
    symbols = symbolic_config().prior.symbols
    data = table_of()
    assert label_columns(symbols, data, "faces") == {"Smiling": "Smiling"}
    assert label_columns(symbols, data, "cifar10")["class"] == "label"
    assert label_columns(symbols, data, "faces", {"class": "label"}) == COLUMNS
    with pytest.raises(UserInputError, match="no label column 'kind'; they have Smiling, label"):
        label_columns(symbols, data, "faces", {"class": "kind"})
    with pytest.raises(UserInputError, match="no symbol 'clas'.*'class'"):
        label_columns(symbols, data, "faces", {"clas": "label"})
    with pytest.raises(UserInputError, match="no labels for any symbol of faces .class, Smiling."):
        label_columns(symbols, replace(data, labels={}), "faces")


def test_labels_that_are_not_the_symbols_values_are_refused():
    """Cats are no airplanes, whichever number both have."""
    symbols, data = symbolic_config().prior.symbols, table_of()
    named = replace(data, label_names={"label": ("cat", "dog", "horse")})
    with pytest.raises(UserInputError, match="'label' has the values cat, dog, horse; symbol 'cl"):
        label_columns(symbols, named, "cifar10")
    same = replace(data, label_names={"label": ("a", "b", "c")})
    assert label_columns(symbols, same, "cifar10")["class"] == "label"
    more = replace(data, labels=data.labels | {"label": data.labels["label"] + 1})
    with pytest.raises(UserInputError, match="'label' holds 3; symbol 'class' has 3 values"):
        label_columns(symbols, more, "cifar10")


def test_a_classifier_may_know_more_than_the_data():
    predictions = Oracle().predict(paint([0, 1], [1, 0]))
    found = accuracies(predictions, {"label": np.array([0, 1])})
    assert list(found) == ["label"] and found["label"]["accuracy"] == 1


@pytest.mark.parametrize("size", [16, 112, 176, 240])
def test_classifiers_take_the_sizes_that_they_say(size):
    net = AttributeClassifier({"a": 2}, size, widths=(4, 4, 4, 4))
    assert net.predict(np.zeros((1, 3, size, size), np.uint8)).probabilities["a"].shape == (1, 2)


def test_conditions_in_words():
    symbols = symbolic_config().prior.symbols
    assert parse_condition("class=b, Smiling", symbols, "m") == {"class": "b", "Smiling": "yes"}
    for text in ("class=~b", "Smiling,Smiling=no"):
        with pytest.raises(UserInputError, match="is no set of values"):
            parse_condition(text, symbols, "m")
    for text in ("class=d", "class", "Smile=yes", ""):
        with pytest.raises(UserInputError, match="has no (value|symbol)"):
            parse_condition(text, symbols, "m")


def test_a_classifier_is_trained_once_a_recipe(tmp_path, monkeypatch):
    data = table_of(), table_of(30, "held out")
    options = {"steps": 2, "cache_dir": tmp_path, "progress": False}
    classifier, report = find_attribute_classifier(*data, ["label", "Smiling"], **options)
    assert isinstance(classifier, AttributeClassifier) and set(classifier.columns) == {
        "label",
        "Smiling",
    }
    assert (report["data"], report["held_out"]) == ("rows", "held out")
    assert report["columns"]["Smiling"]["count"] == 23
    monkeypatch.setattr(module, "train_attribute_classifier", lambda *a, **k: pytest.fail("again"))
    again, read = find_attribute_classifier(*data, ["Smiling", "label"], **options)
    assert read == json.loads(json.dumps(report))
    images = data[1].images
    np.testing.assert_array_equal(
        again.predict(images).features, classifier.predict(images).features
    )
    for changes in ({"steps": 3}, {"out": tmp_path / "classifier"}):
        with pytest.raises(pytest.fail.Exception, match="again"):
            find_attribute_classifier(*data, ["label", "Smiling"], **options | changes)
    with pytest.raises(UserInputError, match="no label column 'kind'"):
        find_attribute_classifier(*data, ["kind"], **options)
    unknown = replace(data[0], labels={"label": np.full(24, -1)})
    with pytest.raises(UserInputError, match="'label' is unknown in every training row"):
        find_attribute_classifier(unknown, data[1], ["label"], **options)


@pytest.mark.slow
def test_of_a_real_pipeline_and_classifier(tmp_path):
    """The same seeds give the same figures, in any batches up to rounding."""
    pipe, data = symbolic_pipeline(steps=4), (table_of(), table_of(30, "held out"))
    found = find_attribute_classifier(
        *data, list(COLUMNS.values()), steps=4, cache_dir=tmp_path, progress=False
    )
    plan = replace(
        PLAN, num_images=3, guidance=(2.0,), edit={"Smiling": "yes"}, layer_images=1, variations=2
    )
    results = [
        control(pipe, *data, *found, COLUMNS, plan, batch_size=size, progress=False)
        for size in (50, 50, 4)
    ]
    plain = [r.to_dict() | {"seconds": 0} for r in results]
    assert plain[0] == plain[1]
    assert plain[2]["layers"]["distances"] == pytest.approx(
        plain[0]["layers"]["distances"], rel=1e-3
    )
    json.dumps(plain[0], allow_nan=False)


def test_reconstructions_are_of_the_latents_that_edits_start_from():
    pipe, data = symbolic_pipeline(steps=4), table_of()
    context = ControlContext(pipe, Oracle(), COLUMNS, data, data, 2, False)
    images = torch.from_numpy(data.images[:5].copy()).float() / 255
    top, bottom = (pipe.edit(images, groups=[free]).latents for free in (2, 0))
    expected = pipe.decode((top[0], top[1], bottom[2]), output_type="torch")
    torch.testing.assert_close(context.reconstructed(data.images[:5]), expected)


def test_labels_that_are_numbered_otherwise_than_the_values():
    """Codes 1 and 2, and yes and no in several spellings."""
    from types import SimpleNamespace

    from hebm_sample.data.dataset import ImageDataset
    from hebm_sample.evaluation.control import ControlContext

    labels = {"code": np.array([1, 2, 2, -1]), "said": np.array([0, 1, 2, -1])}
    names = {"said": ("Y", "no", "yes")}
    images = ImageDataset(np.zeros((4, 3, 1, 1), np.uint8), labels, names, (0,), "")
    pipe = SimpleNamespace(symbols={"code": ("1", "2"), "said": ("no", "yes")})
    columns = {"code": "code", "said": "said"}
    context = ControlContext(pipe, None, columns, images, images, 4, False)
    known, holds = context.labelled(images, {"code": "2"})
    assert known.tolist() == [True] * 3 + [False] and holds.tolist() == [False, True, True, False]
    _, holds = context.labelled(images, {"said": "yes"})
    assert holds.tolist() == [True, False, True, False]


def test_what_is_expected_is_what_is_sampled(monkeypatch):
    from hebm_sample.evaluation import duration

    monkeypatch.setattr(duration, "_probed", lambda *_: (8.0, 0.0, 16))
    plan = replace(PLAN, combinations=({"class": "b", "Smiling": "yes"},), layer_images=2)
    pipe = Painter()
    measured(plan, pipe)
    count = sum(n for n, _, _ in pipe.calls) + plan.layer_images * plan.variations * 3
    line = duration.expected_control_line(pipe, plan, COLUMNS, 30, batch_size=1)
    assert line.startswith(f"{count:,} samples of 16 gradients, 30 images to read: about ")
    assert duration.in_words(8.0 * count) in line
    edits = duration.expected_control_line(
        pipe, replace(plan, edit={"Smiling": "yes"}), COLUMNS, 30
    )
    assert ", 30 edits of 48, 60 images to read: " in edits
