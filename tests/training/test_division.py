"""A batch that is divided, over processes or into micro-batches, is learned from as a whole.

Else a run on eight GPUs, or on one that is too small for the batch, is another than the one that
was asked for, and nobody sees it: it trains as well, on other noise.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from nvae_files import NAMES, write_checkpoint
from safetensors.torch import load_file
from tiny import symbolic_config, tiny_config, tiny_images, tiny_modules, tiny_pipeline
from toy import by_two, draw_images, short_preset

import hebm_sample
from hebm_sample.cli.train import main
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.generator.encoder import Encoder
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.checkpoint import latest_checkpoint, read_state
from hebm_sample.training.costs.dry_run import dry_run
from hebm_sample.training.costs.flops import Meter
from hebm_sample.training.decoding.train import train_decoder
from hebm_sample.training.devices import (
    agreed,
    by_first,
    checkpointing,
    computing,
    said_by_first,
)
from hebm_sample.training.elbo import GeneratorObjective
from hebm_sample.training.energy import MleObjective, ScoreObjective, stratified
from hebm_sample.training.heldout import heldout_figures
from hebm_sample.training.imports.nvae_checkpoint import load_nvae
from hebm_sample.training.log import read_log
from hebm_sample.training.optim import Part, Rows, draw, train_step
from hebm_sample.training.train import train_generator, train_prior
from hebm_sample.training.trainer import make_accelerator

CPU = torch.device("cpu")
BATCH = 8
# Gradients are of order 1; what summing in another order changes.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def stream(seed=3):
    return torch.Generator().manual_seed(seed)


def objective(kind, config=None):
    config = config or tiny_config()
    generator, encoder, energy = tiny_modules(config)
    if kind == "generator":
        return GeneratorObjective(generator, encoder)
    built = {"score": ScoreObjective, "mle": MleObjective}[kind]
    return built(generator, encoder, energy, **({"chain_steps": 3} if kind == "mle" else {}))


def gradients(built, parts, fraction=1.0, accumulate=1, **more):
    """Of a step over these parts, with its statistics; nothing is learned."""
    learned = [p for p in built.parameters() if p.requires_grad]
    still = torch.optim.SGD(learned, lr=0.0)
    _, stats = train_step(
        built, parts, fraction, still, learned, 1e9, accumulate=accumulate, **more
    )
    return [p.grad.clone() for p in learned], stats


def whole(config=None, labels=None, rows=True):
    images = tiny_images(config or tiny_config(), BATCH)
    return Part(images, labels, Rows(stream(), 0, BATCH) if rows else stream())


def assert_close(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


# ---- draws


@pytest.mark.parametrize("how", [torch.randn, torch.rand])
def test_rows_of_a_stream_are_the_wholes(how):
    wanted = how(6, 2, 3, generator=stream())
    assert torch.equal(draw(how, (6, 2, 3), stream(), CPU), wanted)
    parts = [draw(how, (2, 2, 3), Rows(stream(), first, 6), CPU) for first in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), wanted)


def test_rows_of_levels_are_the_wholes():
    wanted = stratified(6, CPU, stream())
    parts = [stratified(3, CPU, Rows(stream(), first, 6)) for first in (0, 3)]
    assert torch.equal(torch.cat(parts), wanted)
    assert bool((wanted * 6).floor().eq(torch.arange(6)).all())


def test_a_divided_part_keeps_its_rows():
    maps = {4: torch.arange(8.0), 2: torch.arange(8.0) + 100}
    part = Part(maps, torch.arange(8), Rows(stream(), 8, 16))
    first, second = part.divided(2)
    assert torch.equal(second.images[2], maps[2][4:]) and torch.equal(second.labels, maps[4][4:])
    assert (first.stream[1:], second.stream[1:]) == ((8, 16), (12, 16))
    assert torch.equal(first.stream.generator.get_state(), second.stream.generator.get_state())
    assert list(part.divided(1)) == [part]


# ---- gradients


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("kind", ["generator", "score", "mle"])
def test_micro_batches_have_the_gradient_of_the_batch(kind, count):
    """The generator's too, but for its warm-up, which weighs groups by a micro-batch's own KL."""
    found, stats = gradients(objective(kind), [whole()], accumulate=count)
    wanted, other = gradients(objective(kind), [whole(rows=False)])
    assert max(float(g.abs().max()) for g in wanted) > 1e-3
    assert_close(found, wanted)
    for name, value in other.items():
        torch.testing.assert_close(stats[name], value, rtol=1e-3, atol=1e-5)


def test_micro_batches_see_the_labels_of_their_rows():
    config = symbolic_config()
    labels = torch.stack([torch.arange(BATCH) % 3, torch.arange(BATCH) % 2], dim=1)
    built = objective("score", config)
    found, _ = gradients(built, [whole(config, labels)], accumulate=4)
    wanted, _ = gradients(built, [whole(config, labels, rows=False)])
    assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["score", "mle"])
def test_processes_have_the_gradient_of_the_batch(kind):
    images, built, found = whole().images, objective(kind), []
    for first in (0, 4):
        part = Part(images[first : first + 4], None, Rows(stream(), first, BATCH))
        found.append(gradients(built, [part], accumulate=2)[0])
    wanted, _ = gradients(built, [whole(rows=False)])
    assert_close([(a + b) / 2 for a, b in zip(*found, strict=True)], wanted)


def test_draws_that_are_not_by_row_go_on_from_micro_batch_to_micro_batch():
    seen = []

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, images, fraction, labels, stream):
            seen.append(torch.rand(2, generator=stream))
            return (self.weight * images).mean(), {}

    gradients(Own(), [Part(torch.ones(4, 1), None, stream())], accumulate=2)
    assert torch.equal(torch.cat(seen), torch.rand(4, generator=stream()))


# ---- activation checkpointing and bfloat16


def nvae(tmp_path):
    return load_nvae(write_checkpoint(NAMES[1], tmp_path / "nvae.pt"))


@pytest.mark.parametrize("kind", ["generator", "score", "mle"])
def test_activation_checkpointing_changes_no_number(kind):
    built = objective(kind)
    wanted, _ = gradients(built, [whole()])
    with checkpointing(built, True):
        assert built.generator.checkpointing
        found, _ = gradients(built, [whole()])
    assert not built.generator.checkpointing
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


def test_activation_checkpointing_of_an_nvae(tmp_path):
    generator = nvae(tmp_path).generator
    u = [
        torch.randn(2, *shape, generator=stream(i), requires_grad=True)
        for i, shape in enumerate(generator.latent_shapes)
    ]
    found = []
    for wanted in (False, True):
        with checkpointing(generator, wanted), Meter(generator) as meter:
            features = generator.transform(tuple(u)).features
            found.append([*torch.autograd.grad(features.square().mean(), u), meter.peak_bytes])
    *plain, most = found[0]
    *again, fewer = found[1]
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert fewer < 0.8 * most


@pytest.mark.parametrize("kind", ["generator", "score", "mle"])
def test_bfloat16_is_float32_up_to_its_rounding(kind):
    settings = TrainSettings(steps=1, dtype="bfloat16")
    built = objective(kind)
    found, stats = gradients(built, [whole()], context=computing(built, settings, CPU))
    wanted, other = gradients(objective(kind), [whole()])
    assert all(g.dtype == torch.float32 for g in found)
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (found, wanted))
    assert not torch.equal(a, b)
    assert float(torch.cosine_similarity(a, b, dim=0)) > 0.99
    torch.testing.assert_close(stats["loss"], other["loss"], rtol=0.02, atol=1e-3)


def test_bfloat16_reaches_weights_that_a_chain_has_used_before():
    """Autocast's cache would keep casts from where nothing is differentiated."""
    built = objective("mle")
    context = computing(built, TrainSettings(steps=1, dtype="bfloat16"), CPU)
    found, _ = gradients(built, [whole()], context=context)
    wanted, _ = gradients(built, [whole()])
    zero = [bool((g == 0).all()) for g in wanted]
    assert [bool((g == 0).all()) for g in found] == zero and not all(zero)


# ---- settings


class Told:
    """accelerate's engine, told these."""

    def __init__(self, count=1, precision="no"):
        self.gradient_accumulation_steps, self.mixed_precision = count, precision


def test_what_accelerate_was_told_are_settings():
    settings = TrainSettings(steps=1, batch_size=8)
    assert agreed(settings, Told()) == settings
    told = agreed(settings, Told(4, "bf16"))
    assert (told.accumulate, told.dtype) == (4, "bfloat16")
    assert agreed(replace(settings, accumulate=4), Told(4)).accumulate == 4
    with pytest.raises(UserInputError, match="4 gradient_accumulation_steps.*accumulate is 2"):
        agreed(replace(settings, accumulate=2), Told(4))
    with pytest.raises(UserInputError, match="accumulate is 3, which does not divide batch_size"):
        agreed(settings, Told(3))


def test_what_was_typed_is_not_overruled():
    settings = TrainSettings(steps=1, batch_size=8)
    assert agreed(settings, Told(4, "bf16"), ("batch_size",)).accumulate == 4
    with pytest.raises(UserInputError, match="mixed precision bf16, and dtype is float32; leave"):
        agreed(settings, Told(1, "bf16"), ("dtype",))
    with pytest.raises(UserInputError, match="4 gradient_accumulation_steps.*accumulate is 1"):
        agreed(settings, Told(4), ("accumulate",))
    same = replace(settings, dtype="bfloat16", accumulate=4)
    assert agreed(same, Told(4, "bf16"), ("dtype", "accumulate")) == same


@pytest.mark.parametrize("kind", ["generator", "prior", "decoder"])
@pytest.mark.parametrize(
    ("told", "more", "said"),
    [
        (Told(3), (), "accumulate is 3, which does not divide batch_size"),
        (Told(1, "bf16"), ("--dtype", "float32"), "bf16, and dtype is float32"),
        (Told(1, "bf16"), ("--set", "settings.dtype=float32"), "bf16, and dtype is float32"),
    ],
)
def test_a_disagreement_is_told_before_anything_is_read(
    tmp_path, monkeypatch, kind, told, more, said
):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("hebm_sample.training.trainer.make_accelerator", lambda _: told)
    command = [kind, "--preset", "tiny", "--data", str(tmp_path / "none"), "--quiet", *more]
    base = [] if kind == "generator" else ["--generator", str(tmp_path / "model")]
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner().invoke(main, [*command, *base, *out])
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_be_divided_leaves_no_folder(images, tmp_path):
    """From Python, where no command has looked."""
    engine = Told(3)
    engine.is_main_process, engine.num_processes, engine.device = True, 1, CPU
    how = {"accelerator": engine, "show_progress": False}
    for name, train, models in (
        ("generator", train_generator, ()),
        ("prior", train_prior, (tiny_pipeline(),)),
        ("decoder", train_decoder, (tiny_pipeline(),)),
    ):
        with pytest.raises(UserInputError, match="does not divide batch_size"):
            train(short_preset(batch_size=8), *models, images, tmp_path / name, **how)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["x", "0", "-1", "", "1.5"])
def test_numbers_of_the_launcher_that_are_none_are_refused(monkeypatch, value):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", value)
    with pytest.raises(UserInputError, match="ACCUMULATION_STEPS is .*; set it to a whole number"):
        make_accelerator("cpu")


def test_what_accelerate_refuses_is_one_line(monkeypatch):
    def refuse(**_):
        raise ValueError("Unknown mixed_precision\n  mode")

    monkeypatch.setattr("accelerate.Accelerator", refuse)
    with pytest.raises(UserInputError, match="settings: Unknown mixed_precision mode; see"):
        make_accelerator("cpu")


def test_processes_wait_for_hours_for_what_one_does_alone(monkeypatch):
    told = []

    def note(*, kwargs_handlers, **_):
        told.extend(kwargs_handlers)
        return Told()

    monkeypatch.setattr("accelerate.Accelerator", note)
    make_accelerator("cpu")
    assert told[0].to_kwargs()["timeout"] >= timedelta(hours=2)


def test_the_launchers_number_reaches_the_engine(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert agreed(TrainSettings(steps=1), make_accelerator("cpu")).accumulate == 4


# ---- what the first process does alone


def test_the_first_works_and_the_others_wait(monkeypatch):
    done = []

    def work(engine):
        return by_first(engine, lambda: done.append(engine.rank) or "made")

    assert by_two(monkeypatch, work) == ["made", None] and done == [0]
    assert by_two(monkeypatch, lambda e: said_by_first(e, e.rank == 0)) == [True, True]
    assert by_two(monkeypatch, lambda e: said_by_first(e, e.rank == 1)) == [False, False]


def test_where_the_first_fails_none_waits_for_it(monkeypatch):
    def work(engine):
        def fail():
            raise UserInputError("another process is training in runs/a")

        return by_first(engine, fail)

    first, second = by_two(monkeypatch, work)
    assert isinstance(first, UserInputError)
    assert isinstance(second, EnvironmentFailure)
    assert "UserInputError: another process is training in runs/a" in str(second)


def test_a_folder_that_is_held_ends_all_processes(images, tmp_path, monkeypatch):
    held = UserInputError("another process is training in it")

    def refuse(folder, main=True):
        raise held

    monkeypatch.setattr("hebm_sample.training.train.locked", refuse)
    model, preset = tiny_pipeline(), short_preset(batch_size=8)

    def work(engine):
        how = {"accelerator": engine, "show_progress": False}
        return train_prior(preset, model, images, tmp_path / "run", **how)

    first, second = by_two(monkeypatch, work)
    assert first is held and isinstance(second, EnvironmentFailure)


# ---- what is done beside the steps


@pytest.mark.parametrize("kind", ["generator", "score"])
def test_no_part_of_a_run_takes_more_than_a_micro_batch(images, tmp_path, monkeypatch, kind):
    """Grids, held-out figures and encoding, too: else a run ends at its first grid."""
    sizes = []

    def noted(batches, function):
        def call(self, first, *rest, **more):
            sizes.append(first if isinstance(first, int) else len(first))
            return function(self, first, *rest, **more)

        return call

    for owner, name in ((HierarchicalGenerator, "descend"), (Encoder, "features")):
        monkeypatch.setattr(owner, name, noted(sizes, getattr(owner, name)))
    preset = short_preset(
        steps=4, batch_size=8, accumulate=4, evaluate_every=4, sample_every=0.0, heldout=7
    )
    how = {"accelerator": make_accelerator("cpu"), "show_progress": False}
    if kind == "generator":
        train_generator(preset, images, tmp_path / "run", **how)
    else:
        train_prior(preset, tiny_pipeline(), images, tmp_path / "run", **how)
    assert list((tmp_path / "run/samples").glob("grid-*.png"))
    assert "heldout_loss" in read_log(tmp_path / "run")[-1]
    assert max(sizes) == 2


@pytest.mark.parametrize("kind", ["generator", "score"])
def test_held_out_figures_do_not_depend_on_how_many_are_measured_at_a_time(images, kind):
    built = objective(kind)
    names = {"bits": "heldout_bits"} if kind == "generator" else {"drop": "heldout_gain"}
    whole, some = (heldout_figures(built, images, 13, CPU, names, k) for k in (50, 4))
    assert whole.keys() == some.keys() and len(whole) == 2
    for name, value in whole.items():
        assert some[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_only_where_memory_is_short_less_is_done_at_a_time():
    def settings(**changes):
        return TrainSettings(steps=1, **changes)

    assert [settings(batch_size=n).at_once(50) for n in (32, 16, 15, 2)] == [50, 50, 15, 2]
    assert [settings(batch_size=64, accumulate=k).at_once(16) for k in (1, 2, 32)] == [16, 16, 2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    home = tmp_path_factory.mktemp("toy")
    folder = draw_images(home / "images")
    return load_images(folder, size=16, cache_dir=home / "cache", progress=False)


def run(folder, images, *, resume=False, **settings):
    preset = short_preset(**({"steps": 4, "batch_size": 8} | settings))
    options = {"accelerator": make_accelerator("cpu"), "show_progress": False}
    return train_prior(preset, tiny_pipeline(), images, folder, resume=resume, **options)


def test_a_run_in_micro_batches_is_the_run(images, tmp_path):
    found = run(tmp_path / "cut", images, accumulate=4, activation_checkpointing=True).learner
    wanted = run(tmp_path / "whole", images).learner
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, wanted.state_dict()[key], **CLOSE)
    a, b = (read_log(tmp_path / name)[-1] for name in ("cut", "whole"))
    assert a["drop_by_noise"] == pytest.approx(b["drop_by_noise"], rel=1e-3, abs=1e-5)


def test_the_runs_identity_names_what_changes_bits(images, tmp_path):
    run(tmp_path / "plain", images, activation_checkpointing=True)
    run(tmp_path / "other", images, accumulate=2, dtype="bfloat16")
    plain, other = (
        read_state(latest_checkpoint(tmp_path / name))["identity"]["settings"]
        for name in ("plain", "other")
    )
    assert not {"accumulate", "dtype", "activation_checkpointing"} & set(plain)
    assert (other["accumulate"], other["dtype"]) == (2, "bfloat16")
    assert run(tmp_path / "plain", images, resume=True).steps == 4
    for folder, changes, said in (
        ("plain", {"accumulate": 2}, "accumulate"),
        ("other", {}, "accumulate, dtype"),
    ):
        with pytest.raises(UserInputError, match=rf"other settings \({said}\)"):
            run(tmp_path / folder, images, resume=True, **changes)
    weights = load_file(latest_checkpoint(tmp_path / "other") / "learner.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_the_command_takes_them(tmp_path):
    command = ["prior", "--preset", "tiny", "--dry-run", "--device", "cpu", "--quiet"]
    more = ["--accumulate", "4", "--dtype", "bfloat16", "--activation-checkpointing", "--compile"]
    result = CliRunner().invoke(main, [*command, *more])
    assert result.exit_code == 0, result.output
    assert "4 micro-batches of 2; bfloat16" in result.stdout
    assert "compiled (timed without, an upper bound)" in result.stdout
    result = CliRunner().invoke(
        main, ["decoder", *command[1:], *more[2:]]
    )  # which compiles nothing
    assert result.exit_code == 0 and "compiled (" not in result.stdout, result.output
    result = CliRunner().invoke(main, [*command, "--accumulate", "3"])
    assert result.exit_code == 2 and "does not divide batch_size = 8" in result.stderr


@pytest.mark.slow
def test_a_dry_run_counts_a_micro_batchs_memory_and_the_batchs_flops():
    one, four = (dry_run("prior", short_preset(accumulate=k), CPU).costs for k in (1, 4))
    assert four.flops == one.flops
    assert four.activations < 0.5 * one.activations
    plain, again = (
        dry_run("generator", short_preset(activation_checkpointing=c), CPU).costs
        for c in (False, True)
    )
    assert again.activations < plain.activations and again.flops > plain.flops


# ---- two processes


def launch(tmp_path, count, *words):
    """A module in `count` processes over gloo; accelerate's launcher would need MPI on CPUs."""
    environment = {
        **os.environ,
        "HEBM_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(hebm_sample.__file__).parents[1]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "-m", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["score", "mle"])
def test_two_processes_learn_and_draw_what_one_does(tmp_path, objective):
    """On an imported NVAE: 8 images in one batch, or 2 in each of 2 micro-batches of 2 processes;
    then the images of the model that came of it.
    """
    draw_images(tmp_path / "images", count=24)
    checkpoint = write_checkpoint(NAMES[0], tmp_path / "nvae.pt")
    result = CliRunner().invoke(
        main, ["import-nvae", str(checkpoint), "--out", str(tmp_path / "nvae")]
    )
    assert result.exit_code == 0, result.output
    where = ("hebm_sample.training", "prior", "--preset", "tiny-energies", "--quiet")
    what = ("--generator", tmp_path / "nvae", "--data", tmp_path / "images", "--max-steps", 6)
    what += ("--objective", objective, "--validation", 4, "--device", "cpu")
    what += ("--set", "chain_steps=3", "--set", "settings.encode_once=false")
    for count, more in ((1, ()), (2, ("--accumulate", 2))):
        out = ("--out", tmp_path / f"run{count}", "--batch-size", 8 // count, *more)
        assert launch(tmp_path, count, *where, *what, *out).count("model in") == 1
    one, two = (
        load_file(latest_checkpoint(tmp_path / f"run{i}") / "learner.safetensors") for i in (1, 2)
    )
    start = load_file(tmp_path / "run1/checkpoint-00000000/learner.safetensors")
    assert max(float((one[key] - start[key]).abs().max()) for key in one) > 1e-3
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5)
    logs = [read_log(tmp_path / f"run{i}")[-1] for i in (1, 2)]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-3)

    draws = ("hebm_sample.cli.sample", "--dataset", tmp_path / "run2" / "model", "--seeds", "0-8")
    for count in (1, 2):
        out = ("--outdir", tmp_path / f"images{count}", "--batch", 2, "--device", "cpu", "--json")
        said = launch(tmp_path, count, *draws, *out)
        answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert sorted(sum((answer["seeds"] for answer in answers), [])) == list(range(9))
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / f"images{i}").iterdir()}
        for i in (1, 2)
    ]
    assert files[0] == files[1] and len(files[0]) == 9
