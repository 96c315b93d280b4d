"""A dry run's figures are counts, not guesses, and it leaves nothing behind.

Without this a run is planned on FLOPs that miss the backward pass, on a memory that forgets the
optimiser, or on a time that was never measured.
"""

import math
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from nvae_files import NAMES, write_checkpoint
from tiny import tiny_modules, tiny_pipeline
from torch import nn
from toy import draw_images, labelled_preset, short_preset

from hebm_sample.cli.train import main
from hebm_sample.config import StageConfig
from hebm_sample.errors import UserInputError
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.presets.models import find_preset
from hebm_sample.training.costs.dry_run import Costs, Estimate, dry_run, trained_rows
from hebm_sample.training.costs.flops import Meter
from hebm_sample.training.decoding.train import new_learner
from hebm_sample.training.energy import MleObjective

CPU = torch.device("cpu")


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


class TestMeter:
    def test_flops_of_a_convolution_and_its_gradient(self):
        """2 MACs forward; the gradients in weights and input cost the same again, each."""
        conv, x = nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 8, 8, requires_grad=True)
        forward = 2 * 2 * 64 * 5 * 3 * 9
        with Meter(conv) as meter:
            y = conv(x)
            assert meter.flops == forward
            y.sum().backward()
        assert meter.flops == 3 * forward

    def test_double_backward_is_counted(self):
        """Score matching differentiates through a gradient inside its forward pass."""
        linear, x = nn.Linear(6, 1, bias=False), torch.randn(4, 6, requires_grad=True)
        product = 2 * 4 * 6
        with Meter(linear) as meter:
            y = linear(x).square().sum()
            (gradient,) = torch.autograd.grad(y, x, create_graph=True)
            gradient.square().sum().backward()
        # Forward; gradient in x; then backward through both products.
        assert meter.flops >= 4 * product

    def test_peak_is_what_is_alive_at_once(self):
        x = torch.zeros(1000)
        with Meter(nn.Identity()) as meter:
            for _ in range(5):  # the sums die one after another
                y = x + 1
            z = y * 2
        assert (len(z), meter.peak_bytes) == (1000, 2 * 4000)
        with Meter(nn.Identity()) as meter:
            kept = [x + i for i in range(5)]
        assert (len(kept), meter.peak_bytes) == (5, 5 * 4000)

    def test_weights_and_gradients_are_not_activations(self):
        net = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300))
        net(torch.randn(1, 300)).sum().backward()
        with Meter(net) as meter:
            net(torch.randn(1, 300)).sum().backward()
        # One new weight gradient lives for a moment before it is added to the old one.
        assert 300 * 300 * 4 <= meter.peak_bytes < 2 * 300 * 300 * 4
        with Meter(net) as meter, torch.no_grad():
            net(torch.randn(1, 300))
        assert meter.peak_bytes < 5 * 300 * 4

    def test_views_are_counted_once(self):
        with Meter(nn.Identity()) as meter:
            x = torch.ones(10, 10)
            views = [x[0], x.t(), x.reshape(100)]
        assert meter.peak_bytes == 400 and len(views) == 3


class TestEstimate:
    def test_counts_of_the_tiny_preset(self):
        preset = find_preset("tiny")
        generator, encoder, prior = tiny_modules()
        counts = [sum(p.numel() for p in m.parameters()) for m in (generator, encoder, prior)]
        for kind in ("generator", "prior"):
            found = dry_run(kind, preset, CPU)
            assert list(found.parameters.values()) == counts
            learned = counts[2] if kind == "prior" else counts[0] + counts[1]
            assert (found.learned, found.frozen) == (learned, sum(counts[:2]) * (kind == "prior"))
            assert found.state_bytes == 4 * (5 * found.learned + found.frozen)
            assert found.costs.seconds > 0 and found.costs.update > 0
            assert found.costs.activations > 0

    def test_everything_is_in_proportion(self):
        costs = Costs(flops=40.0, activations=7.0, seconds=3.0, update=0.5)
        options = {"batch": 8, "steps": 50, "costs": costs, "timed_batch": 2, "device": ""}
        config = find_preset("tiny").generator
        found = Estimate("prior", "x", "", config, {}, learned=100, frozen=10, **options)
        assert (found.step_seconds, found.state_bytes) == (12.5, 2040)
        assert any("2 k in all" in line for line in found.lines())  # FLOPs

    def test_activations_and_flops_are_of_the_whole_batch(self):
        """In proportion to it; counted on images that are never drawn on the device."""
        one, four = (dry_run("generator", short_preset(batch_size=b), CPU) for b in (1, 4))
        assert four.costs.flops == 4 * one.costs.flops
        assert 3 * one.costs.activations < four.costs.activations <= 4 * one.costs.activations

    def test_a_chains_flops_are_on_a_line(self):
        """Measured at K = 1 and 3 and followed to K: exact, as the steps of a chain are equal."""
        preset = replace(short_preset(batch_size=2), objective="mle", chain_steps=6)
        generator, encoder, prior = tiny_modules()
        objective = MleObjective(generator, encoder, prior, chain_steps=6)
        with Meter(objective) as meter:
            objective(torch.zeros(2, 3, 16, 16), 0.0)[0].backward()
        assert dry_run("prior", preset, CPU).costs.flops == meter.flops > 0

    def test_symbols_and_another_generator(self):
        plain, labelled = dry_run("prior", short_preset(), CPU), labelled_preset()
        found = dry_run("prior", labelled, CPU, model=tiny_pipeline())
        assert found.learned > plain.learned and found.costs.flops > plain.costs.flops

    def test_a_generator_that_grows_learns_its_image_decoder(self):
        preset, model = short_preset(), tiny_pipeline()
        small = preset.generator
        stages = (*small.decoder, StageConfig(resolution=16, width=8))
        grown = replace(small, image_size=32, decoder=stages, encoder_size=16)
        found = dry_run("generator", replace(preset, generator=grown), CPU, model=model)
        parts = HierarchicalGenerator(grown)
        learned = [*parts.decoder.parameters(), *parts.likelihood.parameters()]
        assert found.learned == sum(p.numel() for p in learned)
        assert found.learned + found.frozen == sum(list(found.parameters.values())[:2])

    @pytest.mark.parametrize("with_model", [False, True])
    def test_the_decoders_run(self, with_model):
        preset = short_preset(batch_size=4)
        model = tiny_pipeline() if with_model else None
        found = dry_run("decoder", preset, CPU, model=model)
        twice = dry_run("decoder", short_preset(batch_size=8), CPU, model=model)
        assert twice.costs.flops == 2 * found.costs.flops > 0
        generator, encoder, _ = tiny_modules()
        config = replace(preset.generator, sharp_decoder=preset.generator.decoder)
        learner = new_learner(config, generator, preset.decoder)
        assert found.learned == sum(p.numel() for p in learner.parameters())
        assert found.costs.timed_batch == 4 and "reconstructions and samples" in found.objective

    def test_the_runs_own_batch_is_timed_where_a_step_is_short(self):
        for batch, accumulate in ((5, 1), (6, 3)):
            preset = short_preset(batch_size=batch, accumulate=accumulate)
            assert dry_run("generator", preset, CPU).costs.timed_batch == batch

    def test_maps_on_the_disk_are_counted(self):
        """What a run writes before its first step, which at the paper's size is no small thing."""
        found = dry_run("prior", short_preset(validation=10), CPU, images=50)
        shapes = tiny_modules()[1].map_shapes.values()
        assert found.encoded == 2 * 2 * sum(math.prod(shape) for shape in shapes) == 1280
        (line,) = [line for line in found.lines() if line.startswith("disk")]
        assert line.endswith("MiB in the run's folder until it ends")
        paper = replace(found, encoded=2**22, images=27_010)
        (line,) = [line for line in paper.lines() if line.startswith("disk")]
        assert "105.47 GiB are more than 64.00 GiB, so each step makes them" in line
        assert dry_run("prior", short_preset(zoom=0.75), CPU).encoded == 0

    def test_rows_that_are_trained_on(self):
        rows = [(100, 30), (100, 0), (100, None), (10**6, None), (0, 5)]
        assert [trained_rows(*row) for row in rows] == [70, 100, 90, 996_000, 0]

    def test_score_of_the_releases_energies_is_refused(self):
        with pytest.raises(UserInputError, match="'release', which objective 'score' cannot"):
            dry_run("prior", find_preset("lsun-church"), CPU, objective="score")

    def test_a_time_budget_becomes_steps(self):
        found = dry_run("generator", short_preset(steps=None, time_budget=1000.0), CPU)
        assert found.steps == pytest.approx(1000 / found.step_seconds, abs=1)


class TestCommand:
    def test_generator(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
        result = invoke("generator", "--preset", "tiny", "--dry-run", "--device", "cpu")
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0] == "tiny, generator: 16x16 images, 3 groups, 80 latent dimensions"
        assert lines[2].split() == ["2x2", "1", "4", "16", "16"]
        assert lines[3].split() == ["4x4", "2", "2", "16", "64"]
        words = [line.split()[0] for line in lines[4:]]
        assert words == [
            *("objective", "parameters", "steps", "FLOPs", "memory", "measured", "time", "Time")
        ]
        assert "60 of 8 images" in result.stdout and "nothing was written" in lines[-1]
        assert result.stderr.startswith("measuring")
        assert not list(tmp_path.iterdir())

    def test_prior_with_options(self, tmp_path):
        options = ("--objective", "mle", "--max-steps", 7, "--batch-size", 3, "--quiet")
        result = invoke("prior", "--preset", "tiny", "--dry-run", "--device", "cpu", *options)
        assert result.exit_code == 0 and result.stderr == "", result.output
        assert "mle, T = 3, chains of K = 20 steps" in result.stdout
        assert "7 of 3 images" in result.stdout

    def test_decoder(self):
        options = ("--preset", "tiny", "--dry-run", "--device", "cpu", "--quiet")
        result = invoke("decoder", *options)
        assert result.exit_code == 0 and result.stderr == "", result.output
        assert result.stdout.startswith("tiny, decoder: 16x16 images")

    def test_models_are_refused_as_a_run_would(self, tmp_path):
        """Costs of a run that does not start help nobody."""
        tiny_pipeline().save_pretrained(tmp_path / "model")
        options = ("--preset", "cifar10", "--dry-run", "--device", "cpu", "--quiet")
        result = invoke("generator", *options, "--init", tmp_path / "model")
        assert result.exit_code == 2 and "has another architecture than preset" in result.stderr
        assert result.stderr.count("\n") == 1 and result.stdout == ""

    def test_data_are_counted_but_not_decoded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
        draw_images(tmp_path / "images")
        command = ("generator", "--preset", "tiny", "--dry-run", "--device", "cpu", "--quiet")
        result = invoke(*command, "--data", tmp_path / "images")
        assert "12.0 times through 40 images" in result.stdout  # 60 steps of 8
        assert not (tmp_path / "cache").exists()
        assert result.stderr == ""
        (tmp_path / "images/a.heic").touch()
        result = invoke(*command[:-1], "--data", tmp_path / "images")
        line = f"{tmp_path / 'images'}: 40 images; left out: 1 .heic"
        assert result.stderr.splitlines()[0] == line
        result = invoke(*command, "--data", tmp_path / "absent")
        assert result.exit_code == 2 and "no images at" in result.stderr

    def test_a_real_run_needs_what_a_dry_one_does_not(self):
        for command, missing in (("generator", "--data"), ("prior", "--generator")):
            result = invoke(command, "--preset", "tiny")
            assert result.exit_code == 2 and f"Missing option '{missing}'" in result.stderr
            assert result.stderr.count("\n") == 1


def test_the_papers_objective_is_its_presets_default():
    """What `--objective` was not said of."""
    assert find_preset("cifar10-paper").objective == "mle"
    assert find_preset("cifar10").objective == find_preset("tiny").objective == "score"
    assert math.isclose(find_preset("cifar10-paper").prior.step_size_0, 3e-5)


def test_what_the_run_would_refuse_is_refused(tmp_path):
    write_checkpoint(NAMES[0], tmp_path / "nvae.pt")
    out = tmp_path / "nvae"
    assert invoke("import-nvae", tmp_path / "nvae.pt", "--out", out).exit_code == 0
    dry = ("--preset", "tiny", "--dry-run", "--device", "cpu", "--quiet")
    result = invoke("generator", *dry, "--init", out)
    assert result.exit_code == 2 and "has another architecture" in result.stderr
    result = invoke("decoder", *dry, "--generator", out)
    assert result.exit_code == 2 and "is an imported generator" in result.stderr
    tiny_pipeline().save_pretrained(tmp_path / "tiny")
    other = ("--generator", tmp_path / "tiny", "--init", tmp_path / "tiny")
    result = invoke("prior", *dry, *other, "--set", "prior.width=40")
    assert result.exit_code == 2 and "has other energies than preset tiny" in result.stderr
    # What can be said without a model is said.
    patience = ("--set", "settings.evaluate_every=10", "--set", "settings.patience=20")
    result = invoke("decoder", *dry, *patience)
    assert result.exit_code == 2 and "a sharp decoder has no held-out figure" in result.stderr
    result = invoke("prior", *dry, *patience, "--objective", "mle")
    assert result.exit_code == 2 and "but objective 'mle' has no" in result.stderr
    result = invoke("generator", "--preset", "images256", *dry[2:])
    assert result.exit_code == 2 and "give that model with --init" in result.stderr
    draw_images(tmp_path / "images", count=20)
    result = invoke("generator", *dry, "--data", tmp_path / "images", "--validation", 20)
    assert result.exit_code == 2 and "20 images are to be held out" in result.stderr
