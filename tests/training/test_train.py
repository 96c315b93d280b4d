"""What training ends with is a model: the averaged weights, loadable by anyone without the run.

Without this a run of an hour may end in a folder that nothing loads, or that holds other weights,
or another generator, than those that were trained.
"""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config, tiny_modules, tiny_pipeline
from toy import draw_images, labelled_preset, short_preset

from hebm_sample import Pipeline
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import UserInputError
from hebm_sample.training.checkpoint import latest_checkpoint
from hebm_sample.training.elbo import GeneratorObjective
from hebm_sample.training.energy import ScoreObjective
from hebm_sample.training.export import export, load_run
from hebm_sample.training.train import sampling_for, train_generator, train_prior
from hebm_sample.training.trainer import make_accelerator


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
def generator_run(home, images, options):
    return train_generator(short_preset(), images, home / "generator", **options)


@pytest.fixture(scope="module")
def model(home, generator_run):
    return load_run(home / "generator")


@pytest.fixture(scope="module")
def prior_run(home, model, images, options):
    return train_prior(short_preset(), model, images, home / "prior", **options)


def load(folder):
    return Pipeline.from_pretrained(folder, device="cpu")


def saved(run, name):
    return load_file(latest_checkpoint(run) / f"{name}.safetensors")


def assert_equal(module, other):
    """Equal weights, after the rounding of a model folder."""
    expected = other.state_dict()
    assert list(module.state_dict()) == list(expected)
    for key, value in module.state_dict().items():
        assert torch.equal(value, expected[key].half().float()), key


def test_a_generator_run_ends_with_its_average(home, generator_run):
    pipe = load(home / "generator/model")
    assert_equal(pipe.generator, generator_run.learner.generator)
    assert_equal(pipe.encoder, generator_run.learner.encoder)
    assert pipe.name == "tiny" and pipe.prior is None
    images = pipe(2, prior="gaussian", output_type="numpy").images
    assert images.shape == (2, 16, 16, 3) and np.isfinite(images).all()
    with pytest.raises(UserInputError, match="no energy-based prior"):
        pipe(1)


def test_the_average_is_not_the_last_weights(home, generator_run):
    last, average = saved(home / "generator", "learner"), saved(home / "generator", "ema")
    assert any(not torch.equal(v, average[f"module.{k}"]) for k, v in last.items())
    for key, value in generator_run.learner.state_dict().items():
        assert torch.equal(value, average[f"module.{key}"]), key


def test_a_prior_run_ends_with_the_generator_it_was_trained_on(home, model, prior_run):
    pipe = load(home / "prior/model")
    assert_equal(pipe.prior, prior_run.learner)
    assert_equal(pipe.generator, model.generator)
    assert_equal(pipe.encoder, model.encoder)
    assert any(p.abs().max() > 0 for net in pipe.prior.nets for p in net.out.parameters())
    samples = pipe(2, output_type="numpy")
    assert samples.images.shape == (2, 16, 16, 3) and bool(torch.isfinite(samples.energies).all())


def test_the_frozen_parts_stay_frozen(images, options, tmp_path):
    pipe = tiny_pipeline()
    before = {k: v.clone() for k, v in pipe.generator.state_dict().items()}
    train_prior(short_preset(steps=3), pipe, images, tmp_path / "run", **options)
    for key, value in pipe.generator.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_an_abandoned_starts_generator_is_not_taken_for_ones_own(images, options, tmp_path):
    """A start that stops before its first checkpoint leaves DIR/generator and no run."""
    generator, encoder, _ = tiny_modules(seed=1)
    first, second = tiny_pipeline(), Pipeline(tiny_config(), generator, None, encoder)
    with pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as patch:
        patch.setattr("hebm_sample.training.trainer.Run.save", lambda _: 1 / 0)
        train_prior(short_preset(steps=1), first, images, tmp_path / "run", **options)
    assert_equal(load(tmp_path / "run/generator").generator, first.generator)
    train_prior(short_preset(steps=1), second, images, tmp_path / "run", **options)
    assert_equal(load_run(tmp_path / "run").generator, second.generator)


class TestExport:
    def test_of_an_unfinished_run_is_its_average(self, images, options, tmp_path, monkeypatch):
        forward, calls = GeneratorObjective.forward, []

        def interrupted(self, images, fraction, *rest):
            calls.append(fraction)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return forward(self, images, fraction, *rest)

        monkeypatch.setattr(GeneratorObjective, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_generator(short_preset(), images, tmp_path / "cut", **options)
        assert not (tmp_path / "cut/model").exists()
        export(tmp_path / "cut", tmp_path / "exported", dtype=torch.float32)
        generator = load(tmp_path / "exported").generator
        average = saved(tmp_path / "cut", "ema")
        assert average["n_averaged"] == 4
        for key, value in generator.state_dict().items():
            assert torch.equal(value, average[f"module.generator.{key}"]), key

    @pytest.mark.slow
    def test_round_trip_through_another_process(self, home, prior_run, tmp_path):
        row = export(
            home / "prior",
            tmp_path / "exported",
            name="discs",
            licence="CC0-1.0",
            figures={"gap closed": 0.5},
            notes="Discs drawn by a test.",
            steps=9,
        )
        pipe = load(tmp_path / "exported")
        assert (pipe.name, row.name, row.licence) == ("discs", "discs", "CC0-1.0")
        assert pipe.config.sampling.steps == 9
        assert "Discs drawn by a test." in (tmp_path / "exported/README.md").read_text()
        here = pipe(seeds=[3, 7], output_type="numpy").images
        script = (
            "import sys, numpy, torch; from hebm_sample import Pipeline;"
            # Sums are split over threads, so equal bits need equally many of them.
            f"torch.set_num_threads({torch.get_num_threads()});"
            "pipe = Pipeline.from_pretrained(sys.argv[1], device='cpu');"
            "images = pipe(seeds=[3, 7], output_type='numpy').images;"
            "numpy.save(sys.argv[2], images)"
        )
        out = tmp_path / "images.npy"
        subprocess.run([sys.executable, "-c", script, tmp_path / "exported", out], check=True)
        assert np.array_equal(np.load(out), here)

    def test_saved_again_it_is_the_same_model(self, home, prior_run, tmp_path):
        load(home / "prior/model").save_pretrained(tmp_path / "again")
        for path in (home / "prior/model").glob("*.safetensors"):
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()

    def test_without_a_run(self, tmp_path):
        for folder in (tmp_path, tmp_path / "absent"):
            with pytest.raises(UserInputError, match="no whole checkpoint; give the --out"):
                export(folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestInit:
    def first_average(self, folder):
        tensors = load_file(folder / "checkpoint-00000000/learner.safetensors")
        return {k.removeprefix("generator."): v for k, v in tensors.items()}

    def test_a_generator_is_fine_tuned_from_a_model(self, model, images, options, tmp_path):
        train_generator(
            short_preset(steps=1, seed=5), images, tmp_path / "run", init=model, **options
        )
        first = self.first_average(tmp_path / "run")
        for key, value in model.generator.state_dict().items():
            assert torch.equal(first[key], value), key

    def test_energies_are_a_warm_start_for_mle(
        self, home, prior_run, model, images, options, tmp_path
    ):
        trained = load_run(home / "prior")
        result = train_prior(
            short_preset(steps=2),
            model,
            images,
            tmp_path / "run",
            objective="mle",
            init=trained,
            **options,
        )
        first = self.first_average(tmp_path / "run")
        for key, value in trained.prior.state_dict().items():
            assert torch.equal(first[key], value), key
        assert result.steps == 2 and (tmp_path / "run/model/prior.safetensors").is_file()

    def test_another_architecture_is_refused(self, model, images, options, tmp_path):
        preset = short_preset(steps=1)
        wide = replace(preset, prior=replace(preset.prior, width=20))
        with pytest.raises(UserInputError, match="tiny has other energies than preset tiny"):
            train_prior(wide, model, images, tmp_path / "run", init=tiny_pipeline(), **options)
        with pytest.raises(UserInputError, match="tiny has other energies"):  # it has none
            train_prior(preset, model, images, tmp_path / "run", init=model, **options)
        deep = replace(preset, generator=replace(preset.generator, encoder_cells=2))
        with pytest.raises(UserInputError, match="another architecture than preset tiny"):
            train_generator(deep, images, tmp_path / "run", init=model, **options)


class TestReleaseParametrization:
    @pytest.fixture
    def preset(self):
        preset = short_preset(steps=3)
        return replace(preset, prior=replace(preset.prior, parametrization="release"))

    def test_learns_by_maximum_likelihood_and_samples_by_recovery(
        self, preset, model, images, options, tmp_path
    ):
        train_prior(preset, model, images, tmp_path / "run", objective="mle", **options)
        pipe = load(tmp_path / "run/model")
        assert pipe.config.prior.parametrization == "release"
        sampling = pipe.config.sampling
        assert sampling == sampling_for(preset)
        assert (sampling.sampler, sampling.start, sampling.denoise) == (
            "recovery",
            "u_next",
            False,
        )
        assert np.isfinite(pipe(2, output_type="numpy").images).all()
        for sampler in ("annealed", "flow"):
            with pytest.raises(UserInputError):
                pipe(1, sampler=sampler)

    def test_has_no_score_objective(self, preset, model, images, options, tmp_path):
        with pytest.raises(UserInputError, match="'score' needs .* log_snr"):
            train_prior(preset, model, images, tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()


def test_an_unknown_objective_is_refused(model, images, options, tmp_path):
    with pytest.raises(UserInputError, match="objective is 'vlb'; it can be 'score', 'mle'"):
        train_prior(short_preset(), model, images, tmp_path / "run", objective="vlb", **options)


def test_objectives_refuse_to_touch_the_frozen_generator(model):
    objective = ScoreObjective(model.generator, model.encoder, tiny_pipeline().prior)
    trainable = [k for k, p in objective.named_parameters() if p.requires_grad]
    assert not [k for k in trainable if not k.startswith("energy.")]


# ---- symbols


@pytest.fixture(scope="module")
def labelled(home):
    folder = draw_images(home / "labelled", labels=True)
    return load_images(folder, size=16, cache_dir=home / "cache", progress=False)


@pytest.mark.parametrize("objective", ["score", "mle"])
def test_symbols_start_from_energies_without_them(labelled, options, tmp_path, objective):
    """Nothing is learned in one step at rate 0: what is left is where it began."""
    model, init = tiny_pipeline(), tiny_pipeline()
    preset = labelled_preset(steps=1, learning_rate=0.0)
    options = options | {"objective": objective, "init": init}
    result = train_prior(preset, model, labelled, tmp_path, **options)
    found, before = result.learner.state_dict(), init.prior.state_dict()
    heads = {key for key in found if ".symbol_" in key}
    assert set(found) - set(before) == heads and len(heads) == 4 * len(init.prior.nets)
    for key, value in found.items():
        assert torch.equal(value, torch.zeros_like(value) if key in heads else before[key]), key


def test_symbols_start_from_their_own(labelled, options, tmp_path):
    preset = labelled_preset(steps=3)
    train_prior(preset, tiny_pipeline(), labelled, tmp_path / "first", **options)
    init = load(tmp_path / "first/model")
    still = labelled_preset(steps=1, learning_rate=0.0)
    result = train_prior(still, tiny_pipeline(), labelled, tmp_path / "next", init=init, **options)
    for key, value in result.learner.state_dict().items():
        assert torch.equal(value, init.prior.state_dict()[key]), key
    assert init.prior.nets[0].symbol_out.weight.abs().max() > 0


def test_data_without_the_symbols_labels_are_refused(images, labelled, options, tmp_path):
    preset, model = labelled_preset(steps=1), tiny_pipeline()
    with pytest.raises(
        UserInputError, match=r"has the symbol 'Bright', but .* no label column 'bright'; .*none"
    ):
        train_prior(preset, model, images, tmp_path / "a", **options)
    other = replace(preset, label_columns=())
    with pytest.raises(UserInputError, match=r"no label column 'Bright'; they have \['bright'\]"):
        train_prior(other, model, labelled, tmp_path / "b", **options)
    labels = {"bright": labelled.labels["bright"] + 1}
    with pytest.raises(UserInputError, match=r"'bright' holds 2; symbol 'Bright' has 2 values"):
        train_prior(preset, model, replace(labelled, labels=labels), tmp_path / "c", **options)
