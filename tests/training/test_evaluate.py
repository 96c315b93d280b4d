"""The first measurement gives the same finite figures twice, and its arithmetic is what it says.

Without this a gap closed could be computed from other distances than those in the table, or change
from one call to the next, and nobody could compare two models.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tiny import release_config, tiny_config, tiny_modules, tiny_pipeline
from toy import draw_images

from hebm_sample import Pipeline
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation import distances
from hebm_sample.evaluation.distances import evaluate, open_held_out

SHORT = {"num_images": 12, "steps": 4, "batch_size": 7, "progress": False}
FIGURES = ("bits", "distortion_bits", "kl", "u_square", "u_square_posterior")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


def drawn(home, name, **options):
    folder = draw_images(home / name, **options)
    return load_images(folder, size=16, cache_dir=home / "cache", progress=False).split(25)


@pytest.fixture(scope="module")
def images(home):
    return drawn(home, "plain", count=60)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def result(pipe, images):
    return evaluate(pipe, *images, **SHORT)


def test_figures_are_finite_and_plain_json(result):
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    numbers = [x for name in FIGURES for x in np.ravel(plain[name])]
    assert all(math.isfinite(x) for x in numbers)
    assert len(result.kl) == len(result.u_square) == len(result.u_square_posterior) == 3
    assert result.bits == pytest.approx(
        result.distortion_bits + sum(result.kl) / (3 * 16 * 16 * math.log(2))
    )
    assert (result.model, result.held_out, result.sampling["steps"]) == ("tiny", 24, 4)
    assert 0 < result.sampling_seconds < result.seconds


def test_without_labels_the_space_is_of_pixels_and_the_gap_is_its_distances(result):
    (gap,) = result.gaps.values()
    (name,) = result.gaps
    assert "principal components" in name
    assert (gap.num_images, gap.num_reference) == (12, 12)
    assert min(gap.fd_gauss, gap.fd_model, gap.fd_recon) >= 0
    expected = (gap.fd_gauss - gap.fd_model) / (gap.fd_gauss - gap.fd_recon)
    if gap.fd_gauss > gap.fd_recon:
        assert gap.gap_closed == pytest.approx(expected)
    else:
        assert math.isnan(gap.gap_closed)


def test_by_default_all_held_out_images_are_used_if_they_are_few(pipe, images, monkeypatch):
    context = distances.make_context(pipe, *images, progress=False)
    assert context.num_images == 12 and len(context.held_out_images()) == 24  # of 25
    monkeypatch.setattr(distances, "DEFAULT_IMAGES", 11)
    assert distances.make_context(pipe, *images, progress=False).num_images == 11
    with pytest.raises(UserInputError, match="13 images per side were asked for; .*10 to 12"):
        distances.make_context(pipe, *images, num_images=13, progress=False)


def test_the_table_shows_the_distances(result):
    (gap,) = result.gaps.values()
    table = result.table()
    assert f"reconstructions {gap.fd_recon:.3f}" in table and f"{result.bits:.3f}" in table
    assert "recovery, 4 gradients" in table and "12 images per side" in table


def test_the_same_seeds_give_the_same_figures(pipe, images, result):
    again = evaluate(pipe, *images, **SHORT)
    assert [getattr(again, f) for f in FIGURES] == [getattr(result, f) for f in FIGURES]
    assert repr(again.gaps) == repr(result.gaps)  # nan is not equal to itself


def test_the_batch_size_changes_them_by_rounding_at_most(pipe, images, result):
    other = evaluate(pipe, *images, **SHORT | {"batch_size": 24})
    for name in FIGURES:
        assert getattr(other, name) == pytest.approx(getattr(result, name), rel=1e-4)
    (gap,), (before,) = other.gaps.values(), result.gaps.values()
    assert gap.fd_model == pytest.approx(before.fd_model, rel=1e-2)


def test_zero_energies_close_no_gap(images):
    """Under F = 0 the energy-based prior is N(0, I): the chain must not bring its u elsewhere."""
    generator, encoder, prior = tiny_modules(energy=0.0)
    pipe = Pipeline(tiny_config(), generator, prior, encoder)
    result = evaluate(pipe, *images, **SHORT | {"steps": 12})
    counts = [SHORT["num_images"] * math.prod(s) for s in pipe.generator.latent_shapes]
    for square, count in zip(result.u_square, counts, strict=True):
        assert abs(square - 1) < 4 * math.sqrt(2 / count)


def test_an_undefined_gap_is_null_in_json(result):
    (name,) = result.gaps
    gaps = {name: replace(result.gaps[name], gap_closed=float("nan"))}
    plain = replace(result, gaps=gaps).to_dict()
    assert plain["gaps"][name]["gap_closed"] is None
    json.dumps(plain, allow_nan=False)


def test_with_labels_a_classifier_comes_first_and_is_kept(home, pipe, monkeypatch):
    labelled = drawn(home, "labelled", count=60, labels=True)
    first = evaluate(pipe, *labelled, **SHORT, feature_steps=2, cache_dir=home / "features")
    names = list(first.gaps)
    assert ["classifier" in n for n in names] == [True, False]
    assert "principal components" in names[1]
    assert "bright" in json.dumps(first.feature_reports[names[0]])
    assert len(list((home / "features/features").iterdir())) == 1
    monkeypatch.setattr(
        "hebm_sample.evaluation.distances.train_feature_net", lambda *a, **k: pytest.fail("again")
    )
    again = evaluate(pipe, *labelled, **SHORT, feature_steps=2, cache_dir=home / "features")
    assert repr(again.gaps) == repr(first.gaps)
    json.dumps(first.to_dict(), allow_nan=False)


def test_the_release_parametrization_can_be_measured(images):
    config = release_config()
    result = evaluate(tiny_pipeline(config), *images, **SHORT)
    assert result.sampling["kernel"] == "plain" and math.isfinite(result.u_square[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_images": 13}, "13 images per side .* 25 held-out .* 10 to 12"),
        ({"num_images": 9}, "9 images per side"),
        ({"sampler": "hmc"}, "sampler is 'hmc'"),
    ],
)
def test_what_cannot_be_measured_is_refused(pipe, images, changes, message):
    with pytest.raises(UserInputError, match=message):
        evaluate(pipe, *images, **SHORT | changes)


def test_a_model_without_a_prior_is_refused(images):
    generator, encoder, _ = tiny_modules()
    bare = Pipeline(replace(tiny_config(), prior=None), generator, None, encoder)
    with pytest.raises(UserInputError, match="no energy-based prior yet.*hebm-train prior"):
        evaluate(bare, *images, **SHORT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    draw_images(folder / "train", count=30)
    draw_images(folder / "test", count=20, seed=1)
    draw_images(folder / "other", count=15, seed=2)
    return folder


class TestHeldOut:
    """Which images per model is measured on: those that its training never saw."""

    @pytest.fixture
    def opened(self, folder):
        def open_(**options):
            where = {"size": 16, "cache_dir": folder / "cache", "progress": False}
            return open_held_out(folder, **where | options)

        return open_

    @pytest.mark.parametrize(
        "options, counts",
        [
            ({"validation": 7}, (23, 7)),
            ({"model": "tiny", "validation": 7}, (23, 7)),
            ({"model": "cifar10"}, (30, 20)),
            ({"model": "cifar10", "validation": 7}, (23, 7)),
            ({"validation": 0}, (30, 20)),
            ({"split": "other"}, (30, 15)),
            ({"split": "other", "validation": 0}, (30, 15)),
            ({"model": "tiny", "split": "test"}, (30, 20)),
        ],
    )
    def test_by_option_or_else_by_preset(self, opened, options, counts):
        training, held_out = opened(**options)
        assert (len(training), len(held_out)) == counts
        assert training.identity != held_out.identity

    def test_by_hash_where_nobody_says(self, opened):
        training, held_out = opened()
        assert len(training) + len(held_out) == 30 and 0 < len(held_out) < 10
        for options in ({"model": "tiny"}, {"model": "church64", "validation": "hash"}):
            assert [x.identity for x in opened(**options)] == [
                training.identity,
                held_out.identity,
            ]

    def test_no_row_is_on_both_sides(self, opened):
        for options in ({}, {"validation": 7}, {"validation": 0}):
            a, b = ({x.tobytes() for x in part.images} for part in opened(**options))
            assert not a & b

    @pytest.mark.parametrize(
        "options, message",
        [
            (
                {"model": "celeba64"},
                "4000 images are to be held out; of 30 images it can be 0 to 29",
            ),
            ({"validation": 30}, "30 images are to be held out; of 30 images it can be 0 to 29"),
            ({"split": "absent"}, "no folder 'absent'"),
            ({"split": "train"}, "the split 'train' .* is what the model is trained on"),
            ({"split": "test", "validation": 7}, "7 validation rows and the split 'test'"),
        ],
    )
    def test_what_cannot_be_held_out_is_refused(self, opened, options, message):
        with pytest.raises(UserInputError, match=message):
            opened(**options)
