"""A run that was stopped and resumed is the run that was not, in every bit.

Without this a kill costs more than the steps since the last checkpoint: a wrong position in the
data, a lost moment of AdamW or an average that starts anew shows only as a slightly worse model.
"""

import copy
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_modules, tiny_pipeline
from toy import draw_images, labelled_preset, short_preset

import hebm_sample
from hebm_sample import Pipeline
from hebm_sample.config import TrainingRecord
from hebm_sample.data.dataset import StepSampler, load_images
from hebm_sample.errors import (
    EnvironmentFailure,
    NonFiniteSampleError,
    TrainingDivergedError,
    UserInputError,
)
from hebm_sample.evaluation.latent_ddpm import train_ddpm
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training import devices, encoded
from hebm_sample.training import run as loop
from hebm_sample.training.checkpoint import latest_checkpoint, read_state
from hebm_sample.training.elbo import GeneratorObjective
from hebm_sample.training.encoded import encode_images, remove_encoded
from hebm_sample.training.ending import has_ended
from hebm_sample.training.energy import MleObjective, ScoreObjective
from hebm_sample.training.export import load_run
from hebm_sample.training.log import read_log
from hebm_sample.training.record import record_of
from hebm_sample.training.train import train_generator, train_prior
from hebm_sample.training.trainer import BEST, Run, make_accelerator

PARTS = {"generator": "generator", "score": "prior"}
KINDS = {"generator": GeneratorObjective, "score": ScoreObjective, "mle": MleObjective}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    home = tmp_path_factory.mktemp("toy")
    return load_images(
        draw_images(home / "images"), size=16, cache_dir=home / "cache", progress=False
    )


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    home = tmp_path_factory.mktemp("labelled")
    folder = draw_images(home / "images", labels=True)
    return load_images(folder, size=16, cache_dir=home / "cache", progress=False)


@pytest.fixture(scope="module")
def model():
    return tiny_pipeline()


@pytest.fixture
def run(images, model):
    """Trains for a few steps on the CPU; `kind` is generator, score or mle."""

    def train(folder, kind="generator", resume=False, images=images, model=model, **settings):
        options = {"resume": resume, "show_progress": False}
        options["accelerator"] = make_accelerator("cpu")
        preset = short_preset(**settings)
        if kind == "generator":
            return train_generator(preset, images, folder, **options)
        return train_prior(preset, model, images, folder, objective=kind, **options)

    return train


def stop_at(patch, kind, step):
    """Ctrl-C in the middle of a step."""
    forward, calls = KINDS[kind].forward, []

    def interrupted(self, images, fraction, *rest):
        calls.append(fraction)
        if len(calls) == step + 1:
            raise KeyboardInterrupt
        return forward(self, images, fraction, *rest)

    patch.setattr(KINDS[kind], "forward", interrupted)


def logged(folder):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder)]


def tensors(folder, step=None):
    path = latest_checkpoint(folder) if step is None else folder / f"checkpoint-{step:08d}"
    return {p.name: p.read_bytes() for p in sorted(path.glob("*.safetensors"))}


def assert_same_run(folder, other):
    """Weights, average and optimiser byte for byte, and every logged number."""
    assert set(tensors(folder)) == {f"{k}.safetensors" for k in ("ema", "learner", "optimizer")}
    assert tensors(folder) == tensors(other)
    assert logged(folder) == logged(other)
    states = [read_state(latest_checkpoint(f)) for f in (folder, other)]
    for state in states:
        state.pop("seconds")
    assert states[0] == states[1]


class TestResume:
    @pytest.mark.parametrize("kind, stop", [("generator", 7), ("score", 6), ("mle", 5)])
    def test_after_ctrl_c_is_exact(self, run, tmp_path, monkeypatch, kind, stop):
        whole = run(tmp_path / "whole", kind)
        with monkeypatch.context() as patch:
            stop_at(patch, kind, stop)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "cut", kind)
        assert latest_checkpoint(tmp_path / "cut").name == "checkpoint-00000004"
        torch.manual_seed(99)  # a new process has another global stream
        resumed = run(tmp_path / "cut", kind, resume=True)
        assert [x["step"] for x in logged(tmp_path / "whole")] == [4, 8, 10]
        assert_same_run(tmp_path / "cut", tmp_path / "whole")
        assert (resumed.steps, resumed.skipped) == (10, 0)
        for key, value in whole.learner.state_dict().items():
            assert torch.equal(value, resumed.learner.state_dict()[key]), key
        assert (tmp_path / "cut/model/weights_manifest.json").is_file()

    @pytest.mark.slow
    @pytest.mark.parametrize("kind, stop", [("score", 6), ("mle", 5)])
    def test_with_labels_is_exact(self, labelled, model, tmp_path, monkeypatch, kind, stop):
        options = {"objective": kind, "accelerator": make_accelerator("cpu")}
        options["show_progress"] = False
        train_prior(labelled_preset(), model, labelled, tmp_path / "whole", **options)
        with monkeypatch.context() as patch:
            stop_at(patch, kind, stop)
            with pytest.raises(KeyboardInterrupt):
                train_prior(labelled_preset(), model, labelled, tmp_path / "cut", **options)
        torch.manual_seed(99)
        options["resume"] = True
        train_prior(labelled_preset(), model, labelled, tmp_path / "cut", **options)
        assert_same_run(tmp_path / "cut", tmp_path / "whole")
        assert all(len(line["accuracy"]) == 1 for line in logged(tmp_path / "cut"))
        pipe = Pipeline.from_pretrained(tmp_path / "cut/model", device="cpu")
        assert pipe.symbols == {"Bright": ("no", "yes")}
        assert len(pipe(2, symbols={"Bright": True})) == 2

    def test_weights_depend_on_the_seed(self, run, tmp_path):
        """Else the comparison above could not fail."""
        run(tmp_path / "a", steps=2)
        run(tmp_path / "b", steps=2, seed=1)
        assert tensors(tmp_path / "a") != tensors(tmp_path / "b")

    def test_after_a_full_disk_what_was_logged_too_far_is_cut_off(
        self, run, tmp_path, monkeypatch
    ):
        run(tmp_path / "whole")
        save = loop.save_checkpoint

        def full(folder, step, **options):
            if step == 8:
                raise EnvironmentFailure("No space left on device")
            return save(folder, step, **options)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", full)
            with pytest.raises(EnvironmentFailure, match="No space"):
                run(tmp_path / "cut")
        assert [x["step"] for x in logged(tmp_path / "cut")] == [4, 8]
        run(tmp_path / "cut", resume=True)
        assert_same_run(tmp_path / "cut", tmp_path / "whole")

    def test_twice_stopped_and_then_finished_again(self, run, tmp_path, monkeypatch):
        run(tmp_path / "whole")
        for resume, step in ((False, 5), (True, 4)):
            with monkeypatch.context() as patch:
                stop_at(patch, "generator", step)
                with pytest.raises(KeyboardInterrupt):
                    run(tmp_path / "cut", resume=resume)
        assert read_state(latest_checkpoint(tmp_path / "cut"))["step"] == 8
        for _ in range(2):  # resuming a finished run writes its model again and changes nothing
            assert run(tmp_path / "cut", resume=True).steps == 10
            assert_same_run(tmp_path / "cut", tmp_path / "whole")

    def test_the_grid_does_not_touch_the_random_stream(self, run, tmp_path):
        run(tmp_path / "without")
        run(tmp_path / "with", sample_every=0.0)
        assert tensors(tmp_path / "with") == tensors(tmp_path / "without")
        names = sorted(p.name for p in (tmp_path / "with/samples").iterdir())
        assert names == [f"grid-{step:08d}.png" for step in (4, 8, 10)]


class TestParts:
    """A batch in two parts is two processes with a part each."""

    @pytest.fixture
    def two(self, monkeypatch):
        monkeypatch.setattr(Run, "_parts", lambda self: 2)
        turn = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        yield
        sys.setswitchinterval(turn)

    def parts(self, images, world=1, rank=0):
        objective = GeneratorObjective(*tiny_modules()[:2])
        task = loop.Task("generator", objective, objective, tiny_config(), lambda _: None, "")
        engine = make_accelerator("cpu")
        settings = short_preset(batch_size=8 // world).generator_settings
        run = Run(task, images, settings, Path("nowhere"), engine)
        if world > 1:
            run.samplers = [StepSampler(len(images), 8 // world, settings.seed, rank, world)]
        return [run.part(3, sampler) for sampler in run.samplers]

    def test_they_have_the_rows_and_noise_of_processes(self, images, two):
        cut = self.parts(images)
        processes = [self.parts(images, 2, rank)[0] for rank in (0, 1)]
        assert len(cut) == 2
        for one, other in zip(cut, processes, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.stream.get_state(), other.stream.get_state())
        assert not torch.equal(cut[0].images, cut[1].images)
        assert cut[0].stream.initial_seed() != cut[1].stream.initial_seed()

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["generator", "score", "mle"])
    def test_a_resumed_run_keeps_them(self, run, tmp_path, monkeypatch, two, kind):
        run(tmp_path / "whole", kind)
        with monkeypatch.context() as patch:
            stop_at(patch, kind, 13)  # two calls per step
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "cut", kind)
        assert read_state(latest_checkpoint(tmp_path / "cut"))["parts"] == 2
        monkeypatch.setattr(Run, "_parts", lambda self: 1)  # it was another machine
        run(tmp_path / "cut", kind, resume=True)
        assert_same_run(tmp_path / "cut", tmp_path / "whole")


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "a bit": _flip,
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"x"),
    "folder": lambda p: (p.unlink(), p.mkdir()),
}


class TestEncodedImages:
    """The encoder's maps are those that each step would make, and make the same run."""

    def test_maps_are_the_encoders(self, images, model, tmp_path):
        device = torch.device("cpu")
        options = {"key": "k", "progress": False}
        found = encode_images(model.encoder, images, tmp_path, device, **options)
        rows, flips = torch.tensor([3, 0, 39]), torch.tensor([True, False, True])
        maps = found(rows, flips)
        with torch.no_grad():
            expected = model.encoder.features(images.batch(rows, flips))
        assert maps.keys() <= expected.keys() and len(maps) == 2
        for side, value in maps.items():
            assert torch.allclose(value, expected[side], rtol=1e-3, atol=1e-4)
            assert value.is_contiguous(memory_format=torch.channels_last)
        assert not torch.equal(found(rows, ~flips)[4], maps[4])
        assert torch.equal(found(rows, None)[4][1], maps[4][1])

    def test_they_are_made_once_and_again_for_another_key(self, images, model, tmp_path):
        device, made = torch.device("cpu"), []
        encoder = copy.deepcopy(model.encoder)
        features = encoder.features
        encoder.features = lambda images: [made.append(len(images)), features(images)][1]
        for key, expected in (("a", 2), ("a", 2), ("b", 4)):
            encode_images(encoder, images, tmp_path, device, key=key, progress=False)
            assert len(made) == expected
        (tmp_path / "encoded.bin").unlink()
        assert encode_images(encoder, images, tmp_path, device, key="b", build=False) is None
        remove_encoded(tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("damage", [*DAMAGES, "key"])
    def test_a_damaged_file_is_made_again_with_one_line(self, images, model, tmp_path, damage):
        device, options = torch.device("cpu"), {"key": "k", "progress": False}
        rows = torch.arange(len(images))
        whole = encode_images(model.encoder, images, tmp_path, device, **options)(rows, None)
        data = tmp_path / "encoded.bin"
        if damage == "key":
            (tmp_path / "encoded.json").write_bytes(b"[" * 50_000)
        else:
            DAMAGES[damage](data)
        with pytest.warns(UserWarning, match="are damaged and are made again") as said:
            found = encode_images(model.encoder, images, tmp_path, device, **options)
        assert len(said) == 1 and "\n" not in str(said[0].message)
        assert all(torch.equal(found(rows, None)[k], v) for k, v in whole.items())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encode_images(model.encoder, images, tmp_path, device, **options)

    def test_a_full_disk_is_said_and_does_without(self, run, tmp_path, monkeypatch):
        monkeypatch.setattr(encoded, "FREE", 2**62)
        with pytest.warns(UserWarning, match="has no room for the encoder's maps"):
            run(tmp_path / "full", "score", steps=4)
        run(tmp_path / "never", "score", steps=4, encode_once=False)
        assert tensors(tmp_path / "full") == tensors(tmp_path / "never")

    @pytest.mark.parametrize("steps, made", [(2, False), (3, True)])
    def test_a_run_that_sees_few_of_the_images_encodes_them_itself(
        self, run, images, tmp_path, monkeypatch, steps, made
    ):
        found = []
        real = encoded.encode_images
        monkeypatch.setattr(
            encoded, "encode_images", lambda *a, **k: [found.append(1), real(*a, **k)][1]
        )
        settings = TrainSettings(steps=steps, batch_size=8)
        assert settings.encodes_once(2 * 8 * steps) and not settings.encodes_once(16 * steps + 1)
        assert settings.encodes_once(16 * steps + 1, processes=2)
        run(tmp_path / "run", "score", steps=steps)
        assert bool(found) is made

    def test_more_than_a_machine_keeps_in_memory_is_not_written(
        self, run, images, model, tmp_path, monkeypatch
    ):
        device, options = torch.device("cpu"), {"key": "k", "progress": False}
        size = encoded.encoded_bytes(model.encoder) * len(images)
        monkeypatch.setattr(encoded, "MOST_BYTES", size)
        (tmp_path / "fits").mkdir()
        assert encode_images(model.encoder, images, tmp_path / "fits", device, **options)
        assert (tmp_path / "fits/encoded.bin").stat().st_size == size
        monkeypatch.setattr(encoded, "MOST_BYTES", size - 1)
        # What is there already is gone on with.
        assert encode_images(model.encoder, images, tmp_path / "fits", device, **options)
        monkeypatch.setattr(encoded, "MOST_BYTES", 1000)
        with pytest.warns(UserWarning, match="would take .* KiB.*; each step makes them"):
            run(tmp_path / "large", "score", steps=4)
        run(tmp_path / "never", "score", steps=4, encode_once=False)
        assert tensors(tmp_path / "large") == tensors(tmp_path / "never")

    def test_maps_beyond_half_precision_are_not_written(self, images, model, tmp_path):
        encoder = copy.deepcopy(model.encoder)
        features = encoder.features
        encoder.features = lambda images: {k: 1e6 * v for k, v in features(images).items()}
        options = {"key": "k", "progress": False}
        with pytest.warns(UserWarning, match="beyond half precision; each step makes them"):
            found = encode_images(encoder, images, tmp_path, torch.device("cpu"), **options)
        assert found is None and list(tmp_path.iterdir()) == []

    def test_the_file_and_its_size_are_told(self, images, model, tmp_path, capsys):
        encode_images(model.encoder, images, tmp_path, torch.device("cpu"), key="k", batch=7)
        size = (tmp_path / "encoded.bin").stat().st_size / 2**10
        said = capsys.readouterr().err
        assert f"maps of 40 images take {size:,.1f} KiB in {tmp_path} until the run ends" in said

    def test_the_run_is_the_same_but_for_half_precision(self, run, tmp_path):
        once = run(tmp_path / "once", "score", steps=4).learner.state_dict()
        assert not list((tmp_path / "once").glob("encoded*"))
        each = run(tmp_path / "each", "score", steps=4, encode_once=False).learner.state_dict()
        assert any(not torch.equal(v, each[k]) for k, v in once.items())
        first, second = (read_log(tmp_path / f)[-1]["loss"] for f in ("once", "each"))
        assert first == pytest.approx(second, rel=1e-3)


class TestHeldOut:
    """The best of the averaged weights is kept, by figures of the same images and noise."""

    @pytest.mark.parametrize("kind", ["generator", "score"])
    def test_is_logged_and_the_best_is_exported(self, run, tmp_path, monkeypatch, kind):
        folder, weights = tmp_path / "run", []
        real = Run.evaluate

        def record(self):
            weights.append({k: v.clone() for k, v in self.ema.module.state_dict().items()})
            return real(self)

        monkeypatch.setattr(Run, "evaluate", record)
        # Steps that are too long get worse after the first of them.
        rate = {"generator": 0.2, "score": 0.02}[kind]
        result = run(folder, kind, steps=12, evaluate_every=4, learning_rate=rate, warmup_steps=0)
        lines = logged(folder)
        losses = [line["heldout_loss"] for line in lines]
        assert [line["step"] for line in lines] == [4, 8, 12] and len(set(losses)) == 3
        best = min(range(3), key=losses.__getitem__)
        assert result.best["step"] == lines[best]["step"]
        assert result.best["heldout_loss"] == losses[best]
        for found in (result.learner, getattr(load_run(folder), PARTS[kind])):
            state = found.state_dict()
            for key, value in weights[best].items():
                name = key.removeprefix("generator.") if found is not result.learner else key
                assert name not in state or torch.equal(state[name], value), key
        saved = latest_checkpoint(folder / BEST)
        assert [p.name for p in (folder / BEST).iterdir()] == [saved.name]
        assert read_state(saved)["heldout_loss"] == losses[best]

    @pytest.mark.parametrize("kind", ["generator", "score"])
    def test_is_the_objective_at_the_end_of_the_warm_up_with_fixed_noise(
        self, run, tmp_path, kind
    ):
        run(tmp_path / "a", kind, steps=4, evaluate_every=4, learning_rate=0.0)
        run(tmp_path / "b", kind, steps=8, evaluate_every=4, learning_rate=0.0)
        a, b = logged(tmp_path / "a"), logged(tmp_path / "b")
        assert a[0]["heldout_loss"] == b[0]["heldout_loss"] == b[1]["heldout_loss"]
        name = {"generator": "heldout_bits", "score": "heldout_gain"}[kind]
        assert math.isfinite(a[0][name])

    def test_a_resumed_run_chooses_alike(self, run, tmp_path, monkeypatch):
        options = {"evaluate_every": 4, "learning_rate": 0.05, "warmup_steps": 0}
        run(tmp_path / "whole", "score", **options)
        with monkeypatch.context() as patch:
            stop_at(patch, "score", 9 + 1)  # held-out images are measured by the objective too
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "cut", "score", **options)
        run(tmp_path / "cut", "score", resume=True, **options)
        assert_same_run(tmp_path / "cut", tmp_path / "whole")
        assert tensors(tmp_path / "cut" / BEST).keys() == {"ema.safetensors"}
        assert tensors(tmp_path / "cut" / BEST) == tensors(tmp_path / "whole" / BEST)

    def test_a_run_that_ends_before_its_checkpoint_says_what_its_weights_saw(
        self, run, tmp_path, monkeypatch
    ):
        """The best weights may be younger than the newest checkpoint."""
        save, options = Run.save, {"steps": 12, "evaluate_every": 4, "checkpoint_every": 0.0}

        def stopping(self):
            if self.step == 8:
                raise KeyboardInterrupt
            save(self)

        monkeypatch.setattr(Run, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", "generator", learning_rate=0.02, **options)
        record = load_run(tmp_path / "run").config.training[-1]
        assert read_state(latest_checkpoint(tmp_path / "run"))["step"] == 4
        assert record.kept == record.steps == 8 and record.images == 8 * 8

    def test_best_weights_of_a_run_that_is_gone_are_not_anothers(self, run, tmp_path):
        """They lay in the folder when all of its checkpoints were broken."""
        options = {"evaluate_every": 4, "learning_rate": 0.02, "validation": 12}
        run(tmp_path / "run", "generator", steps=24, **options)
        for path in tmp_path.glob("run/checkpoint-*"):
            shutil.rmtree(path)
        shutil.rmtree(tmp_path / "run/model")
        other = {"steps": 8, "seed": 7} | options
        for folder in ("run", "alone"):
            run(tmp_path / folder, "generator", **other)
        found = [load_run(tmp_path / name) for name in ("run", "alone")]
        states = [pipe.generator.state_dict() for pipe in found]
        assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
        assert found[0].config.training[-1].kept == found[1].config.training[-1].kept <= 8

    @pytest.mark.parametrize(
        ("every", "log", "steps"), [(5, 4, [8, 12]), (3, 4, [4, 8, 12]), (8, 4, [8, 12])]
    )
    def test_is_measured_with_the_next_log_line(self, run, tmp_path, every, log, steps):
        settings = {"steps": 12, "evaluate_every": every, "log_every": log}
        run(tmp_path / "run", **settings)
        lines = logged(tmp_path / "run")
        assert [line["step"] for line in lines if "heldout_loss" in line] == steps

    def test_records_of_what_it_was_trained_on_do_not_matter(self, images, model, tmp_path):
        """Releases write more into them; the frozen networks are told by their content."""
        preset, how = short_preset(steps=4), {"show_progress": False}
        train_prior(preset, model, images, tmp_path / "run", **how)
        record = TrainingRecord("generator", 8, 1, 1.0, "2026-01-01", "2026-01-01", 1, 16)
        told = replace(model.config, training=(replace(record, kl_weights=(2.0,) * 3),))
        other = Pipeline(told, model.generator, model.prior, model.encoder)
        train_prior(preset, other, images, tmp_path / "run", resume=True, **how)

    def test_another_kl_weight_is_another_run(self, images, tmp_path):
        preset, how = short_preset(steps=4), {"show_progress": False}
        train_generator(preset, images, tmp_path / "run", **how)
        other = replace(preset, kl_weight=9.0)
        with pytest.raises(UserInputError, match="made with other data or KL weights"):
            train_generator(other, images, tmp_path / "run", resume=True, **how)

    @pytest.mark.parametrize(
        "change",
        [
            {"betas": (math.nan, 0.9)},
            {"betas": (0.9, 1.5)},
            {"checkpoint_every": math.nan},
            {"sample_every": -5.0},
            {"patience": 50, "evaluate_every": 50, "validation": 0},
        ],
    )
    def test_settings_that_would_end_or_lose_a_run_are_refused(self, change):
        with pytest.raises(UserInputError, match=next(iter(change))):
            short_preset(log_every=50, **change)

    def test_patience_without_a_figure_is_refused(self, run, tmp_path):
        with pytest.raises(UserInputError, match="patience is 4, but objective 'mle'"):
            run(tmp_path / "run", "mle", patience=4, evaluate_every=4)
        assert not (tmp_path / "run").exists()

    def test_damaged_best_weights_are_said_and_the_record_is_of_those_taken(self, run, tmp_path):
        options = {"steps": 8, "evaluate_every": 4, "learning_rate": 0.0, "warmup_steps": 0}
        assert run(tmp_path / "run", "score", **options).best["step"] == 4
        assert load_run(tmp_path / "run").config.training[-1].kept == 4
        (file,) = (tmp_path / "run" / BEST).glob("*/ema.safetensors")
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.warns(UserWarning, match="in place of those of step 4, the best"):
            assert load_run(tmp_path / "run").config.training[-1].kept == 8
        with pytest.warns(UserWarning, match="in place of those of step 4, the best"):
            result = run(tmp_path / "run", "score", resume=True, **options)
        assert (result.best, result.record.kept) == (None, 8)

    @pytest.mark.parametrize("kind", ["generator", "score"])
    def test_patience_ends_a_run_where_they_turn(self, run, tmp_path, kind):
        options = {"steps": 40, "evaluate_every": 4, "learning_rate": 0.0, "warmup_steps": 0}
        result = run(tmp_path / "run", kind, patience=8, **options)
        # Weights that stay have the same figures, so the first is the best.
        assert [line["step"] for line in logged(tmp_path / "run")] == [4, 8, 12]
        assert (result.steps, result.best["step"]) == (12, 4)
        assert has_ended(tmp_path / "run")
        again = run(tmp_path / "run", kind, resume=True, patience=8, **options)
        assert again.steps == 12

    def test_patience_ends_a_run_between_log_lines_whole(self, run, tmp_path):
        """Measured at the log line of step 6, so it ends at 10: with a line, and a checkpoint."""
        options = {"steps": 40, "evaluate_every": 4, "learning_rate": 0.0, "warmup_steps": 0}
        options |= {"patience": 4, "log_every": 6}
        result = run(tmp_path / "run", "score", **options)
        assert [line["step"] for line in logged(tmp_path / "run")] == [6, 10]
        assert read_state(latest_checkpoint(tmp_path / "run"))["step"] == result.steps == 10
        assert run(tmp_path / "run", "score", resume=True, **options).steps == 10

    def test_a_run_that_patience_ended_does_not_go_on_without(self, run, tmp_path):
        options = {"steps": 40, "evaluate_every": 4, "learning_rate": 0.0, "warmup_steps": 0}
        run(tmp_path / "run", "score", patience=4, **options)
        with pytest.raises(UserInputError, match="ended at step 8, when held-out figures had"):
            run(tmp_path / "run", "score", resume=True, patience=0, **options)

    def test_records_say_how_steps_were_computed(self, run, tmp_path, monkeypatch):
        run(tmp_path / "plain", "score", steps=4)
        assert load_run(tmp_path / "plain").config.training[-1].note == ""
        monkeypatch.setattr(loop, "compile_parts", lambda _: True)
        run(tmp_path / "run", "score", steps=4, compile=True, dtype="bfloat16")
        assert load_run(tmp_path / "run").config.training[-1].note == "in bfloat16, compiled"
        state = read_state(latest_checkpoint(tmp_path / "run"))
        again = {"steps": 4, "resume": True, "compile": True, "dtype": "bfloat16"}
        assert run(tmp_path / "run", "score", **again).state["compiled"] == [[0, True]]
        found = run(tmp_path / "run", "score", **again | {"compile": False})
        assert found.state["compiled"] == [[0, True], [4, False]]
        notes = {
            ((0, False), (2, True)): "compiled from step 2 on",
            ((0, True), (2, False)): "compiled, not compiled from step 2 on",
            (): "",
        }
        for steps, note in notes.items():
            found = record_of(state | {"compiled": [list(pair) for pair in steps]})
            assert found.note == ", ".join(["in bfloat16", *filter(None, [note])])

    def test_energies_that_cannot_be_drawn_yet_end_no_run(self, run, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise NonFiniteSampleError([0], 1, 2)

        monkeypatch.setattr(Pipeline, "__call__", fail)
        with pytest.warns(UserWarning, match="no grid at step 4: the sample of seed 0 became"):
            run(tmp_path / "run", "score", steps=4)
        assert has_ended(tmp_path / "run") and (tmp_path / "run" / "model").is_dir()

    def test_patience_needs_figures(self):
        with pytest.raises(UserInputError, match="patience is 8, but nothing is measured"):
            TrainSettings(steps=4, patience=8)
        with pytest.raises(UserInputError, match="patience is 60; it must be a multiple of eval"):
            TrainSettings(steps=4, patience=60, evaluate_every=25)

    def test_a_run_from_before_the_settings_goes_on(self, run, tmp_path, monkeypatch):
        identity = Run.identity

        def older(self):
            found = identity(self)
            for name in ("evaluate_every", "heldout", "ema_length"):
                del found["settings"][name]
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Run, "identity", older)
            run(tmp_path / "run", steps=4)
        assert run(tmp_path / "run", resume=True, steps=4).steps == 4


@pytest.fixture(scope="module")
def started(images, model, tmp_path_factory):
    """Folders with a finished run of one step."""
    home = tmp_path_factory.mktemp("started")
    options = {"accelerator": make_accelerator("cpu"), "show_progress": False}
    train_generator(short_preset(steps=1), images, home / "generator", **options)
    train_prior(short_preset(steps=1), model, images, home / "score", **options)
    return home


class TestRefusals:
    def test_settings_are_named(self, run, started):
        with pytest.raises(UserInputError, match=r"other settings \(batch_size, seed\);"):
            run(started / "generator", resume=True, batch_size=4, seed=3)

    def test_other_images(self, run, started, tmp_path):
        folder = draw_images(tmp_path / "other", seed=1)
        other = load_images(folder, size=16, cache_dir=tmp_path / "cache", progress=False)
        with pytest.raises(UserInputError, match="other data"):
            run(started / "generator", resume=True, images=other)

    def test_another_generator(self, run, started):
        generator, encoder, _ = tiny_modules(seed=1)
        other = Pipeline(tiny_config(), generator, None, encoder)
        with pytest.raises(UserInputError, match="other data"):
            run(started / "score", "score", resume=True, model=other)

    @pytest.mark.parametrize("part", ["generator", "encoder"])
    def test_a_frozen_part_with_other_signs(self, run, started, part):
        """The content counts: the sum of the sizes of all weights is the same."""
        other = tiny_pipeline()
        with torch.no_grad():
            next(getattr(other, part).parameters()).neg_()
        with pytest.raises(UserInputError, match="other data, options or frozen networks"):
            run(started / "score", "score", resume=True, model=other)

    def test_a_baseline_with_other_frozen_parts(self, images, tmp_path):
        options = {"accelerator": make_accelerator("cpu"), "show_progress": False}
        preset = short_preset(steps=1)
        train_ddpm(preset, tiny_pipeline(), images, tmp_path, **options)
        for part in ("generator", "encoder"):
            other = tiny_pipeline()
            with torch.no_grad():
                next(getattr(other, part).parameters()).neg_()
            with pytest.raises(UserInputError, match="other data, options or frozen networks"):
                train_ddpm(preset, other, images, tmp_path, resume=True, **options)
        assert train_ddpm(preset, tiny_pipeline(), images, tmp_path, resume=True, **options).steps

    def test_a_checkpoint_of_an_earlier_release_goes_on(self, run, tmp_path, model, monkeypatch):
        options = {"steps": 2, "model": model}

        def former(run):
            return identity(run) | {"data": run.task.former[0]}

        identity = Run.identity
        with monkeypatch.context() as patch:
            patch.setattr(Run, "identity", former)
            run(tmp_path / "run", "score", **options)
        state = read_state(latest_checkpoint(tmp_path / "run"))
        size = sum(float(p.double().abs().sum()) for p in model.generator.parameters())
        # As it stands in checkpoints that were written before weights were named by content.
        rows, *rest = state["identity"]["data"].split(" ")
        assert rest == ["score", f"{size:.10e}"] and rows.endswith("]")
        assert run(tmp_path / "run", "score", resume=True, **options).steps == 2
        generator, encoder, _ = tiny_modules(seed=1)
        other = Pipeline(tiny_config(), generator, None, encoder)
        with pytest.raises(UserInputError, match="frozen networks"):
            run(tmp_path / "run", "score", resume=True, steps=2, model=other)

    def test_another_weight_of_the_labels(self, labelled, model, tmp_path):
        options = {"accelerator": make_accelerator("cpu"), "show_progress": False}
        preset = labelled_preset(steps=1)
        train_prior(preset, model, labelled, tmp_path, **options)
        for name in ("symbol_weight", "condition_share"):
            other = replace(preset, **{name: 0.7})
            with pytest.raises(UserInputError, match="other data"):
                train_prior(other, model, labelled, tmp_path, resume=True, **options)

    def test_another_objective_or_kind(self, run, started):
        with pytest.raises(UserInputError, match="other data"):
            run(started / "score", "mle", resume=True)
        with pytest.raises(UserInputError, match="other .*kind"):
            run(started / "generator", "score", resume=True)

    def test_nothing_to_resume(self, run, tmp_path):
        with pytest.raises(UserInputError, match="nothing to resume in .*without --resume"):
            run(tmp_path / "empty", resume=True)

    @pytest.mark.parametrize("kind", ["generator", "score"])
    def test_a_folder_that_holds_a_run(self, run, started, kind):
        before = {p: p.stat().st_mtime_ns for p in started.rglob("*")}
        with pytest.raises(UserInputError, match="already holds a run; go on with --resume"):
            run(started / kind, kind)
        assert {p: p.stat().st_mtime_ns for p in started.rglob("*")} == before

    @pytest.mark.parametrize("kind", ["generator", "score"])
    def test_a_file_in_the_way(self, run, tmp_path, kind):
        (tmp_path / "file").write_text("")
        for folder in (tmp_path / "file", tmp_path / "file/run"):
            with pytest.raises(UserInputError, match="run folder .* cannot be made"):
                run(folder, kind)


class TestTimeBudget:
    def test_is_a_number_of_steps_once_and_leaves_no_trace(self, run, tmp_path, monkeypatch):
        run(tmp_path / "steps")
        real = loop.time_a_step

        def timed(*arguments):
            assert real(*arguments) > 0
            return loop.BUDGET_SHARE * 60 / 10.5

        timeless = {"steps": None, "time_budget": 60.0}
        with monkeypatch.context() as patch:
            patch.setattr(loop, "time_a_step", timed)
            # The trial steps use the objective too.
            stop_at(patch, "generator", devices.PROBE_STEPS + 3)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "budget", **timeless)
        # Before anything was learned the run is the one with ten steps, optimiser included.
        assert read_state(tmp_path / "budget/checkpoint-00000000")["total"] == 10
        monkeypatch.setattr(loop, "time_a_step", lambda *_: pytest.fail("timed again"))
        fresh = tensors(tmp_path / "budget", 0)
        run(tmp_path / "again", steps=1)
        assert fresh == tensors(tmp_path / "again", 0)
        assert run(tmp_path / "budget", resume=True, **timeless).steps == 10
        assert tensors(tmp_path / "budget") == tensors(tmp_path / "steps")
        assert logged(tmp_path / "budget") == logged(tmp_path / "steps")

    def test_of_the_prior_leaves_its_weights(self, run, tmp_path, monkeypatch):
        run(tmp_path / "steps", "score", steps=3)
        real = loop.time_a_step
        monkeypatch.setattr(
            loop, "time_a_step", lambda *a: [real(*a), loop.BUDGET_SHARE * 60 / 3.5][1]
        )
        run(tmp_path / "budget", "score", steps=None, time_budget=60.0)
        assert tensors(tmp_path / "budget") == tensors(tmp_path / "steps")

    def test_neither_is_refused(self, run, tmp_path):
        with pytest.raises(UserInputError, match="give --max-steps or --time-budget"):
            run(tmp_path, steps=None)


class TestNanGuard:
    @pytest.fixture
    def damage(self, monkeypatch):
        def damage(*steps):
            part = Run.part

            def damaged(self, step, sampler):
                whole = part(self, step, sampler)
                return whole._replace(images=whole.images * (float("nan") if step in steps else 1))

            monkeypatch.setattr(Run, "part", damaged)

        return damage

    def test_one_bad_batch_is_skipped_and_counted(self, run, damage, tmp_path):
        damage(3)
        result = run(tmp_path / "run", steps=8)
        assert (result.steps, result.skipped) == (8, 1)
        assert all(torch.isfinite(v).all() for v in result.learner.state_dict().values())
        lines = logged(tmp_path / "run")
        assert [x["skipped"] for x in lines] == [1, 1]
        assert all(isinstance(x["loss"], float) for x in lines)  # a NaN is logged as a text
        assert read_state(latest_checkpoint(tmp_path / "run"))["skipped"] == 1

    def test_a_skipped_step_changes_nothing(self, run, damage, tmp_path):
        damage(0, 1, 2, 3)
        run(tmp_path / "run", steps=4)
        first, last = tensors(tmp_path / "run", 0), tensors(tmp_path / "run", 4)
        assert first == last

    def test_many_in_a_row_stop_the_run_and_keep_the_last_good_checkpoint(
        self, run, damage, tmp_path
    ):
        damage(5, 6, 7, 8, 9)
        with pytest.raises(TrainingDivergedError, match="3 steps in a row .*step 7"):
            run(tmp_path / "run", max_skipped=3)
        good = latest_checkpoint(tmp_path / "run")
        assert read_state(good)["step"] == 4 and read_state(good)["skipped"] == 0
        assert not (tmp_path / "run/model").exists()

    def test_the_count_survives_resuming(self, run, damage, tmp_path, monkeypatch):
        damage(2, 3, 4)
        with monkeypatch.context() as patch:
            stop_at(patch, "generator", 4)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "run", max_skipped=3)
        with pytest.raises(TrainingDivergedError, match="3 steps in a row .*step 4"):
            run(tmp_path / "run", resume=True, max_skipped=3)


def test_accelerate_missing_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install .*\[train\]") as caught:
        make_accelerator()
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1


def test_tensorboard_missing_leaves_no_run_behind(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(EnvironmentFailure, match="tensorboard"):
        run(tmp_path / "run")
    monkeypatch.undo()
    run(tmp_path / "run", steps=1)


# ---- whole processes


def environment(tmp_path):
    return {**os.environ, "HEBM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_sigkill_half_way_then_resume(tmp_path):
    data = draw_images(tmp_path / "images")
    command = [sys.executable, "-m", "hebm_sample.training", "generator", "--preset", "tiny"]
    command += ["--data", str(data), "--max-steps", "240", "--log-every", "5", "--device", "cpu"]
    command += ["--checkpoint-every", "1s", "--quiet", "--out"]
    options = {"env": environment(tmp_path), "text": True, "stderr": subprocess.PIPE}

    child = subprocess.Popen([*command, str(tmp_path / "cut")], **options)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "cut").glob("checkpoint-*[1-9]*")):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert 0 < read_state(latest_checkpoint(tmp_path / "cut"))["step"] < 240
    assert not (tmp_path / "cut/model").exists()

    for folder, more in (("cut", ["--resume"]), ("whole", [])):
        subprocess.run([*command, str(tmp_path / folder), *more], check=True, **options)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    cut, whole = (Pipeline.from_pretrained(tmp_path / f / "model") for f in ("cut", "whole"))
    for part in ("generator", "encoder"):
        expected = getattr(whole, part).state_dict()
        for key, value in getattr(cut, part).state_dict().items():
            assert torch.equal(value, expected[key]), key
    assert cut(2, prior="gaussian").images[0].size == (16, 16)


TWO_PROCESSES = """
import sys
from dataclasses import replace
from pathlib import Path
import safetensors.torch
import torch
from test_trainer import KINDS, latest_checkpoint
from toy import short_preset
from hebm_sample import Pipeline
from hebm_sample.data.dataset import load_images
from hebm_sample.training.trainer import make_accelerator
from hebm_sample.training.train import train_generator, train_prior

home = Path(sys.argv[1])
engine = make_accelerator("cpu")
assert engine.num_processes == 2
images = load_images(home / "images", size=16, progress=False)
preset = short_preset(steps=6, batch_size=4)

def keep(result, name):
    weights = {k: v.clone(memory_format=torch.contiguous_format)
               for k, v in result.learner.state_dict().items()}
    safetensors.torch.save_file(weights, home / f"{name}-{engine.process_index}.safetensors")

def run(folder, kind, **more):
    more |= {"accelerator": engine, "show_progress": False}
    if kind == "generator":
        return train_generator(preset, images, home / folder, **more)
    model = Pipeline.from_pretrained(home / "whole/model", device="cpu")
    return train_prior(preset, model, images, home / folder, objective=kind, **more)

keep(run("whole", "generator"), "generator")
forward, calls = KINDS["generator"].forward, []
def interrupted(self, *inputs):
    calls.append(1)
    if len(calls) == 6:
        raise KeyboardInterrupt
    return forward(self, *inputs)
KINDS["generator"].forward = interrupted
try:
    run("cut", "generator")
except KeyboardInterrupt:
    KINDS["generator"].forward = forward
run("cut", "generator", resume=True)
for kind in ("score", "mle"):
    keep(run(kind, kind), kind)
"""


@pytest.mark.slow
def test_two_processes_learn_the_same_and_resume_exactly(tmp_path):
    """Over gloo; started by torchrun, because accelerate's launcher needs MPI for several CPUs."""
    draw_images(tmp_path / "images")
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    here = Path(__file__).parent
    paths = [here, here.parent, Path(hebm_sample.__file__).parents[1]]
    env = environment(tmp_path) | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("generator", "score", "mle"):
        first, second = ((tmp_path / f"{name}-{i}.safetensors").read_bytes() for i in (0, 1))
        assert first == second, name
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert read_state(latest_checkpoint(tmp_path / "cut"))["identity"]["processes"] == 2
    assert len(read_log(tmp_path / "whole")) == 2  # one process writes
    pipe = Pipeline.from_pretrained(tmp_path / "score/model", device="cpu")
    assert pipe(2).images[0].size == (16, 16)


@pytest.mark.slow
def test_accelerate_launch_runs_the_command(tmp_path):
    data = draw_images(tmp_path / "images")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += ["-m", "hebm_sample.training", "generator", "--preset", "tiny", "--data", str(data)]
    command += ["--max-steps", "3", "--device", "cpu", "--quiet", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model in") == 1
    pipe = Pipeline.from_pretrained(tmp_path / "run/model", device="cpu")
    assert pipe(1, prior="gaussian").images[0].size == (16, 16)


@pytest.mark.parametrize("length", ["steps", "time_budget"])
def test_a_run_encodes_as_it_began_whatever_it_is_resumed_with(run, tmp_path, monkeypatch, length):
    """Few steps see few images, whose maps are not worth a file; the preset's own are many."""
    asked = {"steps": 2} if length == "steps" else {"steps": None, "time_budget": 5.0}
    monkeypatch.setattr(loop, "time_a_step", lambda *_: 5.0 * loop.BUDGET_SHARE / 2)
    encodes = []
    known = TrainSettings.encodes_once

    def noted(self, images, processes=1):
        encodes.append(known(self, 10_000, processes))
        return False

    monkeypatch.setattr(TrainSettings, "encodes_once", noted)
    run(tmp_path / "run", "score", **asked)
    run(tmp_path / "run", "score", resume=True, steps=100_000)
    run(tmp_path / "run", "score", resume=True, **asked)
    assert encodes == [length == "time_budget"] * 3
    state = read_state(latest_checkpoint(tmp_path / "run"))
    assert state["total"] == 2 and state["time_budget"] == asked.get("time_budget")


def test_what_a_killed_encoding_left_is_removed(model, images, tmp_path):
    left = tmp_path / f".encoded.bin.{'0' * 32}"
    left.write_bytes(b"half")
    options = {"key": "k", "progress": False}
    found = encode_images(model.encoder, images, tmp_path, torch.device("cpu"), **options)
    assert found is not None and not left.exists()
    left.write_bytes(b"half")
    remove_encoded(tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_compiled_is_not_said_to_be(run, tmp_path):
    run(tmp_path / "run", "mle", steps=2, compile=True)
    assert load_run(tmp_path / "run").config.training[-1].note == ""


def test_energies_of_another_generator_are_refused(run, model, images, tmp_path):
    scales = model.config.generator.scales
    wide = replace(scales[0], width=2 * scales[0].width)
    config = replace(
        model.config, generator=replace(model.config.generator, scales=(wide, *scales[1:]))
    )
    other = tiny_pipeline(config)
    options = {"accelerator": make_accelerator("cpu"), "show_progress": False}
    with pytest.raises(UserInputError, match="are of another generator than tiny's"):
        train_prior(short_preset(steps=2), model, images, tmp_path / "run", init=other, **options)
    assert not (tmp_path / "run").exists()
