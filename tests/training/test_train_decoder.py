"""A sharp decoder is added to a model, and everything else of it stays as it was.

A run that moved T, the encoder or the prior by a bit would change every seed's image and every
score; one that could not go on exactly would make other weights than its recipe.
"""

import contextlib
import copy
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config, tiny_modules
from toy import draw_images, short_preset

from hebm_sample import Pipeline
from hebm_sample.config import FaceCrop, StageConfig
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import TrainingDivergedError, UserInputError
from hebm_sample.evaluation.calibration import calibrate
from hebm_sample.generator.hierarchy import Refinement
from hebm_sample.hub.sizes import least_bytes
from hebm_sample.metrics.typicality import FEWEST_IMAGES
from hebm_sample.pipeline.identity import own_calibration, scores_hash
from hebm_sample.presets.preset import DecoderPlan
from hebm_sample.training.checkpoint import latest_checkpoint, read_state
from hebm_sample.training.decoding.train import (
    POOL,
    Watch,
    new_learner,
    sharpened,
    train_decoder,
    with_sharp_decoder,
)
from hebm_sample.training.export import export, load_run, write_model
from hebm_sample.training.train import train_generator, train_prior
from hebm_sample.training.trainer import Run, make_accelerator


@pytest.fixture(scope="module")
def options():
    return {"accelerator": make_accelerator("cpu"), "show_progress": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def images(home):
    folder = draw_images(home / "images")
    return load_images(folder, size=16, cache_dir=home / "cache", progress=False)


@pytest.fixture(scope="module")
def model(home, images, options):
    train_generator(short_preset(), images, home / "generator", **options)
    train_prior(short_preset(), load_run(home / "generator"), images, home / "prior", **options)
    return Pipeline.from_pretrained(home / "prior" / "model", device="cpu")


@pytest.fixture(scope="module")
def run(home, model, images, options):
    return train_decoder(short_preset(), model, images, home / "decoder", **options)


@pytest.fixture(scope="module")
def sharp(home, run):
    return Pipeline.from_pretrained(home / "decoder" / "model", device="cpu")


def test_all_but_the_new_decoder_is_as_it_was(home, model, sharp):
    assert model.generator.decoders == ("likelihood",)
    assert sharp.generator.decoders == ("sharp", "likelihood")
    own, before = sharp.generator.state_dict(), model.generator.state_dict()
    assert all(torch.equal(own[name], value) for name, value in before.items())
    for part in ("prior", "encoder"):
        files = [home / run / "model" / f"{part}.safetensors" for run in ("prior", "decoder")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_scores_know_nothing_of_the_new_decoder(model, sharp, images, tmp_path):
    """A calibration stays that of the model: what it is of does not change."""
    assert scores_hash(model.model) == scores_hash(sharp.model)
    shown = np.tile(np.asarray(images.images), (5, 1, 1, 1))[:FEWEST_IMAGES]
    known = calibrate(model, shown, progress=False)
    parts = (model.config, model.generator, model.prior, model.encoder)
    carrying = Pipeline(*parts, calibration=known)
    made = sharpened(carrying, sharp.config, sharp.generator.sharp)
    made.save_pretrained(tmp_path / "made")
    assert Pipeline.from_pretrained(tmp_path / "made").calibration.weights == known.weights
    write_model(tmp_path / "exported", made, samples=False)
    again = Pipeline.from_pretrained(tmp_path / "exported", device="cpu")
    assert own_calibration(again.model)[0] is not None
    faces = images.batch(torch.arange(2)).add(1).div(2)
    assert made.calibration == known and made.score(faces).p_value is not None
    with torch.no_grad():
        made.generator.decoder.head.bias.add_(0.1)
    assert made.score(faces).p_value is None


def test_likelihoods_are_the_first_decoders_and_images_the_second_ones(model, sharp):
    u = model(4, output_type="torch").latents
    h = model.generator.transform(u).features
    assert torch.equal(sharp.generator.decode(h), model.generator.decode(h))
    assert torch.equal(sharp.generator.render(h, "likelihood"), model.generator.decode(h))
    shown = sharp.generator.render(h)
    assert torch.equal(shown, sharp.generator.render(h, "sharp"))
    assert not torch.allclose(shown, model.generator.decode(h), atol=1e-4)


def test_samples_are_shown_by_the_sharp_decoder(model, sharp):
    before, after = (pipe(seeds=[3, 5], output_type="torch") for pipe in (model, sharp))
    assert all(torch.equal(a, b) for a, b in zip(before.latents, after.latents, strict=True))
    assert torch.equal(before.energies, after.energies)
    h = sharp.generator.transform(after.latents).features
    expected = (sharp.generator.sharp(h).clamp(-1, 1) + 1) / 2
    assert torch.allclose(after.images, expected, atol=1e-5)
    assert not torch.allclose(before.images, after.images, atol=1e-3)


def test_a_decoder_that_there_is_not(model):
    h = torch.zeros(1, *model.generator.transform(model(1).latents).features.shape[1:])
    with pytest.raises(UserInputError, match="decoder is 'sharp'; this model has 'likelihood'"):
        model.generator.render(h, "sharp")


def test_the_config_says_what_each_part_saw(sharp):
    parts = [(r.part, r.images, r.steps) for r in sharp.config.training]
    assert parts == [("generator", 80, 10), ("prior", 80, 10), ("decoder", 80, 10)]
    assert "decoder (16x16): 80 images in 10 steps" in str(sharp.config.training[-1])
    assert all(r.started <= r.ended for r in sharp.config.training)


def test_a_run_that_was_cut_goes_on_exactly(home, run, model, images, options, monkeypatch):
    one_step, done = Run.one_step, []

    def cut(self, step):
        done.append(step)
        if len(done) == 7:
            raise KeyboardInterrupt
        return one_step(self, step)

    monkeypatch.setattr(Run, "one_step", cut)
    with pytest.raises(KeyboardInterrupt):
        train_decoder(short_preset(), model, images, home / "cut", **options)
    monkeypatch.setattr(Run, "one_step", one_step)
    train_decoder(short_preset(), model, images, home / "cut", resume=True, **options)
    for name in ("learner", "ema", "optimizer"):
        whole, resumed = (
            load_file(latest_checkpoint(home / folder) / f"{name}.safetensors")
            for folder in ("decoder", "cut")
        )
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[k], resumed[k]) for k in whole), name
        assert name == "optimizer" or any("discriminator" in k for k in whole)


def test_another_plan_or_model_is_another_run(home, run, model, images, options):
    plan = replace(short_preset(), decoder=DecoderPlan(samples=16, pixels=1.0))
    with pytest.raises(UserInputError, match="other data"):
        train_decoder(plan, model, images, home / "decoder", resume=True, **options)
    with pytest.raises(UserInputError, match="already holds a run"):
        train_decoder(short_preset(), model, images, home / "decoder", **options)


@pytest.fixture(scope="module")
def stopped(home, model, images, options):
    """The folder of a run that was stopped after 5 of 10 steps; tests work on copies."""
    _stop_after(4, model, images, home / "stopped", options)
    return home / "stopped"


def _stop_after(steps, model, images, folder, options):
    one_step = Run.one_step

    def cut(self, step):
        if step == steps:
            raise KeyboardInterrupt
        return one_step(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "one_step", cut)
        with pytest.raises(KeyboardInterrupt):
            train_decoder(short_preset(), model, images, folder, **options)


def no_samples(monkeypatch):
    def drawn(self, *args, **kwargs):
        raise AssertionError("samples were drawn")

    monkeypatch.setattr(Pipeline, "__call__", drawn)


def test_another_prior_is_another_run(model, images, options, stopped, tmp_path, monkeypatch):
    """Its samples are what the decoder learns from, and it goes into the final model; what cannot
    be gone on with is said before any are drawn.
    """
    other = Pipeline(model.config, model.generator, copy.deepcopy(model.prior), model.encoder)
    with torch.no_grad():
        for value in other.prior.parameters():
            value.neg_()
    run = shutil.copytree(stopped, tmp_path / "run")
    (run / POOL).unlink()
    no_samples(monkeypatch)
    resume = {**options, "resume": True}
    with pytest.raises(UserInputError, match="frozen networks"):
        train_decoder(short_preset(), other, images, run, **resume)
    plan = replace(short_preset(), decoder=DecoderPlan(samples=16, pixels=1.0))
    with pytest.raises(UserInputError, match="frozen networks"):
        train_decoder(plan, model, images, run, **resume)
    assert not (run / POOL).exists()


def test_another_kind_of_run_is_not_gone_on_with(
    home, model, images, options, tmp_path, monkeypatch
):
    run = shutil.copytree(home / "prior", tmp_path / "run")
    no_samples(monkeypatch)
    with pytest.raises(UserInputError, match="other .*kind"):
        train_decoder(short_preset(), model, images, run, resume=True, **options)
    with pytest.raises(UserInputError, match="already holds a run"):
        train_decoder(short_preset(), model, images, run, **options)
    with pytest.raises(UserInputError, match="nothing to resume"):
        train_decoder(short_preset(), model, images, tmp_path / "new", resume=True, **options)
    assert not (run / POOL).exists() and not (tmp_path / "new").exists()


def test_an_ended_run_is_left_as_it_is(run, home, model, images, options, monkeypatch):
    before = (home / "decoder" / "model" / "generator.safetensors").read_bytes()
    no_samples(monkeypatch)
    again = train_decoder(short_preset(), model, images, home / "decoder", resume=True, **options)
    assert again.steps == 10
    assert (home / "decoder" / "model" / "generator.safetensors").read_bytes() == before


def test_what_a_run_never_reads_may_change(model, images, options, stopped, tmp_path):
    """A crop that was measured since, and a sampler: its samples are named by their hash."""
    run, config = shutil.copytree(stopped, tmp_path / "run"), model.config
    crop = FaceCrop((0.35, 0.4), (0.65, 0.4), (0.5, 0.75))
    config = replace(config, crop=crop, sampling=replace(config.sampling, steps=30))
    other = Pipeline(config, model.generator, model.prior, model.encoder)
    assert train_decoder(short_preset(), other, images, run, resume=True, **options).steps == 10


def test_a_resumed_run_compares_with_the_least_error_of_the_whole(
    model, images, options, stopped, tmp_path
):
    run = shutil.copytree(stopped, tmp_path / "run")
    kept = read_state(latest_checkpoint(run))["least"]
    assert 0 < kept < 2
    seen, call = [], Watch.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watch, "__call__", lambda w, m: (seen.append(w.least), call(w, m))[1])
        patch.setattr(Watch, "__init__", lambda w, least: setattr(w, "least", 10.0))
        train_decoder(short_preset(), model, images, run, resume=True, **options)
    assert seen[0] == kept


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_samples_are_made_again(model, images, options, stopped, tmp_path, damage):
    run = shutil.copytree(stopped, tmp_path / "run")
    path, whole = run / POOL, (stopped / POOL).read_bytes()
    changed = whole[:-9] if damage == "cut" else whole[:-9] + bytes(b ^ 128 for b in whole[-9:])
    path.unlink() if damage == "gone" else path.write_bytes(changed)
    match = pytest.warns(UserWarning, match="damaged and is made again")
    with contextlib.nullcontext() if damage == "gone" else match:
        result = train_decoder(short_preset(), model, images, run, resume=True, **options)
    assert result.steps == 10


def test_an_exported_run_is_its_model(home, run, sharp, tmp_path):
    export(home / "decoder", tmp_path / "model")
    for name in ("generator", "prior", "encoder"):
        one, other = (
            load_file(folder / f"{name}.safetensors")
            for folder in (tmp_path / "model", home / "decoder" / "model")
        )
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    exported = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert exported.config.training[-1].part == "decoder"


def test_more_cells_begin_with_the_weights_that_fit(home, sharp, images, options):
    stages = (StageConfig(8, 8, cells=3),)
    preset = replace(
        short_preset(steps=1, learning_rate=0.0), decoder=DecoderPlan(stages=stages, samples=0)
    )
    result = train_decoder(preset, sharp, images, home / "wider", **options)
    known, own = sharp.generator.sharp.state_dict(), result.learner.decoder.state_dict()
    assert len(own) > len(known)
    # Adam with a rate of nothing has moved nothing.
    assert all(torch.equal(own[name], value) for name, value in known.items())


def test_a_refinement_begins_without_a_word_and_learns_one(home, sharp, images, options):
    stages = (StageConfig(8, 8, cells=1), StageConfig(16, 8, cells=1))
    h = sharp.generator.transform(sharp(2).latents).features
    for rate, same in ((0.0, True), (1e-3, False)):
        preset = replace(
            short_preset(learning_rate=rate), decoder=DecoderPlan(stages=stages, samples=0)
        )
        folder = home / f"fine{rate}"
        decoder = train_decoder(preset, sharp, images, folder, **options).learner.decoder
        coarse = copy.deepcopy(decoder)
        coarse.fine = None
        with torch.no_grad():
            assert torch.equal(decoder(h), coarse(h)) == same
    made = Pipeline.from_pretrained(folder / "model", device="cpu")
    assert made.config.generator.sharp_decoder == stages
    size = (folder / "model" / "generator.safetensors").stat().st_size
    assert 0.8 * size < least_bytes(made.config, "generator.safetensors") <= size
    with torch.no_grad():
        assert torch.allclose(made.generator.render(h), decoder(h), atol=2e-3)  # half precision


def test_a_bilinear_decoder_is_bilinear_wherever_it_is_loaded(home, sharp, images, options):
    """Its weights fit nearest neighbours too, and would draw other images with them."""
    plan = DecoderPlan(
        stages=(StageConfig(8, 8, cells=1), StageConfig(16, 8, cells=1)),
        upsampling="bilinear",
        blur=1.0,
        samples=4,
    )
    preset, folder = replace(short_preset(), decoder=plan), home / "bilinear"
    decoder = train_decoder(preset, sharp, images, folder, **options).learner.decoder
    export(folder, home / "bilinear-export", samples=False)
    h = sharp.generator.transform(sharp(2).latents).features
    for made in (folder / "model", home / "bilinear-export"):
        pipe = Pipeline.from_pretrained(made, device="cpu")
        described = pipe.config.generator
        assert described.sharp_upsampling == "bilinear"
        assert set(json.loads((made / "config.json").read_text())["generator"]) >= {
            "sharp_upsampling"
        }
    assert pipe.generator.sharp.fine.mode == "bilinear"
    with torch.no_grad():
        average = load_run(folder).generator.render(h)
        assert torch.allclose(pipe.generator.render(h), average, atol=2e-3)
        other = copy.deepcopy(pipe.generator.sharp)
        for part in other.modules():
            part.mode = "nearest"
        assert not torch.allclose(other(h), average, atol=2e-3)
    assert not torch.allclose(decoder(h), sharp.generator.render(h), atol=2e-3)
    with pytest.raises(UserInputError, match="sharp_upsampling is 'bilinear', and there is no"):
        replace(described, sharp_decoder=None)
    large = replace(
        described,
        image_size=32,
        decoder=(*described.decoder, StageConfig(16, 8)),
        encoder_size=16,
        sharp_decoder=None,
        sharp_upsampling="nearest",
    )
    assert large.grows_from(described)


def test_a_plan_that_cannot_be_is_refused(home, sharp, images, options):
    for settings, said in (
        ({"blur": 6.0}, "decoder.blur is 6 pixels; on 16 pixels it can be 0 to 5"),
        ({"blur": -1.0}, "blur is -1"),
        ({"upsampling": "cubic"}, "upsampling is 'cubic'; it can be 'nearest', 'bilinear'"),
    ):
        with pytest.raises(UserInputError, match=said):
            preset = replace(short_preset(), decoder=DecoderPlan(**settings))
            train_decoder(preset, sharp, images, home / "never", **options)
    assert not (home / "never").exists()
    # What earlier releases had no word for is not in the identity of their runs.
    assert not {"upsampling", "blur"} & set(DecoderPlan().to_dict())
    assert DecoderPlan.from_dict(DecoderPlan(blur=1.0).to_dict()) == DecoderPlan(blur=1.0)


def test_a_decoder_learns_from_samples_of_one_particle(home, sharp, images, options, monkeypatch):
    asked, call = [], Pipeline.__call__

    def drawn(self, *args, **kwargs):
        asked.append(kwargs.get("particles"))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "__call__", drawn)
    preset = replace(short_preset(steps=1), decoder=DecoderPlan(samples=4))
    train_decoder(preset, sharp, images, home / "one-particle", **options)
    assert asked and asked[0] == 1


def test_a_refinement_is_local():
    """A pixel depends on pixels about it, not on its place in a block."""
    stage = StageConfig(16, 8, cells=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fine = Refinement(8, stage, 2, 3)
        torch.nn.init.normal_(fine.head.weight)
        features, images = torch.zeros(1, 8, 16, 16), torch.zeros(1, 3, 32, 32)
        dot = images.clone()
        dot[..., 16, 16] = 1.0
        moved = torch.roll(dot, 1, 3)  # by half of a block
        plain, one, other = (fine(features, x) for x in (images, dot, moved))
    assert not torch.allclose(one, plain)
    one, other = one - plain, other - plain
    assert torch.allclose(torch.roll(one, 1, 3)[..., 8:-8], other[..., 8:-8], atol=1e-5)


def test_without_a_prior_reconstructions_are_enough(home, model, images, options):
    generator = load_run(home / "generator")
    result = train_decoder(short_preset(), generator, images, home / "bare", **options)
    assert result.steps == 10 and not (home / "bare" / "samples.safetensors").exists()
    assert load_run(home / "bare").prior is None


def test_micro_batches(home, model, images, options):
    """Samples and noise are those of the whole batch; of which images slopes are penalised is not,
    so they are left out here.
    """
    found = {}
    plan = DecoderPlan(samples=16, shift=1, penalty=0.0)
    for pieces in (1, 2):
        preset = replace(short_preset(steps=3, accumulate=pieces), decoder=plan)
        result = train_decoder(preset, model, images, home / f"divided{pieces}", **options)
        assert result.steps == 3 and result.record.images == 24
        found[pieces] = result.learner.state_dict()
    moved = [(found[1][k] - v).abs().max() for k, v in found[2].items() if v.is_floating_point()]
    assert max(moved) < 1e-4


def test_patience_is_refused(model, images, options, home):
    with pytest.raises(UserInputError, match="patience is 10, but a sharp decoder has no"):
        preset = short_preset(patience=10, evaluate_every=5, log_every=5)
        train_decoder(preset, model, images, home / "patient", **options)
    assert not (home / "patient").exists()


def test_without_held_out_images_a_grid_shows_training_ones(home, model, images, options):
    generator = load_run(home / "generator")
    config = replace(generator.config, training=())
    bare = Pipeline(config, generator.generator, None, generator.encoder)
    preset = short_preset(validation=0, sample_every=0.001)
    folder = home / "nothing-held-out"
    assert train_decoder(preset, bare, images, folder, **options).steps == 10
    assert list((folder / "samples").glob("*.png"))


def test_squares_that_the_discriminator_cannot_see(home, model, images, options):
    for square, side in ((3, 12), (2, 8)):
        preset = replace(short_preset(), decoder=DecoderPlan(square=square, samples=0))
        with pytest.raises(UserInputError, match=f"is {square}: squares of {side} pixels"):
            train_decoder(preset, model, images, home / "odd", **options)


def test_a_model_without_an_encoder(home, images, options):
    generator, _, prior = tiny_modules()
    bare = Pipeline(tiny_config(), generator, prior)
    with pytest.raises(UserInputError, match="no encoder"):
        train_decoder(short_preset(), bare, images, home / "none", **options)
    assert not (home / "none").exists()


GOOD = {"logit_real": 1.0, "logit_fake": -1.0, "penalty": 3.0, "penalty_fake": 3.0, "pixels": 0.1}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"pixels": 0.3}, "reconstructions are off by 0.3"),
        ({"pixels": math.nan}, "reconstructions are off by nan"),
        ({"logit_real": 40.0}, "discriminator has run away"),
        ({"logit_fake": math.nan}, "discriminator has run away"),
        ({"penalty": 1e9}, "discriminator has run away"),
        ({"penalty_fake": 1e9}, "discriminator has run away"),
    ],
)
def test_what_goes_wrong_is_stopped(change, said):
    watch = Watch(0.1)
    watch(GOOD)
    with pytest.raises(TrainingDivergedError, match=said):
        watch(GOOD | change)


def test_errors_are_compared_with_the_least_so_far():
    watch = Watch(0.5)  # of a decoder that begins without any images
    for error in (0.7, 0.3, 0.1, 0.15):
        watch(GOOD | {"pixels": error})
    with pytest.raises(TrainingDivergedError, match="off by 0.25, and have been by 0.1"):
        watch(GOOD | {"pixels": 0.25})


@pytest.mark.parametrize(
    "stage, same",
    [
        (StageConfig(resolution=8, width=8, cells=1), True),
        (StageConfig(resolution=8, width=8, cells=3), True),
        (StageConfig(resolution=8, width=13, cells=1), True),
        (StageConfig(resolution=8, width=12, cells=2), True),
        (StageConfig(resolution=8, width=6, cells=1), False),
    ],
)
def test_a_wider_or_deeper_decoder_begins_with_the_images_of_the_narrow_one(model, stage, same):
    preset = replace(short_preset(), decoder=DecoderPlan(stages=(stage,)))
    torch.manual_seed(0)
    config = with_sharp_decoder(model, preset).generator
    learner = new_learner(config, model.generator, preset.decoder)
    h = model.generator.transform(model(4, output_type="torch").latents).features
    drawn, before = learner.decoder(h), model.generator.decode(h)
    assert torch.allclose(drawn, before, atol=1e-5) == same
    drawn.square().sum().backward()
    # What begins with no say in the image learns to have one.
    slopes = {name: p.grad for name, p in learner.decoder.named_parameters()}
    ends = [g[:6] for name, g in slopes.items() if name.endswith("expand.weight")]
    assert all(g.abs().sum((1, 2, 3)).min() > 0 for g in ends)
    assert slopes["head.weight"].abs().sum((0, 2, 3)).min() > 0


def test_a_line_of_skipped_steps_is_nothing_to_watch():
    Watch(0.1)({})


def test_a_run_that_diverges_keeps_its_last_good_weights(home, model, images, options):
    preset = replace(
        short_preset(steps=40, learning_rate=10.0, gradient_clip=1e9),
        decoder=DecoderPlan(samples=0),
    )
    with pytest.raises(TrainingDivergedError, match="last good checkpoint is kept"):
        train_decoder(preset, model, images, home / "wild", **options)
    kept = latest_checkpoint(home / "wild")
    assert all(bool(torch.isfinite(v).all()) for v in load_file(kept / "ema.safetensors").values())
    lines = (home / "wild" / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert int(kept.name.split("-")[1]) <= max(steps, default=0)
    assert load_run(home / "wild").generator.decoders[0] == "sharp"
