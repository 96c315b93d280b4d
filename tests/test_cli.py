"""Guards: what is typed reaches the pipeline, what it returns reaches the disk whole, and every
failure is one line with the promised exit status.

Without it an option could be parsed and ignored, a typing slip could cost minutes of sampling, and
an interrupted run could leave half an image. Below, the pipeline is a stand-in; where
images are steered it is the real one, with a tiny model.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageChops
from tiny import symbolic_config, symbolic_pipeline, tiny_config, tiny_pipeline

import hebm_sample
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.options import SECTIONS
from hebm_sample.cli.requests.sample import RANKINGS
from hebm_sample.cli.sample import main
from hebm_sample.cli.work import sampling
from hebm_sample.config import (
    GeneratorConfig,
    LangevinConfig,
    ModelConfig,
    PriorConfig,
    ScaleConfig,
)
from hebm_sample.errors import HubError, NonFiniteSampleError, UserInputError, WeightsError
from hebm_sample.hub import resolve
from hebm_sample.hub.manifest import REQUIRED_FILES, FileRow, ModelRow
from hebm_sample.io import animation, images
from hebm_sample.pipeline.identity import description_hash
from hebm_sample.pipeline.outputs import Samples, Trajectory
from hebm_sample.pipeline.states import Ranking

SIZE = 8
# Of a chain's settings those that have no key of their own.
SETTINGS = {
    "kernel": "corrected",
    "start": "flow",
    "reference_variance": "sigma_next",
    "step_scale": 1.5,
    "denoise": True,
    "early_share": 1.0,
    "step_decay": 1.0,
    "momentum": 0.0,
    "metropolis": False,
    "precondition": False,
}


class FakePipeline:
    """One flat image per seed, whose red is the seed; records its calls."""

    loads: list
    calls: list
    symbols = {}
    generator = types.SimpleNamespace(chosen_decoder=lambda decoder: decoder or "likelihood")
    weights_hash, dtype = "0a", torch.float32
    model = types.SimpleNamespace()
    failure: BaseException | None = None

    def __init__(self, name, revision):
        self.name, self.revision = name, revision
        self.config = ModelConfig(
            name=Path(name).name,
            generator=GeneratorConfig(SIZE, (ScaleConfig(4, 4, 1, 8),)),
            prior=PriorConfig((0.1, 0.5, 1.0)),
            sampling=LangevinConfig(steps=6, temperature=0.9),
        )

    @classmethod
    def from_pretrained(cls, name, **options):
        cls.loads.append((name, options))
        if name == "unknown":
            raise UserInputError("unknown model 'unknown'; known are celebahq")
        return cls(name, options["revision"])

    def total_steps(self, *, num_images, batch_size, steps, prior):
        return 0 if prior == "gaussian" else -(-num_images // batch_size) * (steps or 6)

    def __call__(self, *, seeds, steps, prior, batch_size, progress, **options):
        self.calls.append({"seeds": seeds, "steps": steps, "prior": prior, **options})
        if self.failure is not None and len(self.calls) > 1:
            raise self.failure
        for _ in range(self.total_steps(num_images=1, batch_size=1, steps=steps, prior=prior)):
            progress(1)
        return Samples(
            images=[Image.new("RGB", (SIZE, SIZE), (s % 256, 0, 0)) for s in seeds],
            latents=(),
            energies=torch.tensor([[s, 0.5] for s in seeds]),
            seeds=tuple(seeds),
        )

    def vary(self, source, keep, num_variations, *, seeds, **options):
        return self(seeds=seeds, prior="ebm", **options)

    def trajectory(self, **options):
        return Trajectory((self(prior="ebm", **options),))

    def layers(self, seed, columns, **options):
        rows = len(self.config.generator.latent_shapes)
        return self(seeds=list(range(rows * columns)), prior="ebm", **options)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    pipeline = type("Pipeline", (FakePipeline,), {"loads": [], "calls": []})
    stand_in = types.SimpleNamespace(Pipeline=pipeline)
    monkeypatch.setitem(sys.modules, "hebm_sample.pipeline.pipeline", stand_in)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.chdir(tmp_path)
    return pipeline


def hebm_sample_command(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def refused(result, status, message):
    """One line on stderr, nothing on stdout, the status."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr, result.stderr


# What is written


def test_defaults_write_sixteen_images_as_a_grid(fake, tmp_path):
    result = hebm_sample_command("--dataset", "celebahq")
    assert result.exit_code == 0
    assert result.stdout.startswith("celebahq.png: 16 images in ")
    assert result.stderr == ""
    with Image.open("celebahq.png") as written:
        assert written.size == (4 * SIZE + 6, 4 * SIZE + 6)
        assert written.getpixel((SIZE + 2, SIZE + 2)) == (5, 0, 0)
        assert written.text == {  # type: ignore[attr-defined]
            "seeds": "0-15",
            "model": "celebahq",
            "resolution": "8",
            "sampler": "recovery",
            "steps": "6",
            "temperature": "0.9",
            "decoder": "likelihood",
            "prior": "ebm",
            "version": "hebm_sample 0.1.0",
            "weights": "0a",
            "description": description_hash(fake("celebahq", None).config),
            "dtype": "float32",
            "sampling": " ".join(f"{name}={value}" for name, value in SETTINGS.items()),
            "command": "hebm-sample --dataset celebahq --resolution 8 --seeds 0-15 "
            "--sampler recovery --steps 6 --temperature 0.9 --decoder likelihood "
            "--out celebahq.png",
        }
    assert os.listdir(tmp_path) == ["celebahq.png"]


def test_outdir_writes_one_file_a_seed(fake):
    arguments = ["--dataset", "celebahq", "--seeds", "3,7,12345", "--outdir", "a/b", "--quiet"]
    result = hebm_sample_command(*arguments, "--revision", "abc", "--batch", 2)
    assert (result.exit_code, result.output) == (0, "")
    assert sorted(os.listdir("a/b")) == ["seed0003.png", "seed0007.png", "seed12345.png"]
    with Image.open("a/b/seed0007.png") as image:
        assert image.getpixel((0, 0)) == (7, 0, 0)
        assert image.text["seed"] == "7"  # type: ignore[attr-defined]
        assert image.text["revision"] == "abc"  # type: ignore[attr-defined]
    assert [call["seeds"] for call in fake.calls] == [[3, 7], [12345]]


def test_every_option_reaches_the_pipeline(fake):
    result = hebm_sample_command(
        *("--dataset", "me/model", "-n", 2, "--resolution", 64, "--sampler", "flow"),
        *("--steps", 20, "--temperature", 0.7, "--device", "cpu", "--dtype", "bfloat16"),
        *("--offline", "--revision", "v1", "--cache-dir", "cache", "--decoder", "likelihood"),
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("model.png: 2 images")
    assert fake.loads == [
        (
            "me/model",
            {
                "resolution": 64,
                "revision": "v1",
                "cache_dir": Path("cache"),
                "local_files_only": True,
                "device": "cpu",
                "dtype": torch.bfloat16,
            },
        )
    ]
    assert fake.calls == [
        {
            "seeds": [0, 1],
            "sampler": "flow",
            "steps": 20,
            "temperature": 0.7,
            "decoder": "likelihood",
            "prior": "ebm",
            "output_type": "pil",
        }
    ]


def test_json_is_one_object(fake):
    result = hebm_sample_command(
        "--dataset", "celebahq", "--seeds", "7,3", "--batch", 1, "--steps", 4, "--json"
    )
    answer = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert answer.pop("seconds") >= 0
    assert answer == {
        "files": ["celebahq.png"],
        "seeds": [7, 3],
        "skipped": 0,
        "energies": [[7.0, 0.5], [3.0, 0.5]],
        "model": "celebahq",
        "resolution": 8,
        "sampler": "recovery",
        "steps": 4,
        "temperature": 0.9,
        "decoder": "likelihood",
        "prior": "ebm",
        "revision": None,
        "version": "hebm_sample 0.1.0",
        "weights": "0a",
        "description": description_hash(fake("celebahq", None).config),
        "dtype": "float32",
        "sampling": SETTINGS,
    }


def test_gaussian_prior_has_no_chain(fake):
    result = hebm_sample_command(
        *("--dataset", "celebahq", "-n", 1, "--gaussian-prior", "--json", "--temperature", 0.5)
    )
    answer = json.loads(result.stdout)
    assert (answer["prior"], answer["sampler"], answer["steps"]) == ("gaussian", None, None)
    assert fake.calls[0]["prior"] == "gaussian"
    with Image.open("celebahq.png") as image:
        assert image.text["temperature"] == "0.5"  # type: ignore[attr-defined]
        assert not {"sampler", "steps"} & set(image.text)  # type: ignore[attr-defined]


def test_existing_images_are_skipped_if_they_are_the_same(fake):
    arguments = ["--dataset", "celebahq", "--outdir", "out"]
    assert hebm_sample_command(*arguments, "--seeds", "1").exit_code == 0
    written = Path("out/seed0001.png").read_bytes()
    result = hebm_sample_command(*arguments, "-n", 3, "--skip-existing")
    assert result.stdout.startswith("out: 2 images in ")
    assert result.stdout.endswith(", 1 already there\n")
    assert Path("out/seed0001.png").read_bytes() == written
    answer = json.loads(
        hebm_sample_command(*arguments, "-n", 3, "--skip-existing", "--json").stdout
    )
    assert (answer["files"], answer["seeds"], answer["skipped"]) == ([], [], 3)
    assert answer["model"] == "celebahq"
    assert hebm_sample_command(*arguments, "-n", 3).exit_code == 0  # the same images again
    assert [call["seeds"] for call in fake.calls] == [[1], [0, 2], [0, 1, 2]]


@pytest.mark.parametrize("more", [[], ["--skip-existing"]])
def test_what_was_made_otherwise_is_not_overwritten_unasked(fake, more):
    arguments = ["--dataset", "celebahq", "-n", 3, "--outdir", "out", *more]
    assert hebm_sample_command(*arguments).exit_code == 0
    written = Path("out/seed0000.png").read_bytes()
    other = [*arguments, "--temperature", 0.5]
    reason = "out/seed0000.png would be overwritten, and was made otherwise: temperature is '0.9'"
    refused(hebm_sample_command(*other), 2, reason)
    assert Path("out/seed0000.png").read_bytes() == written
    assert hebm_sample_command(*other, "--overwrite").exit_code == 0
    assert Path("out/seed0000.png").read_bytes() != written
    Path("out/seed0001.png").write_bytes(b"mine")
    refused(hebm_sample_command(*other), 2, "does not say how it was made; write to another")
    assert Path("out/seed0001.png").read_bytes() == b"mine"


def test_grids_under_names_that_nobody_typed_are_not_overwritten_unasked(fake):
    assert hebm_sample_command("celebahq", "-n", 4).exit_code == 0
    assert hebm_sample_command("celebahq", "-n", 4).exit_code == 0
    result = hebm_sample_command("celebahq", "-n", 9)
    refused(result, 2, "celebahq.png would be overwritten, and was made otherwise: seeds is '0-3'")
    assert "--overwrite" in result.stderr
    assert hebm_sample_command("celebahq", "-n", 9, "--out", "celebahq.png").exit_code == 0
    assert hebm_sample_command("celebahq", "-n", 4, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["celebahq"], ["--dataset", "celebahq"]),
        (["-d", "celebahq"], ["--dataset", "celebahq"]),
        (["Celeba_HQ"], ["--dataset", "celebahq"]),
        (["celebahq", "--num", 3, "--trunc", 1], ["-d", "celebahq", "-n", 3, "--temperature", 1]),
        (["celebahq", "--seed", 7], ["-d", "celebahq", "--seeds", 7]),
        (["celebahq", "-o", "x.png"], ["-d", "celebahq", "--out", "x.png"]),
        (["celebahq", "--sampler", "FLOW"], ["-d", "celebahq", "--sampler", "flow"]),
    ],
)
def test_words_with_two_spellings(fake, words, same):
    answers = []
    for arguments in (words, same):
        result = hebm_sample_command(*arguments, "--json", "--overwrite")
        assert result.exit_code == 0, result.output
        answers.append(json.loads(result.stdout) | {"seconds": 0})
    assert answers[0] == answers[1]
    assert fake.calls[0] == fake.calls[1]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--cfg", "--guidance"),
        ("--num-inference-steps", "--steps"),
        ("--truncation-psi", "--temperature"),
        ("--num_samples", "--num-images"),
        ("--prompt", "--attr"),
        ("--batch-size", "--batch"),
        ("--network", "--dataset"),
        ("--stepz", "--steps"),
        ("--output", "--out"),
    ],
)
def test_unknown_options_suggest_what_is_meant(fake, typed, meant):
    result = hebm_sample_command("celebahq", typed, "3")
    refused(result, 2, f"{typed}")
    assert meant in result.stderr.partition(typed)[2]


def test_columns_and_scale(fake):
    result = hebm_sample_command("celebahq", "-n", 6, "--columns", 6, "--scale", 3, "-o", "a.png")
    assert result.exit_code == 0, result.output
    with Image.open("a.png") as image:
        assert image.size == (6 * 3 * SIZE + 10, 3 * SIZE)
        assert image.getpixel((5 * (3 * SIZE + 2) + 20, 20)) == (5, 0, 0)
    assert hebm_sample_command("celebahq", "-n", 1, "--scale", 2, "--outdir", "s").exit_code == 0
    with Image.open("s/seed0000.png") as image:
        assert image.size == (2 * SIZE, 2 * SIZE)


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "webp", "gif"])
def test_formats_by_ending(fake, ending):
    out = Path("new/folder") / f"a.{ending}"
    result = hebm_sample_command("celebahq", "-n", 4, "--out", out)
    assert result.exit_code == 0, result.output
    with Image.open(out) as image:
        assert image.format == {"jpg": "JPEG"}.get(ending, ending.upper())
        assert image.size == (2 * SIZE + 2, 2 * SIZE + 2) and getattr(image, "n_frames", 1) == 1
        red, *others = image.convert("RGB").getpixel((SIZE + 6, SIZE + 6))
        assert abs(red - 3) <= 2 and max(others) <= 2
    assert images.read_text(out)["seeds"] == "0-3"


def test_a_folder_gives_the_grid_its_name(fake, tmp_path):
    (tmp_path / "model").mkdir()
    assert hebm_sample_command("--dataset", "./model/", "-n", 1).exit_code == 0
    assert (tmp_path / "model.png").is_file()
    assert fake.loads[0][0] == "./model/"


def test_the_bar_counts_gradients_on_a_terminal(fake, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, **options):
            self.done, self.options = 0, options
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            self.done += count

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    hebm_sample_command("--dataset", "celebahq", "-n", 5, "--batch", 2)
    hebm_sample_command("--dataset", "celebahq", "-n", 1, "--quiet", "--overwrite")
    assert [(bar.done, bar.options["total"]) for bar in bars] == [(18, 18), (6, 6)]
    assert [bar.options["disable"] for bar in bars] == [None, True]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset is missing; `hebm-sample --list` shows the models"),
        (["--dataset", ""], "--dataset is missing"),
        (["--dataset", "a", "--out", "b.png", "--outdir", "c"], "give one of the two"),
        (["--dataset", "a", "--out", "b.bmp"], "end it in .png, .jpg, .jpeg, .webp or .gif"),
        (["--dataset", "a", "--trajectory", "--out", "b.mp4"], "end it in .png, .jpg, .jpeg,"),
        (["--dataset", "a", "--out", "b"], "end it in .png, .jpg, .jpeg, .webp or .gif"),
        (["--dataset", "a", "--trajectory", "--seconds", "3"], "ends in .gif or .webp"),
        (["--dataset", "a", "--trajectory", "--seconds", "nan"], "not a finite number"),
        (["--dataset", "a", "--skip-existing"], "--skip-existing goes with --outdir"),
        (["--dataset", "a", "-n", "3", "--seeds", "0-3"], "--seeds names 4; give one of the two"),
        (
            ["--dataset", "a", "--gaussian-prior", "--steps", "3"],
            "leave --sampler, --steps and --particles",
        ),
        (
            ["--dataset", "a", "--gaussian-prior", "--sampler", "flow"],
            "--gaussian-prior has no chain",
        ),
        (["--dataset", "a", "--seeds", "4-1"], "the range '4-1' runs backwards"),
        (["--dataset", "a", "--seeds", "-3"], "'-3' is not a seed"),
        (["--dataset", "a", "--seeds", "1,1"], "seed 1 is given twice"),
        (["--dataset", "a", "-n", "0"], "0 is not in the range 1<=x<=100000"),
        (["--dataset", "a", "-n", "many"], "'many' is not a valid integer"),
        (["--dataset", "a", "--steps", "0"], "'--steps': 0 is not in the range"),
        (["--dataset", "a", "--batch", "0"], "'--batch': 0 is not in the range"),
        (["--dataset", "a", "--temperature", "-1"], "'-1' is no number from 0 to 10, or one per"),
        (["--dataset", "a", "--temperature", "nan"], "'nan' is no number from 0 to 10"),
        (["--dataset", "a", "--temperature", "1,,1"], "'1,,1' is no number from 0 to 10"),
        (["--dataset", "a", "--class", ""], "'' names no value; write cat, ~cat or cat,dog"),
        (["--dataset", "a", "--class", "cat,~"], "'cat,~' names no value"),
        (["--dataset", "a", "--attr", "=yes"], "'=yes' names no value; write NAME, NAME=value"),
        (["--dataset", "a", "--attr", "Male="], "'Male=' names no value"),
        (
            ["--dataset", "a", "--class", "x", "--class", "y"],
            "on class is x and y; give one",
        ),
        (["--dataset", "a", "--class", "x", "--attr", "class=y"], "on class is x and y; give one"),
        (["--dataset", "a", "--attr", "M", "--attr", "M=no"], "the condition on M is yes and no"),
        (["--dataset", "a", "--guidance", "2"], "add --class or --attr, or leave it out"),
        (
            ["--dataset", "a", "--attr", "M", "--guidance", "x"],
            "'x' is no weight; write W or NAME=W",
        ),
        (["--dataset", "a", "--attr", "M", "--guidance", "nan"], "'nan' is no weight"),
        (["--dataset", "a", "--attr", "M", "--guidance", "M=101"], "W from 0 to 100"),
        (["--dataset", "a", "--attr", "M", "--guidance", "=2"], "'=2' is no weight"),
        (
            ["--dataset", "a", "--attr", "M", "--guidance", "2", "--guidance", "3"],
            "--guidance is given as 2 and 3; give one",
        ),
        (
            ["--dataset", "a", "--attr", "Male", "--guidance", "Mole=2"],
            "names 'Mole' (did you mean 'Male'?), which has no condition; there",
        ),
        (["--dataset", "a", "--keep-top", "2"], "--keep-top needs --from-seed, or --mix"),
        (["--dataset", "a", "--from-seed", "2"], "--from-seed needs --keep-top"),
        (["--dataset", "a", "--from-seed", "1,2", "--keep-top", "1"], "'1,2' is more than one"),
        (["--dataset", "a", "--from-seed", "-1", "--keep-top", "1"], "'-1' is not a seed"),
        (["--dataset", "a", "--keep-top", "-1"], "-1 is not in the range"),
        (["--dataset", "a", "--mix", "1"], "'1' is not A:B, two different seeds such as 7:12"),
        (["--dataset", "a", "--mix", "1:1"], "'1:1' is not A:B"),
        (["--dataset", "a", "--mix", "1:x"], "'x' is not a seed"),
        (["--dataset", "a", "--mix", "1:2", "-n", "3"], "leave --seeds and -n out"),
        (["--dataset", "a", "--mix", "1:2", "--outdir", "c"], "--mix is one grid"),
        (["--dataset", "a", "--layers", "--trajectory"], "--layers and --trajectory do not go"),
        (["--dataset", "a", "--layers", "--seeds", "1,2"], "--layers shows one seed; --seeds"),
        (["--dataset", "a", "--layers", "-n", "1"], "give 2 or more"),
        (["--dataset", "a", "--layers", "--best-of", "2"], "--best-of ranks whole images"),
        (["--dataset", "a", "--best-of", "0"], "0 is not in the range"),
        (["--dataset", "a", "--rank-by", "energy"], "give --best-of N"),
        (["--dataset", "a", "--best-of", "2", "--rank-by", "size"], "'density', 'energy'"),
        (["--dataset", "a", "--gaussian-prior", "--layers"], "samples all groups at once"),
        (["--dataset", "a", "--gaussian-prior", "--attr", "M"], "without the energies"),
        (["--dataset", "a", "--gaussian-prior", "--best-of", "2"], "without the energies"),
        (["--dataset", "a", "--sampler", "best"], "'recovery', 'annealed', 'flow'"),
        (["--dataset", "a", "--device", "tpu"], "'auto', 'cpu', 'cuda'"),
        (["--dataset", "a", "--dtype", "float16"], "'float32', 'bfloat16'"),
        (["--dataset", "a", "--sead", "1"], "--sead"),
        (["--dataset", "a", "extra"], "the model is given as 'a' and as 'extra'; give one"),
        (["a", "b"], "unexpected extra argument"),
        (["a", "--layers", "--columns", "3"], "--columns is of a grid of samples"),
        (["a", "--outdir", "b", "--columns", "3"], "--columns is of a grid of samples"),
        (["a", "--trajectory", "--scale", "3"], "--scale does not go with --trajectory"),
        (["a", "--from-seed", "4294967295", "--keep-top", "1"], "no seeds follow 4294967295"),
        (["--dataset"], "requires an argument"),
        (["--list", "--dataset", "a"], "--list goes with --json at most"),
        (["--dataset", "a", "--out", "file/such/a.png"], "it is not a possible path"),
        (["--dataset", "a", "--out", "folder.png"], "it is a folder; give a file name"),
        (["--dataset", "a", "--outdir", "file"], "file is not a folder"),
        (["--dataset", "a", "--outdir", "taken", "-n", "1"], "it is a folder"),
    ],
)
def test_what_is_wrongly_typed_is_refused_before_sampling(fake, tmp_path, arguments, message):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "taken" / "seed0000.png").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    refused(hebm_sample_command(*arguments), 2, message)
    assert fake.loads == []
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png", "taken"]


def test_a_grid_that_no_viewer_opens_is_refused(fake, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 300)
    result = hebm_sample_command("--dataset", "celebahq", "-n", 4)
    refused(result, 2, "a grid of 4 images would have 18 x 18 pixels; use --outdir")
    assert fake.calls == []


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (NonFiniteSampleError([3], 2, 17), 1, "seed 3 became non-finite at level 2, step 17"),
        (HubError("no network;\n  use --offline"), 1, "no network; use --offline"),
        (WeightsError("prior.safetensors is corrupt"), 1, "prior.safetensors is corrupt"),
        (OSError(5, "Input/output error"), 1, "Input/output error"),
        (MemoryError(), 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA"), 1, "too little memory for --batch 2"),
        (RuntimeError("[x] can't allocate memory: 9 bytes"), 1, "too little memory for --batch 2"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_keep_what_is_done(fake, tmp_path, monkeypatch, failure, status, message):
    monkeypatch.setattr(fake, "failure", failure)
    common = ["--dataset", "celebahq", "-n", 4, "--batch", 2]
    refused(hebm_sample_command(*common, "--outdir", "out"), status, message)
    # The mark is for the next run, which goes on from here.
    assert sorted(os.listdir("out")) == [".unfinished-0", "seed0000.png", "seed0001.png"]
    fake.calls.clear()
    refused(hebm_sample_command(*common, "--out", "grid.png"), status, message)
    assert os.listdir(tmp_path) == ["out"]


def test_an_unknown_model_is_one_line(fake, tmp_path):
    refused(hebm_sample_command("--dataset", "unknown"), 2, "known are celebahq")
    refused(hebm_sample_command("--dataset", "unknown", "--outdir", "out"), 2, "known are")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_the_surroundings_fault(fake, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "fsync", full)
    result = hebm_sample_command("--dataset", "celebahq", "-n", 1)
    refused(result, 1, "cannot write celebahq.png: No space left on device")
    assert os.listdir(tmp_path) == []


# --list


@pytest.fixture
def models(monkeypatch, tmp_path):
    (tmp_path / "celebahq-64").mkdir()
    config = json.dumps(symbolic_config().to_dict())
    (tmp_path / "celebahq-64" / "config.json").write_text(config)
    monkeypatch.setattr(resolve, "EMBEDDED", tmp_path)

    def row(name, resolution, folder, repo_id, figures):
        return ModelRow(
            name=name,
            resolution=resolution,
            folder=folder,
            repo_id=repo_id,
            licence="CC-BY-NC-4.0",
            files=dict.fromkeys(REQUIRED_FILES, FileRow(1, "0" * 64)),
            figures=figures,
        )

    rows = [
        row("cifar10", 32, None, "me/cifar10", {}),
        row("celebahq", 64, "celebahq-64", None, {"gap_closed": 0.8512}),
    ]
    monkeypatch.setattr(hebm_sample, "list_models", lambda: rows, raising=False)


def test_list_is_a_table(models):
    result = hebm_sample_command("--list")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "name      resolution  where       licence       gap closed  symbols",
        "celebahq  64          embedded    CC-BY-NC-4.0  0.85        class (3), Smiling",
        "cifar10   32          me/cifar10  CC-BY-NC-4.0  -           -",
    ]


def test_list_says_what_steers_weakly(models, monkeypatch):
    rows = hebm_sample.list_models()
    rows[1] = replace(rows[1], figures={"steers weakly": "Smiling"})
    monkeypatch.setattr(hebm_sample, "list_models", lambda: rows)
    lines = hebm_sample_command("--list").stdout.splitlines()
    assert lines[1].endswith("class (3), Smiling (weak)")
    assert lines[-1].startswith("(weak): guidance moves it less than half")
    listed = json.loads(hebm_sample_command("--list", "--json").stdout)["models"]
    assert [row["weak"] for row in listed] == [["Smiling"], []]


def test_list_as_json(models):
    listed = json.loads(hebm_sample_command("--list", "--json").stdout)["models"]
    assert [row["name"] for row in listed] == ["celebahq", "cifar10"]
    assert [row["embedded"] for row in listed] == [True, False]
    assert listed[0]["figures"] == {"gap_closed": 0.8512}
    symbols = {"class": ["a", "b", "c"], "Smiling": ["no", "yes"]}
    assert [row["symbols"] for row in listed] == [symbols, None]
    assert [row["training"] for row in listed] == [[], []]


def test_list_as_json_says_what_a_model_saw(models, tmp_path):
    path = tmp_path / "celebahq-64" / "config.json"
    saw = [{"part": "generator", "images": 800_000, "steps": 12_500}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": saw}))
    listed = json.loads(hebm_sample_command("--list", "--json").stdout)["models"]
    assert listed[0]["training"] == saw


def test_a_config_that_cannot_be_read_spoils_no_listing(models, tmp_path):
    (tmp_path / "celebahq-64" / "config.json").write_text("{")
    assert hebm_sample_command("--list").stdout.splitlines()[1].endswith("0.85        -")


# What is steered: the real pipeline, a tiny model with the symbols `class` and `Smiling`


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    symbolic_pipeline(steps=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return hebm_sample.Pipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def sample(folder, tmp_path, monkeypatch):
    """Run on the tiny model; the written and what --json said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        common = ("--dataset", folder, "--device", "cpu", "--json")
        result = hebm_sample_command(*arguments, *common)
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        with Image.open(answer["files"][0]) as written:
            written.load()
        return written, answer

    return run


def alike(a, b):
    return a.size == b.size and ImageChops.difference(a, b.convert(a.mode)).getbbox() is None


@pytest.mark.parametrize(
    ("arguments", "symbols", "guidance"),
    [
        (["--class", "b"], {"class": "b"}, 1.0),
        (["--class", "a,b"], {"class": ["a", "b"]}, 1.0),
        (["--class", "~b", "--guidance", "3"], {"class": "~b"}, 3.0),
        (["--attr", "Smiling"], {"Smiling": "yes"}, 1.0),
        (
            ["--attr", "Smiling=~yes", "--attr", "class=a,c", "--attr", "class=c,a"]
            + ["--guidance", "2", "--guidance", "class=0.5"],
            {"Smiling": "no", "class": ["a", "c"]},
            {"Smiling": 2.0, "class": 0.5},
        ),
    ],
)
def test_conditions_reach_the_pipeline(sample, pipe, arguments, symbols, guidance):
    written, answer = sample("-n", 2, *arguments)
    expected = pipe(2, symbols=symbols, guidance=guidance)
    assert alike(written, expected.grid())
    assert answer["energies"] == expected.energies.tolist()
    assert not alike(written, pipe(2).grid())


def test_conditions_are_written_down(sample):
    written, answer = sample("-n", 1, "--class", "a,b", "--attr", "Smiling=no", "--guidance", "2")
    assert answer["symbols"] == {"class": ["a", "b"], "Smiling": "no"}
    assert answer["guidance"] == {"class": 2.0, "Smiling": 2.0}
    assert written.text["symbols"] == "class=a,b Smiling=no"
    assert written.text["guidance"] == "class=2.0 Smiling=2.0"


def test_particles_are_the_pipelines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = tiny_pipeline(tiny_config(start="ancestral", steps=9))
    pipe.save_pretrained(tmp_path / "model")
    words = ["--dataset", "./model", "-n", "2", "--device", "cpu", "--out", "a.png", "--json"]
    result = hebm_sample_command(*words, "--particles", "3")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["particles"] == 3
    with Image.open("a.png") as written:
        loaded = hebm_sample.Pipeline.from_pretrained("./model", device="cpu")
        assert alike(written, loaded(2, particles=3).grid())
        assert not alike(written, loaded(2).grid())
        assert written.text["particles"] == "3"
        assert "--particles 3" in written.text["command"]
    result = hebm_sample_command(*words, "--overwrite", "--particles", "3", "--sampler", "flow")
    assert result.exit_code == 2
    assert "particles is 3; they need start='ancestral'" in result.output


def test_one_particle_of_a_model_that_has_several_is_said(tmp_path, monkeypatch):
    """The line in the file would draw another image without it."""
    monkeypatch.chdir(tmp_path)
    tiny_pipeline(tiny_config(start="ancestral", particles=3, steps=9)).save_pretrained("model")
    words = ["--dataset", "./model", "--device", "cpu", "--seeds", "1", "--outdir"]
    for name, more in (
        ("one", ["--particles", "1"]),
        ("own", []),
        ("flow", ["--sampler", "flow"]),
    ):
        result = hebm_sample_command(*words, name, *more)
        assert result.exit_code == 0, result.output
        with Image.open(f"{name}/seed0001.png") as written:
            said = "3" if name == "own" else "1"
            assert written.text["particles"] == said
            line = shlex.split(written.text["command"])
            pixels = written.tobytes()
        assert line[line.index("--particles") + 1] == said
        line[line.index("--outdir") + 1] = f"{name}-again"
        assert hebm_sample_command(*line[1:], "--device", "cpu").exit_code == 0
        with Image.open(f"{name}-again/seed0001.png") as again:
            assert again.tobytes() == pixels


def test_best_of_is_the_pipelines(sample, pipe):
    written, answer = sample("-n", 8, "--best-of", 3)
    assert alike(written, pipe(8, best_of=3).grid())
    assert (answer["best_of"], answer["rank_by"]) == (3, "density")
    assert "--best-of 3 --rank-by density" in written.text["command"]
    other, answer = sample("-n", 8, "--best-of", 3, "--rank-by", "energy", "--overwrite")
    assert alike(other, pipe(8, best_of=3, rank_by="energy").grid())
    assert not alike(other, written) and other.text["rank_by"] == "energy"
    plain, answer = sample("-n", 2, "--best-of", 1, "--rank-by", "energy", "--overwrite")
    assert "rank_by" not in plain.text and "rank_by" not in answer
    assert RANKINGS == get_args(Ranking)


def test_a_temperature_a_group(sample, pipe):
    written, answer = sample("-n", 2, "--temperature", "0.5,1,0")
    assert alike(written, pipe(2, temperature=(0.5, 1.0, 0.0)).grid())
    assert answer["temperature"] == [0.5, 1.0, 0.0]
    assert written.text["temperature"] == "0.5,1.0,0.0"


def test_variations_keep_the_seeds_groups(sample, pipe):
    written, answer = sample(
        "--keep-top", 1, "--from-seed", 7, "--seeds", "3-6", "--attr", "Smiling"
    )
    smiling = {"symbols": {"Smiling": True}}
    expected = pipe.vary(pipe(seeds=[7], **smiling), slice(0, 1), 4, seeds=range(3, 7), **smiling)
    assert alike(written, expected.grid(2))
    assert (answer["seeds"], answer["from_seed"], answer["keep_top"]) == ([3, 4, 5, 6], 7, 1)
    first, answer = sample("--keep-top", 1, "--from-seed", 7, "--seeds", "3-6", "--outdir", "v")
    assert answer["files"] == [f"v/seed000{s}.png" for s in range(3, 7)]
    plain = pipe.vary(pipe(seeds=[7]), slice(0, 1), 4, seeds=range(3, 7))
    assert alike(first, plain.images[0])
    assert first.text["seed"] == "3" and first.text["from_seed"] == "7"


def test_layers_are_the_papers_figure(sample, pipe):
    written, answer = sample("--layers", "--seeds", 7, "-n", 3, "--class", "c")
    assert alike(written, pipe.layers(7, 3, symbols={"class": "c"}).grid())
    assert written.size == (3 * 18 - 2, 3 * 18 - 2)
    assert (answer["seeds"], answer["sheet"]) == ([7], "layers")


def test_mix_goes_from_the_fine_seed_to_the_coarse_one(sample, pipe):
    written, answer = sample("--mix", "4:9")
    coarse, fine = pipe(seeds=[4, 9]).images
    assert written.size == (4 * 18 - 2, 16)
    assert alike(written.crop((0, 0, 16, 16)), fine)
    assert alike(written.crop((54, 0, 70, 16)), coarse)
    assert answer["seeds"] == [4, 9]
    one, _ = sample("--mix", "4:9", "--keep-top", 2, "--out", "one.png")
    assert alike(one, written.crop((36, 0, 52, 16)))
    assert alike(one, pipe.mix(pipe(seeds=[4]), pipe(seeds=[9]), 2)[0])


def test_trajectories_are_rows_of_levels(sample, pipe):
    written, answer = sample("--trajectory", "-n", 3, "--batch", 2)
    levels = list(pipe.stream(3, batch_size=2))
    rows = [image for row in zip(*(s.images for s in levels), strict=True) for image in row]
    assert alike(written, images.grid(rows, len(levels)))
    assert answer["energies"] == levels[-1].energies.tolist()
    flow, _ = sample("--trajectory", "-n", 1, "--sampler", "flow", "--steps", 4, "-o", "flow.png")
    assert flow.size == (4 * 18 - 2, 16)


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_trajectories_are_animated(folder, pipe, tmp_path, ending):
    out = tmp_path / f"way{ending}"
    arguments = ["--trajectory", "-n", "2", "--seconds", "1", "--out", out, "--device", "cpu"]
    result = hebm_sample_command("--dataset", folder, *arguments)
    assert result.exit_code == 0, result.output
    with Image.open(out) as animation:
        assert animation.n_frames == len(pipe.trajectory(2))
        assert animation.size == pipe(2).grid().size
        note = animation.info.get("comment") or animation.getexif()[0x010E]
    facts = json.loads(note)
    assert (facts["seeds"], facts["sheet"]) == ("0-1", "trajectory")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--keep-top", "1", "--from-seed", "7", "-n", "5"],
        ["--layers", "-n", "4"],
        ["--mix", "4:9"],
        ["--trajectory", "-n", "3"],
        ["--best-of", "3", "-n", "3"],
    ],
)
def test_the_bar_ends_where_it_said(sample, arguments, monkeypatch):
    counts = []

    @contextlib.contextmanager
    def bar(total, name, quiet):
        counts.append([total, 0])

        def update(count):
            counts[0][1] += count

        yield update

    monkeypatch.setattr(sampling, "progress_bar", bar)
    sample("--batch", 2, "--steps", 3, *arguments)
    total, done = counts[0]
    assert total == done > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "d"], "symbol 'class' has no value 'd'; it has a, b, c"),
        (["--attr", "Smilling"], "(did you mean 'Smiling'?); it has class, Smiling"),
        (["--attr", "Smiling=yess"], "(did you mean 'yes'?); it has no, yes"),
        (["--attr", "Smiling=yes,~yes"], "asked to be yes and not to be"),
        (["--class", "~a,~b,~c"], "'class' is asked to be any value and not to be"),
        (
            ["--keep-top", "3", "--from-seed", "7"],
            "--keep-top is 3; tiny has 3 groups, of which 0",
        ),
        (["--keep-top", "4", "--mix", "1:2"], "of which 0 to 3 can be kept"),
        (["--temperature", "1,1"], "temperature has 2 numbers; the model has 3 groups"),
        (["--steps", "2"], "needs at least 3"),
    ],
)
def test_what_the_model_has_not_is_refused(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = hebm_sample_command("--dataset", folder, "--device", "cpu", *arguments)
    refused(result, 2, message)
    assert os.listdir(tmp_path) == []


def test_grids_that_no_viewer_opens_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    for arguments in (["--layers"], ["--mix", "1:2"], ["--trajectory", "-n", "3"]):
        result = hebm_sample_command("--dataset", folder, *arguments)
        refused(result, 2, "pixels; ask for fewer")  # --outdir goes with none of these
    refused(hebm_sample_command("--dataset", folder), 2, "pixels; use --outdir, or ask for fewer")
    arguments = ["--trajectory", "-n", "1", "--out", "a.gif"]  # each of its grids is small
    assert hebm_sample_command("--dataset", folder, *arguments).exit_code == 0


@pytest.mark.parametrize("ending", [".webp", ".jpg", ".gif"])
def test_grids_that_their_format_cannot_hold_are_refused(folder, tmp_path, monkeypatch, ending):
    """Before anything is sampled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(animation.SIDES, ending, 50)
    where = ("--dataset", folder, "--out", f"a{ending}")
    refused(hebm_sample_command(*where, "--columns", 16), 2, f"and {ending} holds at most 50 on a")
    assert not list(tmp_path.iterdir())
    assert hebm_sample_command(*where, "-n", 4).exit_code == 0
    if ending != ".jpg":
        again = ("--trajectory", "-n", 16, "--overwrite")
        refused(hebm_sample_command(*where, *again), 2, "holds at most 50 on a side")


# --help


def test_help_is_in_sections():
    text = hebm_sample_command("--help").stdout
    places = [text.index(f"\n{title}:\n") for title in (*SECTIONS, "Other")]
    assert places == sorted(places)


def test_model_names_are_completed(models, monkeypatch):
    monkeypatch.setenv("_HEBM_SAMPLE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "hebm-sample --dataset c")
    monkeypatch.setenv("COMP_CWORD", "2")
    result = CliRunner().invoke(main, [], prog_name="hebm-sample")
    assert result.stdout.split() == ["plain,celebahq", "plain,cifar10"]
    monkeypatch.setenv("COMP_WORDS", "hebm-sample --dataset ./my")
    result = CliRunner().invoke(main, [], prog_name="hebm-sample")
    assert result.stdout.split() == ["dir,./my"]


def test_help_shows_examples_and_version():
    result = hebm_sample_command("--help")
    assert result.exit_code == 0
    assert "  hebm-sample --dataset celebahq --seeds 0-15,20 --outdir faces\n" in result.stdout
    assert hebm_sample_command("--version").stdout == "hebm-sample 0.1.0\n"


def test_the_examples_of_the_help_run(fake):
    examples = [
        line.strip().split("  ")[0].split()
        for line in hebm_sample_command("--help").stdout.splitlines()
        if line.strip().startswith("hebm-sample ")
    ]
    assert len(examples) > 5
    for words in examples:
        reads_only = {"--list", "--verify"} & set(words)
        more = [] if reads_only else ["--overwrite"]  # they share a folder here
        result = hebm_sample_command(*words[1:], *more)
        assert result.exit_code == 0, (words, result.output)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["--seeds", "x"], ["--dataset", "a", "--out", "/"]]
)
def test_quick_answers_do_not_wait_for_torch(arguments):
    script = (
        "import sys\n"
        "from hebm_sample.cli.sample import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    heavy = {'torch', 'huggingface_hub', 'tqdm'} & set(sys.modules)\n"
        "    print('loaded', sorted(heavy), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert result.stderr.endswith("loaded []\n"), result.stderr
    assert "Traceback" not in result.stderr


def test_warnings_of_ours_are_one_line_without_a_place():
    usual = warnings.formatwarning

    @click.command(cls=OneLineErrors)
    def command():
        for category in (UserWarning, DeprecationWarning):
            click.echo(warnings.formatwarning("2 of 3 images\nleft out", category, "x.py", 7, ""))

    result = CliRunner().invoke(command, [])
    assert result.stdout.startswith("Warning: 2 of 3 images left out\n\n")
    assert "x.py:7: DeprecationWarning: " in result.stdout
    assert warnings.formatwarning is usual


def test_groups_fail_in_one_line_too():
    class Group(OneLineErrors, click.Group):
        pass

    @click.group(cls=Group)
    def group():
        pass

    @group.command()
    @click.option("--steps", type=int)
    def train(steps):
        raise HubError(f"no network after {steps} steps")

    runner = CliRunner()
    refused(runner.invoke(group, ["train", "--steps", "3"]), 1, "no network after 3 steps")
    refused(runner.invoke(group, ["train", "--steps", "x"]), 2, "'x' is not a valid integer")
    refused(runner.invoke(group, ["learn"]), 2, "No such command 'learn'")
    bare = runner.invoke(group, [])
    assert bare.exit_code == 2
    assert "Commands:\n  train" in bare.stderr
