"""The script for a lent GPU trains what `hebm-train recipe` trains, and loses nothing on the way.

Minutes of such a machine are few: a step that learns something else, a graph that repeats a stale
one, or pieces that do not fit together would be noticed when they are over.
"""

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scripts import script
from tiny import tiny_pipeline
from toy import draw_images, labelled_preset, short_preset

from hebm_sample import Pipeline
from hebm_sample.cli.train import main as hebm_train
from hebm_sample.config import TrainingRecord
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.presets import models

CPU = torch.device("cpu")
STEPS = 4
# No rows are held out, so that the last weights are kept, whenever something is written.
SETTINGS = {"steps": STEPS, "ema_length": 0.1, "validation": 0, "warmup_steps": 2}


@pytest.fixture(scope="module", autouse=True)
def tool():
    with script("tools/train_on_gpu.py") as module:
        yield module
    for name in [n for n in sys.modules if n == "gpu" or n.startswith("gpu.")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def gpu(tool):
    """The modules that the script is made of, by name."""
    return {k.removeprefix("gpu."): m for k, m in sys.modules.items() if k.startswith("gpu.")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    draw_images(folder / "images", count=40, labels=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEBM_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def preset():
    return labelled_preset(**SETTINGS)


@pytest.fixture(scope="module")
def packed(gpu, home, preset):
    gpu["packing"].pack(str(home / "images"), preset, home / "packed", progress=False)
    return home / "packed"


def weights(folder):
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    parts = {"generator": pipe.generator, "encoder": pipe.encoder, "prior": pipe.prior}
    return {f"{p}.{k}": v for p, module in parts.items() for k, v in module.state_dict().items()}


class Runs:
    """Sessions of one preset."""

    def __init__(self, gpu, packed, preset):
        self.gpu, self.preset = gpu, preset
        self.packed = (packed, gpu["packing"].read_manifest(packed, preset))

    def of(self, preset):
        """Of another preset, on the same images."""
        other = Runs.__new__(Runs)
        other.gpu, other.preset, other.packed = self.gpu, preset, self.packed
        return other

    def __call__(self, out, resume=False, tell=lambda _: None, **asked):
        steps = {"steps": (STEPS, STEPS, STEPS), "bf16": False, "every": 1e9, "batch": 8}
        asked = self.gpu["session"].Asked(1.0, **(steps | asked))
        session = self.gpu["session"].Session
        return session(self.preset, self.packed, out, asked, CPU, resume=resume, tell=tell)


@pytest.fixture(scope="module")
def runs(gpu, packed, preset):
    return Runs(gpu, packed, preset)


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert runs(out).run()
    return out


# Packing


def test_packed_images_are_the_training_rows(gpu, home, tmp_path):
    preset, pack = labelled_preset(validation=12, heldout=5), gpu["packing"]
    data = str(home / "images")
    manifest = pack.pack(data, preset, tmp_path / "p", piece=0.006, kind="png", progress=False)
    found = pack.unpack(tmp_path / "p", pack.read_manifest(tmp_path / "p", preset), 16, CPU)
    training, held_out = load_images(data, size=16, progress=False).split(12)
    assert np.array_equal(found.images.numpy(), training.images)
    assert np.array_equal(found.held_out.images, held_out.images[:5])
    every = torch.arange(len(training))
    assert torch.equal(found.labels, training.label_rows(every, ("bright",)))
    about = manifest["sizes"]["16"]
    assert (about["data"], about["rule"]) == (training.identity, "last:12")
    assert len(about["files"]) > 2 and all(row["bytes"] < 0.006 * 2**20 for row in about["files"])


def test_packed_labels_are_in_the_order_of_the_symbols_values(gpu, home, tmp_path, monkeypatch):
    """As training reads them: a column can have yes before no."""
    preset, packing = labelled_preset(validation=12), gpu["packing"]
    names, load = {"bright": ("yes", "no")}, packing.load_images

    def turned(*args, **kwargs):
        return replace(load(*args, **kwargs), label_names=names)

    monkeypatch.setattr(packing, "load_images", turned)
    data = str(home / "images")
    packing.pack(data, preset, tmp_path / "p", progress=False)
    found = packing.unpack(tmp_path / "p", packing.read_manifest(tmp_path / "p", preset), 16, CPU)
    rows = load(data, size=16, progress=False).split(12)[0].labels["bright"]
    assert np.array_equal(found.labels[:, 0].numpy(), np.where(rows < 0, rows, 1 - rows))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_few_lossy_rows_are_near_them(gpu, home, tmp_path, kind):
    preset, pack = labelled_preset(validation=12), gpu["packing"]
    data = str(home / "images")
    pack.pack(data, preset, tmp_path / "p", kind=kind, limits={16: 10}, progress=False)
    found = pack.unpack(tmp_path / "p", pack.read_manifest(tmp_path / "p", preset), 16, CPU)
    training = load_images(data, size=16, progress=False).split(12)[0]
    wanted = training.images[np.linspace(0, len(training) - 1, 10).round().astype(int)]
    assert np.abs(found.images.numpy().astype(int) - wanted).mean() < 12


def test_damaged_and_missing_pieces_are_named(gpu, home, preset, tmp_path):
    pack = gpu["packing"]
    pack.pack(str(home / "images"), preset, tmp_path / "p", progress=False)
    path = tmp_path / "p" / "train-16-000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError, match=r"train-16-000.safetensors is damaged"):
        pack.read_manifest(tmp_path / "p", preset)
    path.unlink()
    with pytest.raises(WeightsError, match=r"train-16-000.safetensors is missing"):
        pack.read_manifest(tmp_path / "p", preset)
    with pytest.raises(UserInputError, match="is not empty"):
        pack.pack(str(home / "images"), preset, tmp_path / "p", progress=False)
    with pytest.raises(UserInputError, match=r"images of 16; cifar10 needs 32"):
        pack.read_manifest(tmp_path / "p", models.find_preset("cifar10"))


# Learning


def test_it_learns_what_the_recipe_learns(whole, home, preset, tmp_path, monkeypatch):
    monkeypatch.setitem(models.PRESETS, "tiny", preset)
    line = ["recipe", "tiny", "--data", home / "images", "--out", tmp_path, "--device", "cpu"]
    result = CliRunner().invoke(hebm_train, [*map(str, line), "--quiet"])
    assert result.exit_code == 0, result.output
    one, other = weights(whole / "model"), weights(tmp_path / "tiny" / "model")
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=2e-3, atol=2e-4), name


def test_its_records_say_how_it_was_trained(whole, home):
    records = Pipeline.from_pretrained(whole / "model", device="cpu").config.training
    assert [r.part for r in records] == ["generator", "prior", "decoder"]
    training = load_images(str(home / "images"), size=16, progress=False).split(0)[0]
    for record in records:
        assert (record.steps, record.images, record.kept) == (STEPS, 8 * STEPS, STEPS)
        assert (record.data, record.held_out) == (training.identity, "none")
        assert "by tools/train_on_gpu.py, batches of 8, float32" in str(record)
    assert [len(r.kl_weights) for r in records] == [3, 0, 0]


def test_a_record_notes_one_plain_line():
    plain = TrainingRecord("prior", 1, 1, 1.0, "2026-01-01", "2026-01-01", 1, 16)
    assert "note" not in plain.to_dict()
    noted = replace(plain, note="by tools/x.py, batches of 8")
    assert TrainingRecord.from_dict(noted.to_dict()) == noted
    for text in ("two\nlines", "<b>", "[a](b)", "x" * 301):
        with pytest.raises(UserInputError, match="plain line"):
            replace(plain, note=text)


def test_sittings_make_the_model_of_one(whole, runs, gpu, tmp_path, monkeypatch):
    stepper, count = gpu["steps"].Stepper, []
    step = stepper.step

    def stopping(self, *args):
        count.append(0)
        session.stopped = len(count) in (3, 7, 10)  # in every stage once
        return step(self, *args)

    monkeypatch.setattr(stepper, "step", stopping)
    monkeypatch.setattr(gpu["stage"], "FIRST", 1)
    monkeypatch.setattr(gpu["stage"], "CHECK", 0.0)  # the clock is looked at after every step
    session = runs(tmp_path)
    sittings = 1
    while not (done := session.run()) and sittings < 5:
        session, sittings = runs(tmp_path, resume=True), sittings + 1
    assert done and sittings == 4
    one, other = weights(whole / "model"), weights(tmp_path / "model")
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_another_run_is_not_gone_on_with(whole, runs):
    with pytest.raises(UserInputError, match="other batch; resume with the same options"):
        runs(whole, resume=True, batch=16)
    with pytest.raises(UserInputError, match="go on with --resume"):
        runs(whole)


def test_a_run_with_other_settings_or_another_start_is_not_gone_on_with(whole, runs, gpu, preset):
    """What --set and --start say is of the run as much as its images are."""
    settings = replace(preset.prior_settings, learning_rate=0.5)
    for other, match in (
        (replace(preset, prior_settings=settings), "other recipe"),
        (replace(preset, kl_weight=99.0), "other recipe"),
    ):
        with pytest.raises(UserInputError, match=match):
            runs.of(other)(whole, resume=True)
    model = Pipeline.from_pretrained(whole / "model", device="cpu")
    session = gpu["session"].Session
    asked = gpu["session"].Asked(1.0, steps=(STEPS,) * 3, bf16=False, every=1e9, batch=8)
    with pytest.raises(UserInputError, match="other first, start"):
        how = {"resume": True, "start": (model, 2)}
        session(preset, runs.packed, whole, asked, CPU, **how)


def test_stages_end_by_their_shares(gpu):
    session = gpu["session"]
    asked = session.Asked(10.0, shares=(0.4, 0.4, 0.2), grown=0.25)
    found = gpu["session"].stages(models.find_preset("celebahq"), Path())
    assert session.ends(found, asked) == pytest.approx([180, 360, 450, 525, 600])
    assert session.ends(found, asked, 3) == pytest.approx([0, 0, 0, 300, 600])


# Captured steps


def generator_steps(gpu, preset, packed, record=None, tell=print, count=6):
    """A generator's weights after some steps."""
    stage = gpu["session"].stages(preset, Path())[0]
    job = gpu["parts"].new_job(stage, None, packed, Path(), CPU)
    feed = gpu["steps"].Feed(packed.images, None, stage.settings, None)
    stepper = gpu["steps"].Stepper(
        job.objective,
        job.learner,
        feed,
        stage.settings,
        graph_from=0.0,
        takes_tensor=True,
        record=record,
        bf16=False,
        tell=tell,
    )
    for number in range(count):
        stepper.step(number, count)
    return [p.detach().clone() for p in stepper.parameters], stepper


@pytest.fixture
def decoded(gpu, packed, preset, monkeypatch):
    monkeypatch.setattr(gpu["steps"], "WARM_STEPS", 2)
    return gpu["packing"].unpack(packed, gpu["packing"].read_manifest(packed, preset), 16, CPU)


def recorder(change=lambda: None):
    """What stands for a CUDA graph here: it does the step again when it is told to."""

    def record(step):
        known, replays = {}, []

        def replay():
            replays.append(0)
            change()
            known.update(step())

        record.replays = replays
        return known, replay

    return record


def test_captured_steps_are_the_steps(gpu, preset, decoded):
    plain, _ = generator_steps(gpu, preset, decoded)
    record = recorder()
    found, stepper = generator_steps(gpu, preset, decoded, record)
    assert stepper.eager == 2 and len(record.replays) == 1 + 4
    assert all(map(torch.equal, found, plain))


def test_a_capture_with_other_gradients_is_not_used(gpu, preset, decoded):
    said = []
    plain, _ = generator_steps(gpu, preset, decoded)
    stale = recorder(partial(torch.manual_seed, 5))  # as if its noise had been recorded
    found, stepper = generator_steps(gpu, preset, decoded, stale, said.append)
    assert len(said) == 1 and "gradient is off by" in said[0] and stepper.eager == 6
    assert all(map(torch.equal, found, plain))


def test_where_nothing_can_be_captured_a_new_process_goes_on(
    tool, gpu, whole, packed, preset, tmp_path, monkeypatch
):
    def fail(_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    session, started = gpu["session"].Session, []
    monkeypatch.setitem(models.PRESETS, "tiny", preset)
    monkeypatch.setattr(gpu["steps"], "WARM_STEPS", 2)
    monkeypatch.setattr(gpu["stage"], "record_graph", fail)
    monkeypatch.setattr(session, "captures", lambda s, stage: stage.folder.name not in s.graphless)
    out = tmp_path / "run"
    steps = ",".join([str(STEPS)] * 3)
    line = ["train", "--packed", packed, "--preset", "tiny", "--minutes", 1, "--out", out]
    line = [*map(str, line), "--steps", steps, "--batch", "8", "--float32", "--device", "cpu"]

    def restart(program, arguments):
        assert program == sys.executable
        started.append(arguments[2:])
        raise SystemExit(75)

    monkeypatch.setattr(os, "execv", restart)
    result = None
    for _ in range(4):
        monkeypatch.setattr(sys, "argv", ["train_on_gpu.py", *line])
        result = CliRunner().invoke(tool.main, line)
        if result.exit_code != 75:
            break
        assert "operation not permitted" in result.stderr and "more" not in result.stderr
        line = started[-1]
    # It is one sitting: what was used before it is not counted again.
    assert float(os.environ[tool.BEGAN].split()[1]) == 0
    monkeypatch.delenv(tool.BEGAN)
    assert result.exit_code == 0, result.output
    assert len(started) == 3
    assert all(arguments.count("--resume") == 1 for arguments in started)
    assert sorted(json.loads((out / "no-graphs.json").read_text())) == [
        "1-generator-16",
        "2-prior-16",
        "3-decoder-16",
    ]
    one, other = weights(whole / "model"), weights(out / "model")
    assert all(torch.equal(one[k], other[k]) for k in one)


# Pieces


def test_pieces_join_to_the_model(gpu, tmp_path):
    pieces, pipe = gpu["pieces"], tiny_pipeline()
    for step in (1, 2, 3):
        pieces.write(tmp_path / "run/pieces", pipe, {"step": step}, 0.02)
    found = pieces.newest(tmp_path / "run")
    assert found["about"]["step"] == 3 and len(found["files"]) > 1
    assert len(list((tmp_path / "run/pieces").glob("*.json"))) == 2  # older ones are gone
    assert all(
        p.stat().st_size < 0.02 * 2**20
        for p in pieces.collect(tmp_path / "run", tmp_path / "back")
    )
    joined, _ = pieces.join(tmp_path / "back")
    for part in ("generator", "encoder", "prior"):
        wanted = getattr(pipe, part).state_dict()
        for name, value in getattr(joined, part).state_dict().items():
            assert torch.equal(value, wanted[name].half().float()), name


def test_of_a_torn_copy_the_version_before_is_taken(gpu, tmp_path):
    pieces = gpu["pieces"]
    for step in (1, 2):
        pieces.write(tmp_path, tiny_pipeline(), {"step": step}, 1.0)
    (tmp_path / "model-00002-0.safetensors").write_bytes(b"half of it")
    assert pieces.newest(tmp_path)["about"]["step"] == 1
    (tmp_path / "model-00001-0.safetensors").unlink()
    with pytest.raises(UserInputError, match=r"no whole version.*00002.json lacks.*00001"):
        pieces.newest(tmp_path)


@pytest.mark.parametrize(("count", "stage", "before"), [(6, 1, 2), (10, 2, 2)])
def test_a_lost_run_goes_on_from_its_pieces(
    count, stage, before, runs, tool, gpu, packed, preset, tmp_path, monkeypatch
):
    """What was learned before the stage at hand stays, and that stage begins with what it was."""
    stepper, steps = gpu["steps"].Stepper, []
    step = stepper.step

    def stopping(self, *args):
        steps.append(0)
        session.stopped = len(steps) == count
        return step(self, *args)

    monkeypatch.setattr(gpu["stage"], "FIRST", 1)
    monkeypatch.setattr(gpu["stage"], "CHECK", 0.0)
    session, back, out = runs(tmp_path / "lost"), tmp_path / "back", tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(stepper, "step", stopping)
        assert not session.run()
    gpu["pieces"].collect(tmp_path / "lost", back)
    left, found = gpu["pieces"].join(back)
    assert (found["about"]["stage"], found["about"]["step"]) == (stage, before)

    monkeypatch.setitem(models.PRESETS, "tiny", preset)
    line = ["train", "--packed", packed, "--preset", "tiny", "--minutes", 1, "--out", out]
    line += ["--start", back, "--steps", "2,3,2", "--batch", 8, "--device", "cpu"]
    result = CliRunner().invoke(tool.main, [str(x) for x in line])
    assert result.exit_code == 0, result.output
    names = ["1-generator-16", "2-prior-16", "3-decoder-16"]
    assert sorted(p.name for p in (out / "stages").iterdir()) == names[stage:]
    model = Pipeline.from_pretrained(out / "model", device="cpu")
    parts = [(r.part, r.steps) for r in model.config.training]
    again = {1: [("prior", 2), ("prior", 3), ("decoder", 2)]}
    again[2] = [("prior", STEPS), ("decoder", 2), ("decoder", 2)]
    assert parts == [("generator", STEPS), *again[stage]]
    kept, new = left.encoder.state_dict(), model.encoder.state_dict()
    assert all(torch.equal(kept[k], new[k]) for k in kept)
    kept, new = left.generator.state_dict(), model.generator.state_dict()
    assert all(torch.equal(kept[k], new[k]) for k in kept if not k.startswith("sharp."))
    kept, new = left.prior.state_dict(), model.prior.state_dict()
    assert all(torch.equal(kept[k], new[k]) for k in kept) == (stage == 2)


def test_of_a_run_that_ended_nothing_is_left_to_train(
    whole, tool, packed, preset, tmp_path, monkeypatch
):
    monkeypatch.setitem(models.PRESETS, "tiny", preset)
    line = ["train", "--packed", packed, "--preset", "tiny", "--minutes", 1, "--out", tmp_path]
    line += ["--start", whole, "--steps", "2,2,2", "--batch", 8, "--device", "cpu"]
    result = CliRunner().invoke(tool.main, [str(x) for x in line])
    assert result.exit_code == 2 and "nothing is left to train" in result.stderr


def test_pieces_and_folders_by_command(whole, tool, tmp_path):
    call = CliRunner().invoke
    back, model = tmp_path / "back", tmp_path / "model"
    assert call(tool.main, ["collect", str(whole), "--out", str(back)]).exit_code == 0
    result = call(tool.main, ["join", str(back), "--out", str(model)])
    assert result.exit_code == 0 and "3-decoder-16, step 4 of 4" in result.output
    pipe = Pipeline.from_pretrained(model, device="cpu")
    assert pipe.generator.decoders[0] == "sharp" and len(pipe(2).images) == 2
    result = call(tool.main, ["join", str(tmp_path), "--out", str(model)])
    assert result.exit_code == 2 and "no whole version" in result.stderr


def test_without_score_matching_it_says_so(gpu, home, tmp_path):
    preset = replace(short_preset(**SETTINGS), objective="mle")
    gpu["packing"].pack(str(home / "images"), preset, tmp_path / "p", progress=False)
    with pytest.raises(UserInputError, match="trains its energies by chains"):
        Runs(gpu, tmp_path / "p", preset)(tmp_path / "run", steps=(1, 1, 1))
    assert not (tmp_path / "run").exists()


def test_its_decoder_learns_from_samples_of_one_particle(gpu, tmp_path, monkeypatch):
    """As that of `hebm-train decoder`."""
    asked, call = [], Pipeline.__call__

    def drawn(self, *args, **kwargs):
        asked.append(kwargs.get("particles"))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "__call__", drawn)
    found = gpu["parts"]._pool(tiny_pipeline(), 3, tmp_path, CPU)
    assert asked == [1] and all(len(u) == 3 for u in found)
