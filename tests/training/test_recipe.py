"""One command makes a model, and however often it is interrupted, the same one.

The embedded weights come from it: a stage that went on from another model than the one before, or
began anew, would make weights that nobody can make again.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny import tiny_pipeline
from toy import by_two, draw_images, short_preset

import hebm_sample
from hebm_sample import Pipeline
from hebm_sample.cli.train import main
from hebm_sample.config import FaceCrop, LangevinConfig
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.presets import models
from hebm_sample.training.recipe import finish, run_stage, scaled, stages
from hebm_sample.training.trainer import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_images(tmp_path_factory.mktemp("data") / "images", 300)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setitem(models.PRESETS, "tiny", short_preset())


def recipe(data, out, *more):
    arguments = ["recipe", "tiny", "--data", data, "--out", out, "--device", "cpu", "--quiet"]
    return CliRunner().invoke(main, [str(x) for x in (*arguments, *more)])


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "tiny", short_preset())
        out = tmp_path_factory.mktemp("whole")
        result = recipe(data, out, "-n", 10)
    assert result.exit_code == 0, result.stderr
    return out / "tiny", result.stdout.splitlines()


def test_every_preset_is_a_recipe(tmp_path):
    """Its runs hold out the same rows, and its energies can be learned as it says."""
    for name, preset in models.PRESETS.items():
        chain = stages(preset, tmp_path)
        assert len({s.settings.validation for s in chain if s.preset.name == name}) == 1, name
        assert [s.part for s in chain[:3]] == ["generator", "prior", "decoder"], name
    assert [s.folder.name for s in stages(models.find_preset("images256"), tmp_path)] == [
        "1-generator-64",
        "2-prior-64",
        "3-decoder-64",
        "4-generator-256",
        "5-decoder-256",
    ]


def test_energies_are_learned_as_the_preset_says(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "hebm_sample.training.recipe.train_prior",
        lambda *_, objective, **more: asked.append(objective),
    )
    monkeypatch.setattr("hebm_sample.training.recipe._model", lambda run: tiny_pipeline())
    engine = SimpleNamespace(is_main_process=True, num_processes=1, wait_for_everyone=lambda: None)
    monkeypatch.setattr("hebm_sample.training.recipe.said_by_first", lambda _, value: value)
    for name in ("tiny", "celeba64-paper"):
        _, stage, _ = stages(models.find_preset(name), tmp_path / name)
        run_stage(stage, None, make_accelerator=lambda: engine)
    assert asked == ["score", "mle"]


def test_its_stages_end_in_a_model_that_samples(whole):
    folder, lines = whole
    assert [line.split(":")[0] for line in lines[:3]] == [
        "1-generator-16",
        "2-prior-16",
        "3-decoder-16",
    ]
    assert lines[-1].endswith(f"hebm-sample --dataset {folder / 'model'}")
    pipe = Pipeline.from_pretrained(folder / "model", device="cpu")
    assert [r.part for r in pipe.config.training] == ["generator", "prior", "decoder"]
    assert pipe.generator.decoders[0] == "sharp" and len(pipe(2).images) == 2


def assert_same_figures(a, b):
    """All but the times; means of squares nearly: a sum's order depends on where
    its numbers lie in memory.
    """
    squares = ("u_square", "u_square_posterior")
    for name in squares:
        assert a[name] == pytest.approx(b[name], rel=1e-12)
    others = dict.fromkeys((*squares, "seconds", "sampling_seconds"))
    assert a | others == b | others


def test_it_ends_with_figures_of_that_model(whole, data):
    folder, _ = whole
    path = folder / "evaluation.json"
    found = json.loads(path.read_bytes())
    pipe = Pipeline.from_pretrained(folder / "model", device="cpu")
    assert found["weights"] == pipe.weights_hash and found["num_images"] == 10
    (gap, *_) = found["gaps"].values()
    assert gap["fd_model"] > 0 and found["sampling"]["steps"] == pipe.config.sampling.steps
    path.write_text(json.dumps(found | {"bits": -1.0}))
    result = recipe(data, folder.parent, "-n", 10)  # what was measured is not measured again
    assert result.exit_code == 0 and json.loads(path.read_bytes())["bits"] == -1.0
    others = ({"weights": "of another model"}, {"version": "0.0.1"})
    for other in (*others, {"sampling": found["sampling"] | {"steps": 99}}):
        path.write_text(json.dumps(found | other | {"bits": -1.0}))
        recipe(data, folder.parent, "-n", 10)
        assert_same_figures(json.loads(path.read_bytes()), found)


def test_an_interrupted_evaluation_goes_on_with_its_latents(whole, data, monkeypatch):
    folder, _ = whole
    path = folder / "evaluation.json"
    found = json.loads(path.read_bytes())
    path.unlink()

    def drawn_again(*args, **kwargs):
        raise AssertionError("a sample that was drawn before")

    monkeypatch.setattr(Pipeline, "__call__", drawn_again)
    assert recipe(data, folder.parent, "-n", 10).exit_code == 0
    assert_same_figures(json.loads(path.read_bytes()), found)


def test_the_model_stays_as_its_owner_left_it(whole, data, tmp_path):
    folder, _ = whole
    card, before = folder / "model/README.md", (folder / "model/README.md").read_bytes()
    card.write_text("mine")
    assert recipe(data, folder.parent, "-n", 0).exit_code == 0
    assert card.read_text() == "mine"
    card.write_bytes(before)
    with pytest.raises(UserInputError, match="holds another model than the one"):
        finish(folder, tiny_pipeline(), short_preset())


@pytest.mark.parametrize(
    "name", ["recipe.json", "model/README.md", "3-decoder-16/log.jsonl", "2-prior-16/cat.png"]
)
def test_folders_of_others_are_found_before_the_first_stage(data, tmp_path, name):
    place = tmp_path / "tiny" / name
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    result = recipe(data, tmp_path, "-n", 0)
    assert result.exit_code == 2
    assert "choose another" in result.stderr and result.stderr.count("\n") == 1
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [place]


def test_the_model_has_the_sampler_of_its_preset(whole, tmp_path):
    """Also where its stages began with another one."""
    folder, _ = whole
    model = Pipeline.from_pretrained(folder / "3-decoder-16/model", device="cpu")
    preset = replace(short_preset(), sampling=LangevinConfig(steps=7, start="ancestral"))
    finish(tmp_path, model, preset)
    made = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert made.config == replace(model.config, sampling=preset.sampling)
    assert made.weights_hash == model.weights_hash


def test_too_few_images_to_measure_by_fail_nothing(whole, data, monkeypatch):
    folder, _ = whole
    monkeypatch.setattr("hebm_sample.cli.training.measured.FEWEST", 1000)
    result = recipe(data, folder.parent, "-n", 2000)
    assert result.exit_code == 0
    assert "not evaluated: 1000 images per side" in result.stderr
    assert result.stdout.count("model in") == 1


def failing(self, step):
    raise AssertionError("a step of a stage that is done")


def test_what_older_code_began_goes_on_and_is_measured(whole, data, tmp_path, monkeypatch):
    """Its folder says no more than preset, scale and data, and its model has no calibration; the
    stages that it ended are not trained again.
    """
    folder = tmp_path / "tiny"
    shutil.copytree(whole[0], folder)
    assert list(json.loads((folder / "recipe.json").read_bytes())) == ["preset", "scale", "data"]
    assert not (folder / "model/calibration.json").exists()  # of 36 held-out images
    shutil.rmtree(folder / "model")
    monkeypatch.setattr(Run, "one_step", failing)
    for module in ("evaluation.calibration", "metrics.typicality"):
        monkeypatch.setattr(f"hebm_sample.{module}.FEWEST_IMAGES", 20)
    result = recipe(data, tmp_path, "-n", 0)
    assert result.exit_code == 0, result.output
    assert "calibration: of 36 held-out images" in result.stdout
    pipe = Pipeline.from_pretrained(folder / "model", device="cpu")
    assert pipe.calibration is not None
    monkeypatch.setattr("hebm_sample.evaluation.calibration.calibrate", failing)
    again = recipe(data, tmp_path, "-n", 0)
    assert again.exit_code == 0 and "calibrat" not in again.output
    card = (folder / "model/README.md").read_text()
    assert "](samples.png)" in card and (folder / "model/samples.png").is_file()


def test_too_few_images_to_calibrate_by_fail_nothing(whole, data):
    result = recipe(data, whole[0].parent, "-n", 0)
    assert result.exit_code == 0
    assert result.stderr == (
        "not calibrated: 36 held-out images were given to calibrate tiny; it takes 200, and 2000 "
        "to tell 1 in 1,000\n"
    )


def test_the_crop_of_faces_is_measured_once(whole, data, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "tiny")
    monkeypatch.setitem(models.PRESETS, "tiny", replace(short_preset(), faces=True))
    monkeypatch.setattr(Run, "one_step", failing)
    seen, where = [], tmp_path / "tiny/model"

    def measured(images):
        seen.append(len(list(images)))
        if len(seen) == 1:
            raise EnvironmentFailure("the extra is missing")
        if len(seen) == 2:
            raise UserInputError("a face was found in 0 images")
        return FaceCrop((0.3, 0.4), (0.7, 0.4), (0.5, 0.7))

    monkeypatch.setattr("hebm_sample.align.measure.measure_crop", measured)
    said = [recipe(data, tmp_path, "-n", 0).stderr for _ in range(3)]
    assert "no crop: the extra is missing" in said[0]  # which can be installed
    assert "no crop: a face was found in 0 images" in said[1]
    assert "no crop" not in said[2] and seen == [264, 264]
    (tmp_path / "tiny/crop.json").unlink()
    done = recipe(data, tmp_path, "-n", 0)
    assert "crop: left eye (0.300, 0.400)" in done.stdout
    assert Pipeline.from_pretrained(where, device="cpu").config.crop.mouth == (0.5, 0.7)
    assert recipe(data, tmp_path, "-n", 0).exit_code == 0 and len(seen) == 3


def test_presets_of_faces():
    assert {name for name, preset in models.PRESETS.items() if preset.faces} == {
        *("celebahq", "celebahq-64", "celeba64", "celebahq-paper", "celeba64-paper")
    }


def test_a_dry_run_says_what_each_stage_takes(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
    large = replace(short_preset(), name="large", grown_from="tiny", prior=short_preset().prior)
    monkeypatch.setitem(models.PRESETS, "large", large)
    arguments = ["recipe", "LARGE", "--device", "cpu", "--quiet", "--dry-run", "--scale", "0.5"]
    found = CliRunner().invoke(main, [*arguments, "--data", str(data), "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    names = [stage.folder.name for stage in stages(large, tmp_path)]
    assert [line.split()[0] for line in lines[:-1]] == names and len(names) == 5
    work = "5 steps of 8 images, 40 images to be seen, 0.1 times through 300; "
    assert all(work in line for line in lines[:-1])
    assert re.match(r"about \S+ (s|min) in all on this device, and calibration", lines[-1])
    assert not (tmp_path / "large").exists() and not (tmp_path / "cache").exists()
    costs = SimpleNamespace(steps=5, batch=8, step_seconds=100.0)
    monkeypatch.setattr("hebm_sample.training.costs.dry_run.dry_run", lambda *_, **__: costs)
    alone = CliRunner().invoke(main, arguments)  # neither data nor a folder
    assert alone.exit_code == 0 and "about 42 min in all" in alone.stdout, alone.output
    compiled = CliRunner().invoke(main, [*arguments, "--compile"])
    assert "on this device, timed without --compile, an upper bound" in compiled.stdout


def test_labels_become_symbols_of_a_recipe(tmp_path):
    data = draw_images(tmp_path / "labelled", 60, labels=True)
    line = ("--scale", 0.3, "-n", 0, "--labels", "BRIGHT")
    wrong = recipe(data, tmp_path, "--labels", "nix")
    assert wrong.exit_code == 2 and "no label column 'nix'" in wrong.stderr
    assert not (tmp_path / "tiny").exists()
    done = recipe(data, tmp_path, *line)
    assert done.exit_code == 0, done.output
    pipe = Pipeline.from_pretrained(tmp_path / "tiny/model", device="cpu")
    assert pipe.symbols == {"bright": ("no", "yes")}
    assert recipe(data, tmp_path, *line).exit_code == 0
    for other in (line[:-2], (*line[:-1], "all")):
        result = recipe(data, tmp_path, *other)
        assert result.exit_code == 2 and "a recipe with other labels" in result.stderr
    own = CliRunner().invoke(main, ["recipe", "cifar10", "--labels", "all", "--dry-run"])
    assert "cifar10 has symbols of its own (class); leave --labels out" in own.stderr


def test_killed_twice_it_makes_the_same_model(whole, data, tmp_path, monkeypatch):
    one_step, count = Run.one_step, []

    def cut(self, step):
        count.append(step)
        if len(count) in (6, 20):  # in the generator's run, and in the prior's
            raise KeyboardInterrupt
        return one_step(self, step)

    monkeypatch.setattr(Run, "one_step", cut)
    for _ in range(2):
        assert recipe(data, tmp_path).exit_code != 0
        assert not (tmp_path / "tiny" / "model").exists()
    assert recipe(data, tmp_path).exit_code == 0
    for part in ("generator", "prior", "encoder"):
        one, other = (
            load_file(folder / "model" / f"{part}.safetensors")
            for folder in (whole[0], tmp_path / "tiny")
        )
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_started_again_it_has_nothing_to_do(whole, data, monkeypatch):
    def fail(self, step):
        raise AssertionError("a step of a stage that is done")

    monkeypatch.setattr(Run, "one_step", fail)
    result = recipe(data, whole[0].parent, "-n", 10)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [*whole[1][:3], whole[1][-1]]


def test_processes_take_the_model_when_the_first_has_written_it(tmp_path, monkeypatch):
    """Not before; and whether a stage is done is the first one's word, who may be through with it
    when another looks.
    """
    stage, trained = stages(short_preset(), tmp_path)[0], []

    def train(preset, images, folder, *, accelerator, **_):
        trained.append(accelerator.rank)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            time.sleep(0.3)  # the other is back by now
            tiny_pipeline().save_pretrained(folder / "model")

    def run(engine):
        first = run_stage(stage, None, make_accelerator=lambda: engine)
        if not engine.is_main_process:
            time.sleep(0.1)
        return first, run_stage(stage, None, make_accelerator=lambda: engine)

    monkeypatch.setattr("hebm_sample.training.recipe.train_generator", train)
    found = by_two(monkeypatch, run)
    assert sorted(trained) == [0, 1]
    for models_of_one in found:
        assert {m.weights_hash for m in models_of_one} == {found[0][0].weights_hash}


@pytest.mark.slow
def test_two_processes_go_through_all_stages(data, tmp_path):
    """Over gloo; and where the first cannot go on, the other does not wait for it."""
    root = Path(hebm_sample.__file__).parents[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    env["HEBM_CACHE"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "hebm_sample.training", "recipe", "tiny"]
    command += ["--data", str(data), "--out", str(tmp_path), "-n", "0", "--device", "cpu"]

    def launched(*more):
        return subprocess.run(
            [*command, "--quiet", *more], env=env, capture_output=True, text=True
        )

    done = launched("--scale", "0.05")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("model in") == 1
    pipe = Pipeline.from_pretrained(tmp_path / "tiny/model", device="cpu")
    assert [r.part for r in pipe.config.training] == ["generator", "prior", "decoder"]
    refused = launched("--scale", "0.1")
    assert refused.returncode != 0
    assert "Error: " in refused.stderr and "holds a recipe with other scale" in refused.stderr


def test_another_recipe_is_not_mixed_in(whole, data, tmp_path):
    result = recipe(data, whole[0].parent, "--scale", 0.5)
    assert result.exit_code == 2
    assert "holds a recipe with other scale (scale 1.0)" in result.stderr
    other = draw_images(tmp_path / "other", seed=1)
    result = recipe(other, whole[0].parent)
    assert result.exit_code == 2 and "holds a recipe with other data" in result.stderr


def test_a_damaged_description_is_not_taken_for_none(data, tmp_path):
    out = tmp_path / "tiny"
    assert recipe(data, tmp_path, "--scale", 0.1).exit_code == 0
    (out / "recipe.json").write_text('{"preset": "ti')
    result = recipe(data, tmp_path)
    assert result.exit_code == 2
    assert "does not say what the recipe there was begun with" in result.stderr
    assert (out / "recipe.json").read_text() == '{"preset": "ti'


def test_a_preset_that_does_not_exist(data, tmp_path):
    result = CliRunner().invoke(
        main, ["recipe", "faces", "--data", str(data), "--out", str(tmp_path)]
    )
    assert result.exit_code == 2 and "preset 'faces' does not exist" in result.stderr
    assert not list(tmp_path.iterdir())


def test_what_grows_begins_with_what_it_grows_from(tmp_path):
    found = stages(models.find_preset("celebahq"), tmp_path)
    assert [stage.folder.name for stage in found] == [
        "1-generator-64",
        "2-prior-64",
        "3-decoder-64",
        "4-generator-256",
        "5-decoder-256",
    ]
    assert [stage.base and stage.base.name for stage in found] == [
        None,
        *(stage.folder.name for stage in found[:-1]),
    ]
    assert {stage.preset.model_name for stage in found} == {"celebahq"}


def test_a_scale_cuts_steps_and_nothing_else():
    preset = models.find_preset("cifar10")
    cut = scaled(preset, 0.01)
    for part in ("generator", "prior", "decoder"):
        full, few = (getattr(p, f"{part}_settings") for p in (preset, cut))
        assert few.steps == max(1, round(full.steps * 0.01))
        assert replace(few, steps=full.steps, heldout=full.heldout) == full
    assert replace(scaled(preset, 1.0), decoder=preset.decoder) == preset
    with pytest.raises(UserInputError, match="scale is 0"):
        scaled(preset, 0)
