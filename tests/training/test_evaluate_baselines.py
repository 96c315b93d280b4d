"""Baselines share the generator, the reference and the seeds, and the latent DDPM is one.

A sampler that is wrong by a coefficient would make the baseline lose, which is what one hopes for.
"""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import tiny_config, tiny_modules, tiny_pipeline
from toy import draw_images, short_preset

from hebm_sample import Pipeline
from hebm_sample.cli.evaluation.baseline import _own_preset, baseline
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.evaluation import baselines
from hebm_sample.evaluation.baselines import (
    JOINT_CHAIN,
    joint_ebm,
    run_baselines,
)
from hebm_sample.evaluation.distances import feature_spaces, make_context
from hebm_sample.evaluation.latent_ddpm import (
    HIGHEST,
    LatentDenoiser,
    _coefficients,
    latents_digest,
    load_ddpm,
    matching_width,
    read_ddpm,
    sample_ddpm,
    save_ddpm,
    train_ddpm,
)
from hebm_sample.evaluation.report.baselines import show_baselines, who_wins
from hebm_sample.evaluation.report.page import to_markdown
from hebm_sample.latents import flatten
from hebm_sample.metrics.quality import measure_quality
from hebm_sample.presets.models import find_preset
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.training.checkpoint import latest_checkpoint, load_part
from hebm_sample.training.train import train_prior

SHAPES = ((16, 4, 4), (4, 8, 8), (2, 16, 16))


def streams(count, shapes=SHAPES):
    return NoiseStreams(range(count), shapes)


class TestDenoiser:
    def test_an_untrained_one_is_the_standard_normal(self):
        net = LatentDenoiser(SHAPES, 16, 1)
        u, sigma = streams(3).normal(), torch.tensor([0.2, 0.5, 0.9])
        for found, group in zip(net(u, sigma), u, strict=True):
            torch.testing.assert_close(found, sigma[:, None, None, None] * group)

    def test_groups_come_back_from_the_grid(self):
        net = LatentDenoiser(SHAPES, 16, 1)
        u = streams(2).normal()
        for found, group in zip(net._scatter(net._gather(u)), u, strict=True):
            torch.testing.assert_close(found, group)

    def test_width_matches_the_energies(self):
        for wanted in (3e5, 2e6):
            width = matching_width(SHAPES, int(wanted))
            count = sum(p.numel() for p in LatentDenoiser(SHAPES, width).parameters())
            assert count == pytest.approx(wanted, rel=0.1)

    def test_file_round_trip(self, tmp_path):
        net = LatentDenoiser(SHAPES, 16, 1, sigma_min=0.05)
        torch.nn.init.normal_(net.head.weight)
        save_ddpm(net, tmp_path / "ddpm.safetensors")
        again, u, sigma = load_ddpm(tmp_path), streams(2).normal(), torch.tensor([0.3, 0.8])
        assert again.settings() == net.settings()
        assert all(torch.equal(a, b) for a, b in zip(again(u, sigma), net(u, sigma), strict=True))
        (tmp_path / "ddpm.safetensors").write_bytes(b"x" * 99)
        with pytest.raises(WeightsError, match="no usable latent DDPM"):
            load_ddpm(tmp_path)
        with pytest.raises(UserInputError, match="hebm-train baseline"):
            load_ddpm(tmp_path / "absent")


class TestSampler:
    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("steps", [1, 4, 48])
    def test_every_step_leaves_the_standard_normal(self, steps, eta):
        """An untrained net is right for N(0, I); shrinking would make the baseline lose."""
        net = LatentDenoiser(SHAPES, 16, 1, sigma_min=0.1)
        u = flatten(sample_ddpm(net, streams(40), steps=steps, eta=eta))
        assert u.square().mean().item() == pytest.approx(1, abs=4 * math.sqrt(2 / u.numel()))
        if eta == 0:  # and the deterministic ones every single u
            torch.testing.assert_close(u, flatten(streams(40).normal()))

    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("variance", [0.25, 2.0])
    def test_many_steps_end_at_the_variance_of_a_known_target(self, eta, variance):
        """For data N(0, v) the exact eps is s u / (a^2 v + s^2)."""
        net = LatentDenoiser(((1, 8, 8),), 16, 1, sigma_min=0.02)

        def exact(u, sigma):
            s = sigma[:, None, None, None]
            return tuple(s * g / ((1 - s**2) * variance + s**2) for g in u)

        net.forward = exact
        counted = []
        u = sample_ddpm(net, streams(100, net.shapes), steps=200, eta=eta, progress=counted.append)
        assert sum(counted) == 200
        error = variance * math.sqrt(2 / 6400)
        # The start at s = 0.99 takes N(0, 1) for N(0, s^2 + v (1 - s^2)), the flow remembers it.
        start = 1 / (HIGHEST**2 + variance * (1 - HIGHEST**2)) if eta == 0 else 1.0
        assert flatten(u).var().item() == pytest.approx(
            variance * start, abs=4 * error + 0.02 * variance
        )

    def test_ancestral_steps_have_the_law_of_the_reverse_chain(self):
        """For N(0, I) a step down is u <- rho u + sqrt(1 - rho^2) eps, rho = a(s) / a(r)."""
        slope, spread = _coefficients(0.8, 0.3, 1.0)
        rho = math.sqrt((1 - 0.8**2) / (1 - 0.3**2))
        assert spread == pytest.approx(math.sqrt(1 - rho**2))
        # The posterior mean of u_r of a point mass x: (a(r) (1 - rho^2) x + rho r^2 u) / s^2.
        x, u = 0.7, -0.4
        eps = (u - 0.6 * x) / 0.8
        mean = (math.sqrt(0.91) * (1 - rho**2) * x + rho * 0.09 * u) / 0.64
        assert rho * u - slope * (eps - 0.8 * u) == pytest.approx(mean)

    def test_seeds_are_images(self):
        net = LatentDenoiser(SHAPES, 16, 1)
        torch.nn.init.normal_(net.head.weight, std=0.1)
        many = sample_ddpm(net, streams(3), steps=4)
        one = sample_ddpm(net, NoiseStreams([2], SHAPES), steps=4)
        torch.testing.assert_close(flatten(many)[2:], flatten(one), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    home = tmp_path_factory.mktemp("baselines")
    folder = draw_images(home / "images", count=80)
    return load_images(folder, size=16, cache_dir=home / "cache", progress=False)


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    pipe, preset = tiny_pipeline(), short_preset(validation=40)
    train_ddpm(preset, pipe, sets, folder / "ddpm", show_progress=False)
    joint = joint_ebm(preset)
    train_prior(joint, pipe, sets, folder / "joint", objective="mle", show_progress=False)
    return folder


@pytest.mark.slow
def test_a_joint_model_has_no_diffusion(trained):
    joint = Pipeline.from_pretrained(trained / "joint/model")
    assert joint.config.prior is not None and joint.config.prior.num_levels == 1
    assert joint.config.sampling.start == "u_next" and not joint.config.sampling.denoise
    with torch.no_grad():
        assert any(p.abs().sum() > 0 for p in joint.prior.nets[0].out.parameters())
    (u, *_) = joint(seeds=[0, 1]).latents
    assert torch.isfinite(u).all()


@pytest.mark.slow
def test_all_are_measured_alike(trained, sets, tmp_path, monkeypatch):
    pipe = tiny_pipeline()
    options = {"num_images": 20, "batch_size": 20, "progress": False, "steps": 6}
    context = make_context(pipe, *sets.split(40), folder=tmp_path, **options)
    spaces = feature_spaces(sets.split(40)[0], progress=False)
    folders = {"latent DDPM": trained / "ddpm", "T = 1": trained / "joint/model"}
    found = run_baselines(context, spaces, folders)
    (rows,) = found["spaces"].values()
    assert list(rows) == [
        "reconstructions",
        "N(0, I)",
        "energy-based prior, 6 gradients",
        "latent DDPM, 10 deterministic steps",
        "latent DDPM, 48 deterministic steps",
        "latent DDPM, 48 ancestral steps",
        "latent DDPM, 100 ancestral steps",
        f"T = 1, {JOINT_CHAIN} gradients",
    ]
    assert rows["N(0, I)"]["gap_closed"] in (0, pytest.approx(0)) or math.isnan(
        rows["N(0, I)"]["gap_closed"]
    )
    assert all(row["num_images"] == 20 for row in rows.values())
    ddpm = rows["latent DDPM, 48 ancestral steps"]
    assert ddpm["seconds_per_image"] > 0 and ddpm["training_seconds"] > 0
    assert ddpm["training_steps"] == rows[list(rows)[-1]]["training_steps"] == 10
    assert ddpm["parameters"] == sum(p.numel() for p in load_ddpm(trained / "ddpm").parameters())
    (seeds,) = found["seeds"].values()
    assert all(len(x) == 5 for x in seeds.values())
    (differences,) = found["differences"].values()
    above = rows["N(0, I)"]["frechet"] - rows["energy-based prior, 6 gradients"]["frechet"]
    assert differences["N(0, I)"]["value"] == pytest.approx(above)
    assert differences["N(0, I)"]["error"] > 0 and "jackknife" in to_markdown(
        show_baselines(found)
    )
    assert differences.keys() == rows.keys() - {"reconstructions", list(rows)[2]}
    assert "latent DDPM, 10 deterministic" in to_markdown(show_baselines(found))
    monkeypatch.setattr(baselines, "sample_ddpm", lambda *_, **__: pytest.fail("drawn again"))
    again = make_context(pipe, *sets.split(40), folder=tmp_path, **options)
    assert run_baselines(again, spaces, folders) == found  # seconds too


@pytest.mark.slow
def test_another_generator_is_refused(trained, sets, tmp_path):
    generator, encoder, prior = tiny_modules(seed=5)
    Pipeline(tiny_config(), generator, prior, encoder).save_pretrained(tmp_path / "other")
    context = make_context(
        tiny_pipeline(), *sets.split(40), num_images=20, batch_size=20, progress=False, steps=6
    )
    spaces = feature_spaces(sets.split(40)[0], progress=False)
    with pytest.raises(UserInputError, match="other has another generator"):
        run_baselines(context, spaces, {"other": tmp_path / "other"})


def context_of(pipe, sets, held_out=40):
    options = {"num_images": 20, "batch_size": 20, "progress": False, "steps": 6}
    return make_context(pipe, *sets.split(held_out), **options)


@pytest.fixture(scope="module")
def short_run(sets, tmp_path_factory):
    """A latent DDPM of one step, and its best weights, with 40 rows held out."""
    folder = tmp_path_factory.mktemp("short")
    preset = short_preset(steps=2, validation=40, evaluate_every=1, log_every=1)
    result = train_ddpm(preset, tiny_pipeline(), sets, folder / "ddpm", show_progress=False)
    return result, folder


def test_the_best_weights_on_held_out_images_are_kept(short_run):
    """As of the energies, which it is compared with."""
    result, folder = short_run
    assert result.best is not None and math.isfinite(result.best["heldout_loss"])
    record = read_ddpm(folder / "ddpm").record
    assert (record.kept, record.steps) == (result.best["step"], 2)
    for name, value in load_ddpm(folder / "ddpm").state_dict().items():
        torch.testing.assert_close(value, result.learner.state_dict()[name].cpu())


def test_a_baseline_of_other_rows_is_refused(sets, short_run, tmp_path):
    """Rows that it was trained on are not held out of it, whatever the model's own record says."""
    _, folder = short_run
    pipe = tiny_pipeline()
    known = [read_ddpm(folder / "ddpm").record]
    assert baselines._check_rows("d", known, context_of(pipe, sets), generator=False) is None
    assert "its generator" in (baselines._check_rows("d", known, context_of(pipe, sets)) or "")
    with pytest.raises(UserInputError, match="baseline d's prior was trained with other rows"):
        baselines._samples_of(context_of(pipe, sets, 44), {"d": folder / "ddpm"})
    record = replace(read_ddpm(folder / "ddpm").record, part="generator")
    told = Pipeline(
        replace(pipe.config, training=(record,)), pipe.generator, pipe.prior, pipe.encoder
    )
    told.save_pretrained(tmp_path / "model")
    with pytest.raises(UserInputError, match="baseline m's generator was trained with other rows"):
        baselines._samples_of(context_of(pipe, sets, 44), {"m": tmp_path / "model"})


@pytest.mark.parametrize("part", ["generator", "encoder"])
def test_a_baseline_of_another_generator_is_refused(sets, short_run, tmp_path, part):
    """Of the same shapes: in other latents it can only lose."""
    _, folder = short_run
    pipe, other = tiny_pipeline(), tiny_pipeline()
    with torch.no_grad():
        for value in getattr(other, part).parameters():
            value.neg_()
    other.save_pretrained(tmp_path / "model")
    for place in (folder / "ddpm", tmp_path / "model"):
        context = context_of(other if place == folder / "ddpm" else pipe, sets)
        with pytest.raises(UserInputError, match="another generator or encoder"):
            baselines._samples_of(context, {"d": place})


def test_what_u_means_does_not_change_with_its_file_or_its_image_decoder(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "m")
    digest = latents_digest(pipe)
    assert digest == latents_digest(Pipeline.from_pretrained(tmp_path / "m", device="cpu"))
    with torch.no_grad():
        pipe.generator.decoder.head.bias.add_(1.0)
        assert latents_digest(pipe) == digest
        pipe.generator.constant.neg_()
    assert latents_digest(pipe) != digest


def test_a_file_that_names_no_generator_is_proved_by_its_run_or_refused(sets, short_run, tmp_path):
    """As earlier releases wrote it: without a word, and with the last step's weights."""
    _, folder = short_run
    pipe, run = tiny_pipeline(), shutil.copytree(folder / "ddpm", tmp_path / "run")
    net = load_ddpm(run)
    load_part(latest_checkpoint(run), "ema", "module.", net)
    save_ddpm(net, run / "ddpm.safetensors")
    told = baselines._checked_ddpm("d", run, context_of(pipe, sets))
    assert told.latents == latents_digest(pipe) and told.record.held_out == "last:40"
    with torch.no_grad():
        net.head.bias.add_(1.0)
    save_ddpm(net, run / "ddpm.safetensors")  # of another run
    with pytest.raises(UserInputError, match="train it again"):
        baselines._samples_of(context_of(pipe, sets), {"d": run})


def test_who_wins_is_said_with_its_error():
    rows = {n: {"frechet": f} for n, f in (("reconstructions", 1.0), ("ours", 3.0), ("d", 2.0))}
    for value, said in (
        (-1.0, "d wins, 1.00 ± 0.10 below"),
        (0.15, "are level"),
        (1.0, "the energy-based prior wins; the next, d, is 1.00 ± 0.10 above"),
    ):
        assert said in who_wins(rows, {"d": {"value": value, "error": 0.1}}, "ours")
    assert who_wins(rows, {}, "ours") == "nearest to the reference is d."
    # The error of five numbers is itself uncertain.
    assert "are level" in who_wins(rows, {"d": {"value": -0.25, "error": 0.1}}, "ours", 2.78)


def test_the_command(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
    tiny_pipeline().save_pretrained(tmp_path / "model")
    draw_images(tmp_path / "images", count=30)
    names = {"--generator": "model", "--data": "images", "--out": "run"}
    where = [x for name, path in names.items() for x in (name, str(tmp_path / path))]
    options = [*where, "--quiet", "--device", "cpu", "--max-steps", "2"]
    result = CliRunner().invoke(baseline, ["ddpm", *options])
    assert result.exit_code == 0, result.output
    assert "ddpm: 2 steps" in result.output
    assert load_ddpm(tmp_path / "run").shapes == tiny_config().generator.latent_shapes
    result = CliRunner().invoke(baseline, ["ddpm", *options, "--time-budget", "1s"])
    assert result.exit_code == 2 and "leave one of them out" in result.stderr


@pytest.mark.parametrize("name", ["celebahq", "celebahq-64", "celeba64", "cifar10"])
def test_the_settings_are_those_of_the_models_own_energies(name):
    """Of a grown model those of the size that its energies were trained at."""
    model = Pipeline.from_pretrained(name, device="cpu")
    own = find_preset(_own_preset(model))
    assert own.name == ("celebahq-64" if name.startswith("celebahq") else name)
    for record in model.config.training:
        if record.part == "prior":
            assert record.steps == own.prior_settings.steps


def test_neighbours_are_of_random_rows_of_the_larger_set():
    """Its first rows may be of one class."""
    random = np.random.default_rng(0)
    near, far = random.normal(size=(30, 2)), random.normal(100.0, 1.0, size=(30, 2))
    found = measure_quality(np.concatenate([near, far])[::2], np.concatenate([near, far]))
    assert found.neighbours.precision.value > 0.9
    assert 0.2 < measure_quality(near, np.concatenate([far, near])).neighbours.recall.value < 0.8
