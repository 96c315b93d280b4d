"""Guards: what is typed reaches the pipeline, what it returns reaches the disk whole, and every
failure is one line with the promised exit status.

Without it an option could be parsed and ignored, a typing slip could cost minutes of sampling, and
an interrupted run could leave half a picture. The pipeline here is a stand-in.
"""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import hebm_sample
from hebm_sample import images
from hebm_sample.cli import main
from hebm_sample.config import (
    GeneratorConfig,
    LangevinConfig,
    ModelConfig,
    PriorConfig,
    ScaleConfig,
)
from hebm_sample.console import OneLineErrors
from hebm_sample.errors import HubError, NonFiniteSampleError, UserInputError, WeightsError

SIZE = 8


class FakePipeline:
    """One flat picture a seed, whose red is the seed; records what it was asked."""

    loads: list
    calls: list
    failure: BaseException | None = None

    def __init__(self, name, revision):
        self.name, self.revision = name, revision
        self.config = ModelConfig(
            name=Path(name).name,
            generator=GeneratorConfig(SIZE, (ScaleConfig(4, 2, 1, 8),)),
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
        return types.SimpleNamespace(
            images=[Image.new("RGB", (SIZE, SIZE), (s % 256, 0, 0)) for s in seeds],
            energies=torch.tensor([[s, 0.5] for s in seeds]),
            seeds=list(seeds),
        )


@pytest.fixture
def fake(monkeypatch, tmp_path):
    pipeline = type("Pipeline", (FakePipeline,), {"loads": [], "calls": []})
    stand_in = types.SimpleNamespace(Pipeline=pipeline)
    monkeypatch.setitem(sys.modules, "hebm_sample.pipeline", stand_in)
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


def test_defaults_write_sixteen_pictures_as_a_grid(fake, tmp_path):
    result = hebm_sample_command("--dataset", "celebahq")
    assert result.exit_code == 0
    assert result.stdout.startswith("celebahq.png: 16 pictures in ")
    assert result.stderr == ""
    with Image.open("celebahq.png") as sheet:
        assert sheet.size == (4 * SIZE + 6, 4 * SIZE + 6)
        assert sheet.getpixel((SIZE + 2, SIZE + 2)) == (5, 0, 0)
        assert sheet.text == {  # type: ignore[attr-defined]
            "seeds": "0-15",
            "model": "celebahq",
            "resolution": "8",
            "sampler": "recovery",
            "steps": "6",
            "temperature": "0.9",
            "prior": "ebm",
            "version": "hebm_sample 0.1.0",
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
        *("--offline", "--revision", "v1", "--cache-dir", "cache"),
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("model.png: 2 pictures")
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
        "prior": "ebm",
        "revision": None,
        "version": "hebm_sample 0.1.0",
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


def test_existing_pictures_are_overwritten_or_skipped(fake):
    os.mkdir("out")
    Path("out/seed0001.png").write_bytes(b"old")
    arguments = ["--dataset", "celebahq", "-n", 3, "--outdir", "out"]
    result = hebm_sample_command(*arguments, "--skip-existing")
    assert result.stdout.startswith("out: 2 pictures in ")
    assert result.stdout.endswith(", 1 already there\n")
    assert Path("out/seed0001.png").read_bytes() == b"old"
    answer = json.loads(hebm_sample_command(*arguments, "--skip-existing", "--json").stdout)
    assert (answer["files"], answer["seeds"], answer["skipped"]) == ([], [], 3)
    assert answer["model"] == "celebahq"
    assert hebm_sample_command(*arguments).exit_code == 0
    assert Path("out/seed0001.png").read_bytes()[1:4] == b"PNG"
    assert [call["seeds"] for call in fake.calls] == [[0, 2], [0, 1, 2]]


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
    hebm_sample_command("--dataset", "celebahq", "-n", 1, "--quiet")
    assert [(bar.done, bar.options["total"]) for bar in bars] == [(18, 18), (6, 6)]
    assert [bar.options["disable"] for bar in bars] == [None, True]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset is missing; `hebm-sample --list` shows the models"),
        (["--dataset", ""], "--dataset is missing"),
        (["--dataset", "a", "--out", "b.png", "--outdir", "c"], "give one of the two"),
        (["--dataset", "a", "--out", "b.jpg"], "end it in .png"),
        (["--dataset", "a", "--skip-existing"], "--skip-existing goes with --outdir"),
        (["--dataset", "a", "-n", "3", "--seeds", "0-3"], "--seeds names 4; give one of the two"),
        (["--dataset", "a", "--gaussian-prior", "--steps", "3"], "leave --sampler and --steps"),
        (["--dataset", "a", "--gaussian-prior", "--sampler", "flow"], "without a chain"),
        (["--dataset", "a", "--seeds", "4-1"], "'--seeds': the range '4-1' runs backwards"),
        (["--dataset", "a", "--seeds", "-3"], "'-3' is not a seed"),
        (["--dataset", "a", "--seeds", "1,1"], "seed 1 is given twice"),
        (["--dataset", "a", "-n", "0"], "0 is not in the range 1<=x<=10000"),
        (["--dataset", "a", "-n", "many"], "'many' is not a valid integer"),
        (["--dataset", "a", "--steps", "0"], "'--steps': 0 is not in the range"),
        (["--dataset", "a", "--batch", "0"], "'--batch': 0 is not in the range"),
        (["--dataset", "a", "--temperature", "-1"], "-1.0 is not in the range"),
        (["--dataset", "a", "--temperature", "nan"], "nan is not a finite number"),
        (["--dataset", "a", "--sampler", "best"], "'recovery', 'annealed', 'flow'"),
        (["--dataset", "a", "--device", "tpu"], "'auto', 'cpu', 'cuda'"),
        (["--dataset", "a", "--dtype", "float16"], "'float32', 'bfloat16'"),
        (["--dataset", "a", "--sead", "1"], "--sead"),
        (["--dataset", "a", "extra"], "extra"),
        (["--dataset"], "requires an argument"),
        (["--list", "--dataset", "a"], "--list goes with --json at most"),
        (["--dataset", "a", "--out", "no/such/a.png"], "no/such does not exist; create it first"),
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
    refused(result, 2, "a grid of 4 pictures would have 18 x 18 pixels; use --outdir")
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
    assert sorted(os.listdir("out")) == ["seed0000.png", "seed0001.png"]
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
def models(monkeypatch):
    def row(name, resolution, folder, repo_id, figures):
        return types.SimpleNamespace(
            name=name,
            resolution=resolution,
            default=True,
            folder=folder,
            repo_id=repo_id,
            revision=None,
            licence="CC-BY-NC-4.0",
            files={},
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
        "name      resolution  where       licence       gap closed",
        "celebahq  64          embedded    CC-BY-NC-4.0  0.85",
        "cifar10   32          me/cifar10  CC-BY-NC-4.0  -",
    ]


def test_list_as_json(models):
    listed = json.loads(hebm_sample_command("--list", "--json").stdout)["models"]
    assert [row["name"] for row in listed] == ["celebahq", "cifar10"]
    assert [row["embedded"] for row in listed] == [True, False]
    assert listed[0]["figures"] == {"gap_closed": 0.8512}


# --help


def test_help_shows_examples_and_version():
    result = hebm_sample_command("--help")
    assert result.exit_code == 0
    assert "  hebm-sample --dataset celebahq --seeds 0-15,20 --outdir faces\n" in result.stdout
    assert hebm_sample_command("--version").stdout == "hebm-sample 0.1.0\n"


def test_the_examples_of_the_help_run(fake, models):
    examples = [
        line.strip().split("  ")[0].split()
        for line in hebm_sample_command("--help").stdout.splitlines()
        if line.strip().startswith("hebm-sample ")
    ]
    assert len(examples) > 5
    for words in examples:
        result = hebm_sample_command(*words[1:])
        assert result.exit_code == 0, (words, result.output)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["--seeds", "x"], ["--dataset", "a", "--out", "/"]]
)
def test_quick_answers_do_not_wait_for_torch(arguments):
    script = (
        "import sys\n"
        "from hebm_sample.cli import main\n"
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
