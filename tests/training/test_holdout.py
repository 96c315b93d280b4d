"""Which rows are held out: a law of each row alone, so that a set can grow.

Without this the held-out rows of class folders are the last class, which training never sees, or
a set that grows by one image trains on what it was measured with.
"""

import hashlib
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from hebm_sample.data.dataset import load_images
from hebm_sample.data.holdout import SelectedRows, held_out_rows, row_keys
from hebm_sample.data.images import ImageDataset
from hebm_sample.errors import UserInputError
from hebm_sample.presets.models import PRESETS, find_preset
from hebm_sample.presets.settings import TrainSettings, parse_validation
from hebm_sample.training.label_columns import label_columns

SIZE = 8


def names(count, word="image"):
    return [f"{word}/{i:05}.png" for i in range(count)]


def images(count, labels=None, word="image"):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)
    return ImageDataset(images, labels or {}, {}, (0,), "some", keys=row_keys(names(count, word)))


class TestRule:
    def test_a_key_is_the_hash_that_is_documented(self):
        digest = hashlib.sha256(b"0 cats/1.png").digest()
        assert row_keys(["cats/1.png"]).tolist() == [int.from_bytes(digest[:8], "little")]
        assert row_keys(["cats/1.png"], seed=1) != row_keys(["cats/1.png"])

    @pytest.mark.parametrize(("count", "low", "high"), [(5000, 0.085, 0.115), (200, 0.03, 0.2)])
    def test_it_is_a_tenth(self, count, low, high):
        assert low < held_out_rows(row_keys(names(count)), {}).mean() < high

    def test_rows_that_join_change_nothing(self):
        before = held_out_rows(row_keys(names(500)), {})
        after = held_out_rows(row_keys(names(700)), {})
        assert np.array_equal(after[:500], before)

    def test_no_training_row_of_before_is_held_out_later(self):
        """Where the most that is held out is reached, rows can only leave the hold-out."""
        before = held_out_rows(row_keys(names(900)), {}, most=40)
        after = held_out_rows(row_keys(names(1500)), {}, most=40)
        assert before.sum() == after.sum() == 40
        assert not (after[:900] & ~before).any() and (before & ~after[:900]).any()

    def test_what_else_than_its_key_decides_on_a_row(self):
        """The rule as it is documented: rows change sides for a value's sake alone."""
        rng = np.random.default_rng(2)
        for count in (12, 40, 150, 600):
            keys, values = row_keys(names(count)), rng.integers(-1, 12, count)
            held, below = held_out_rows(keys, {"label": values}), keys < np.uint64(0.1 * 2**64)
            for row in np.flatnonzero(held ^ below):
                some = np.flatnonzero(values == values[row])
                whole = np.arange(count)
                lowest = [keys[row] == keys[g].min() and not below[g].any() for g in (some, whole)]
                highest = [keys[row] == keys[g].max() and below[g].all() for g in (some, whole)]
                assert (any(lowest) and held[row]) or (any(highest) and not held[row])

    def test_a_set_that_grows_can_send_a_row_back(self):
        """What the documentation says of it."""
        keys = next(
            keys
            for seed in range(100)
            if (keys := row_keys(names(60), seed))[:6].min() > 0.1 * 2**64 > keys.min()
        )
        assert held_out_rows(keys[:6], {}).sum() == 1 and not held_out_rows(keys, {})[:6].any()
        before, after = (held_out_rows(row_keys(names(n)), {}) for n in (45_000, 65_000))
        assert before.sum() == after.sum() == 4000
        assert (before & ~after[:45_000]).sum() > 1000 and not (after[:45_000] & ~before).any()

    def test_order_does_not_matter(self):
        order = np.random.default_rng(1).permutation(300)
        keys = row_keys(names(300))
        assert np.array_equal(held_out_rows(keys, {})[order], held_out_rows(keys[order], {}))

    @pytest.mark.parametrize("seed", range(20))
    def test_every_class_is_in_both(self, seed):
        keys = row_keys(names(40), seed)
        labels = {"label": np.repeat([0, 1, 2, 3], 10), "few": np.array([0] * 38 + [1] * 2)}
        held = held_out_rows(keys, labels)
        for value in range(4):
            assert 0 < held[labels["label"] == value].sum() < 10
        assert not held[labels["few"] == 1].all()

    @pytest.mark.parametrize("seed", range(5))
    def test_captions_are_no_classes(self, seed):
        """Of a row each: to train on every one of them would leave nothing to hold out."""
        keys = row_keys(names(60), seed)
        plain = held_out_rows(keys, {})
        for captions in (np.arange(60), np.arange(60) // 2 * 2 + np.arange(60) % 2):
            assert np.array_equal(held_out_rows(keys, {"text": captions}), plain) and plain.any()

    @pytest.mark.parametrize("count", [1, 2, 3, 9])
    def test_few_rows(self, count):
        for seed in range(20):
            held = held_out_rows(row_keys(names(count), seed), {})
            assert (1 if count > 1 else 0) <= held.sum() < count


class TestSplit:
    def test_both_sides_are_the_whole(self):
        labels = {"n": np.arange(60)}
        whole = images(60, labels)
        training, held_out = whole.split()
        assert sorted([*training.labels["n"], *held_out.labels["n"]]) == list(range(60))
        for part in (training, held_out):
            rows = torch.arange(len(part))
            assert torch.equal(part.batch(rows), whole.batch(torch.from_numpy(part.labels["n"])))
        assert len({training.identity, held_out.identity, whole.identity}) == 3

    def test_a_renamed_file_is_another_split(self):
        assert images(60).split()[0].identity != images(60, word="other").split()[0].identity

    def test_slices_and_selections_agree(self):
        training, _ = images(60).split()
        rows = training.rows(5, 20)
        assert np.array_equal(rows.images, np.asarray(training.images)[5:20])
        again, held = training.split()
        assert not len(held) > len(training) / 2 and len(again) + len(held) == len(training)

    def test_a_number_is_the_last_rows(self):
        """Runs of before have a number in their settings, and go on with it."""
        whole = images(60)
        training, held_out = whole.split(7)
        assert np.array_equal(training.images, whole.images[:53])
        assert (training.identity, held_out.identity) == ("some[0:53]", "some[53:60]")


def test_selected_rows_are_an_array():
    base = np.random.default_rng(0).integers(0, 9, (10, 3, 2, 2))
    rows = np.array([7, 1, 4, 4])
    view, array = SelectedRows(base, rows), base[rows]
    assert (len(view), view.shape, view.dtype, view.ndim) == (4, array.shape, array.dtype, 4)
    mask = np.array([True, False, True, False])
    for key in (0, -1, slice(1, 3), [3, 0], mask, (0, 1), (slice(0, 2), 1), (slice(None), 0, 1)):
        assert np.array_equal(view[key], array[key])
    assert np.array_equal(np.asarray(view), array)
    assert np.asarray(view, dtype=np.float32).dtype == np.float32
    with pytest.raises(IndexError):
        view[4]


class TestSettings:
    def test_a_number_stays_a_number(self):
        settings = TrainSettings(steps=1, validation=4000)
        assert settings.to_dict()["validation"] == 4000
        assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
        assert TrainSettings(steps=1).validation is None
        assert TrainSettings.from_dict(TrainSettings(steps=1).to_dict()).validation is None

    @pytest.mark.parametrize(
        ("name", "rows"),
        [("celebahq", 4000), ("celebahq-64", 4000), ("celeba64", 4000), ("church64", 500)]
        + [("cifar10", 1000), ("celeba64-paper", 39829)],
    )
    def test_published_models_keep_their_rows(self, name, rows):
        preset = find_preset(name)
        assert preset.generator_settings.validation == preset.prior_settings.validation == rows

    def test_own_data_are_held_out_by_hash(self):
        for name in ("images64", "images256", "tiny"):
            assert PRESETS[name].generator_settings.validation is None
            assert PRESETS[name].prior_settings.validation is None

    def test_what_can_be_typed(self):
        assert [parse_validation(x) for x in ("hash", "last:7", "7", "0")] == [None, 7, 7, 0]
        for text in ("last", "last:", "-1", "first:3", "1.5", "", "last:hash", "٣"):
            with pytest.raises(UserInputError, match="write hash, last:N or N"):
                parse_validation(text)


@pytest.mark.parametrize("held_out", [None, 8])
def test_a_value_that_training_never_sees_is_told(tmp_path, held_out):
    for kind, count in (("no", 10), ("yes", 8)):
        for i in range(count):
            path = tmp_path / "set" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (SIZE, SIZE), (9 * i, 0, 0)).save(path)
    found = load_images(tmp_path / "set", size=SIZE, cache_dir=tmp_path / "c", progress=False)
    preset = find_preset("celeba64")
    symbol = preset.prior.symbols[0]
    from dataclasses import replace

    preset = replace(preset, prior=replace(preset.prior, symbols=(symbol,)))
    preset = replace(preset, label_columns=((symbol.name, "label"),))
    training, _ = found.split(held_out)
    if held_out is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert label_columns(preset, training) == ("label",)
    else:
        with pytest.warns(UserWarning, match=f"no training image has {symbol.name} = yes"):
            label_columns(preset, training)
