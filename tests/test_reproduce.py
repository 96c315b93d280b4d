"""A file says in its own text which command makes it again, and that command does.

Images of the tiny model, each kind of file, each format; streams in place of files.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny import symbolic_pipeline

from hebm_sample.cli.edit import main as edit
from hebm_sample.cli.requests.edit import name_of
from hebm_sample.cli.sample import main as sample
from hebm_sample.io.images import read_text, save_image
from hebm_sample.pipeline.identity import encoder_hash
from hebm_sample.pipeline.pipeline import Pipeline

FOLDERS = ("samples", "edited", "inpainted")
MODEL = ("--dataset", "./tiny", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    symbolic_pipeline(steps=3).save_pretrained(folder)
    return folder


@pytest.fixture
def here(model, tmp_path, monkeypatch):
    """A folder with the model, two photographs and a mask; the tests run in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(model)
    random = np.random.default_rng(0)
    for name in ("a.png", "b c.png"):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(name)
    mask = Image.new("L", (24, 20))
    mask.paste(255, (0, 0, 12, 20))
    mask.save("mask.png")
    return tmp_path


def run(command, words, stdin=None):
    result = CliRunner().invoke(command, list(map(str, words)), input=stdin)
    assert result.exit_code == 0, result.output


def again(path: Path) -> Path:
    """The file that a file's own text makes, in the place of the first."""
    text = read_text(path)
    program, *words = shlex.split(text["command"])
    old = path.rename(path.with_name(f"old-{path.name}"))
    if program == "hebm-edit":
        run(edit, words + ["--device", "cpu"])
    else:
        run(sample, words + ["--device", "cpu"])
    made = next(
        found
        for found in (*(Path(f, path.name) for f in FOLDERS), Path(path.name))
        if found.exists()
    )
    assert read_text(made) == text
    assert made.read_bytes() == old.read_bytes()
    return made


@pytest.mark.parametrize(
    "words",
    [
        ["-n", 3, "--class", "~b", "--attr", "smiling", "--guidance", 2.5, "--best-of", 2],
        ["-n", 5, "--best-of", 3, "--rank-by", "energy"],
        ["-n", 3, "--gaussian-prior", "--temperature", 0.7],
        ["-n", 2, "--temperature", "0.5,1,0.25", "--sampler", "annealed", "--steps", 5],
        ["--from-seed", 7, "--keep-top", 1, "-n", 3, "--columns", 3],
        ["--layers", "--seeds", 7, "-n", 3],
        ["--mix", "4:9"],
        ["--mix", "4:9", "--keep-top", 2, "--scale", 3],
        ["--trajectory", "-n", 2],
        ["-n", 2, "--out", "x.jpg"],
        ["-n", 2, "--out", "x.webp"],
        ["-n", 2, "--out", "x.gif"],
        ["--trajectory", "-n", 2, "--out", "x.gif", "--seconds", 0.5],
        ["--trajectory", "-n", 2, "--out", "x.webp"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_grids_of_samples(here, words):
    run(sample, [*MODEL, *words])
    again(Path(words[words.index("--out") + 1] if "--out" in words else "tiny.png"))


def test_single_samples_and_variations(here):
    alone = [*MODEL, "--batch", 1]  # a batch of one, as when it is made again: the same bits
    run(sample, [*alone, "--seeds", "3,5", "--attr", "Smiling=no", "--outdir", "out"])
    run(sample, [*alone, "--from-seed", 7, "--keep-top", 1, "-n", 2, "--outdir", "v"])
    assert sorted(os.listdir("v")) == ["seed0008.png", "seed0009.png"]  # new noise, as in Python
    again(Path("out/seed0005.png"))
    again(Path("v/seed0008.png"))


@pytest.mark.parametrize(
    "words",
    [
        ["edit", "a.png", "b c.png", "--attr", "Smiling", "--groups", "0-1"],
        ["edit", "a.png", "--class", "b", "--method", "noise", "--strength", 0.5, "--seeds", 4],
        ["interpolate", "a.png", "b c.png", "-n", 4],
        ["inpaint", "a.png", "--mask", "mask.png", "--seeds", "2,7", "--weight", 2],
    ],
    ids=lambda words: words[0],
)
def test_grids_of_real_images(here, words):
    run(edit, [*words, *MODEL])
    again(Path(f"a-{words[0]}.png"))


def test_single_edits_and_inpaintings(here):
    run(edit, ["edit", "a.png", "b c.png", "--class", "b", *MODEL, "--outdir", "e", "--batch", 1])
    run(edit, ["inpaint", "a.png", "--mask", "mask.png", *MODEL, "--outdir", "i", "--seeds", 7])
    assert read_text("e/b c.png")["guidance"] == "class=32.0"
    again(Path("e/b c.png"))
    again(Path("i/a-seed0007.png"))


def test_a_file_says_nothing_of_the_machine(here):
    run(sample, ["--dataset", here / "tiny", "-n", 1, "--out", here / "deep" / "x.png"])
    run(edit, ["edit", here / "a.png", *MODEL, "--out", here / "deep" / "y.png"])
    for path in ("deep/x.png", "deep/y.png"):
        assert str(here) not in str(read_text(path)) and "deep" not in str(read_text(path))


# Streams


def test_the_standard_input_is_an_image(here):
    data = Path("a.png").read_bytes()
    run(edit, ["edit", "-", "--class", "b", *MODEL], data)
    run(edit, ["edit", "a.png", "--class", "b", *MODEL])
    with Image.open("stdin-edit.png") as one, Image.open("a-edit.png") as other:
        assert one.tobytes() == other.tobytes()
    run(edit, ["inpaint", "a.png", "--mask", "-", *MODEL], Path("mask.png").read_bytes())
    result = CliRunner().invoke(edit, ["score", "-", "-", *MODEL], input=data)
    assert result.exit_code == 2 and "give it once" in result.stderr


def test_a_folder_that_is_called_as_a_model_is_no_model(tmp_path, monkeypatch):
    """Such as the one that the images go to."""
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "cifar10", "--steps", 6, "--outdir", "cifar10", "--device", "cpu"]
    run(sample, [*words, "--seeds", "0"])
    run(sample, [*words, "--seeds", "0,1"])
    for seed in (0, 1):
        assert "--dataset cifar10 " in read_text(Path(f"cifar10/seed000{seed}.png"))["command"]
    Path("CIFAR10").mkdir(exist_ok=True)
    run(sample, ["--dataset", "CIFAR10", "--seeds", "0", "--steps", 6, "--out", "a.png"])
    assert "--dataset cifar10 " in read_text(Path("a.png"))["command"]
    Path("celeba64").write_text("notes", encoding="utf-8")
    run(sample, ["--dataset", "celeba64", "--gaussian-prior", "-n", 1, "--out", "b.png"])


def test_a_folder_may_be_called_fd():
    for path in ("fd/anna.jpg", "/home/fd/anna.jpg", "dev/fd/anna.jpg"):
        assert name_of(Path(path)) == "anna"
    assert name_of(Path("/dev/stdin")) == "stdin"
    for path in ("/dev/fd/63", "/proc/self/fd/63", "/proc/17/fd/63"):
        assert name_of(Path(path)) == "stream63"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="there are no file descriptors")
def test_a_pipe_is_an_image(here):
    read, write = os.pipe()
    os.write(write, Path("mask.png").read_bytes())
    os.close(write)
    root = str(Path(__file__).resolve().parents[1])
    words = ["inpaint", "a.png", "--mask", f"/dev/fd/{read}", *MODEL, "--outdir", "o"]
    code = "from hebm_sample.cli.edit import main; main()"
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, pass_fds=[read], capture_output=True
    )
    os.close(read)
    assert done.returncode == 0, done.stderr
    run(edit, ["inpaint", "a.png", "--mask", "mask.png", *MODEL, "--outdir", "p"])
    with Image.open("o/a-seed0000.png") as one, Image.open("p/a-seed0000.png") as other:
        assert one.tobytes() == other.tobytes()


# From Python


def python_text(found, path) -> dict[str, str]:
    """What Python writes into the file of the only image, or of a trajectory."""
    found.save(path)
    return read_text(path)


CONDITION = {"symbols": {"Smiling": "yes"}, "guidance": {"Smiling": 2.0}}
SMILE = ["--attr", "Smiling", "--guidance", 2.0]
OF_PYTHON = {
    "a call": (
        ["sample", "--seeds", 7, *SMILE, "--best-of", 2, "--steps", 4],
        lambda p: p(seeds=[7], best_of=2, steps=4, **CONDITION),
    ),
    "gaussian": (
        ["sample", "--seeds", 7, "--gaussian-prior", "--temperature", 0.5],
        lambda p: p(seeds=[7], prior="gaussian", temperature=0.5),
    ),
    "variation": (
        ["sample", "--from-seed", 7, "--keep-top", 1, "-n", 1],
        lambda p: p.vary(p(seeds=[7]), 1, 1),
    ),
    "mixture": (
        ["sample", "--mix", "4:9", "--keep-top", 2, "--steps", 4],
        lambda p: p.mix(p(seeds=[4], steps=4), p(seeds=[9], steps=4), 2),
    ),
    "trajectory": (
        ["sample", "--trajectory", "--seeds", "2,5", "--out", "x.gif"],
        lambda p: p.trajectory(seeds=[2, 5]),
    ),
    "edit": (
        ["edit", "a.png", *SMILE, "--seeds", 4, "--groups", "0-1", "--steps", 6],
        lambda p: p.edit("a.png", seeds=[4], groups=[0, 1], steps=6, **CONDITION),
    ),
    "SDEdit": (
        ["edit", "a.png", *SMILE, "--method", "noise", "--strength", 0.5],
        lambda p: p.edit("a.png", method="noise", strength=0.5, **CONDITION),
    ),
    "filling": (
        ["inpaint", "a.png", "--mask", "mask.png", "--seeds", 7, "--weight", 2],
        lambda p: p.inpaint("a.png", "mask.png", seeds=[7], weight=2.0),
    ),
    "way": (
        ["interpolate", "a.png", "b c.png", "-n", 2],
        lambda p: p.interpolate("a.png", "b c.png", 2)[:1],
    ),
}


@pytest.mark.parametrize("kind", OF_PYTHON)
def test_python_writes_what_the_command_writes(here, kind):
    (program, *words), call = OF_PYTHON[kind]
    if program == "sample":
        single = [] if {"--mix", "--trajectory"} & set(words) else ["--outdir", "out"]
        run(sample, [*MODEL, *words, *single])
    else:
        run(edit, [program, *words, *MODEL, *(["--outdir", "out"] * (program != "interpolate"))])
    made = next(
        p
        for p in (
            *Path("out").glob("*"),
            *Path().glob("x.gif"),
            *here.glob("*-*.png"),
            Path("tiny.png"),
        )
        if p.is_file()
    )
    wanted = read_text(made)
    pipe = Pipeline.from_pretrained("tiny", device="cpu")
    found = python_text(call(pipe), "own.gif" if kind == "trajectory" else "own.png")
    assert wanted.pop("command") and set(wanted) > {"model", "weights", "decoder"}
    if kind == "way":
        assert found.pop("position") == "0.0"
    assert {key: found.get(key) for key in wanted} == wanted
    assert set(found) - set(wanted) <= {"prior", "sheet", "kept_groups"}


def test_what_makes_other_images_makes_other_texts(here):
    pipe = Pipeline.from_pretrained("tiny", device="cpu")
    smile, one, other = {"Smiling": "yes"}, pipe(seeds=[7]), pipe(seeds=[8])
    slow = pipe(seeds=[7], steps=5)
    pairs = [
        [pipe.edit("a.png", smile, mode=mode) for mode in ("sample", "mean")],
        [pipe.reconstruct("a.png", mode=mode) for mode in ("sample", "mean")],
        [pipe.vary(source, 1, 1, seeds=[3]) for source in (one, other)],
        [pipe.vary(source, 1, 1, seeds=[3]) for source in (one, slow)],
        [pipe.mix(one, source, 1) for source in (other, one)],
        [pipe.mix(source, other, 1) for source in (slow, one)],
        [pipe.interpolate(one, other, 3)[i : i + 1] for i in (0, 1)],
        [pipe.layers(seed, 2)[1:2] for seed in (7, 8)],
        [pipe.vary("a.png", 1, 1, seeds=[3]), pipe.vary(one, 1, 1, seeds=[3])],
    ]
    for a, b in pairs:
        first, second = (found.provenance[0].text(single=True) for found in (a, b))
        assert a[0].tobytes() != b[0].tobytes() and first != second
    hashed = pipe.vary("a.png", 1, 1), pipe.mix("a.png", one, 1), pipe.interpolate("a.png", one)
    for found in hashed:
        assert found.provenance[0].facts["encoder"] == encoder_hash(pipe.model)
    assert "encoder" not in pipe.mix(one, other, 1).provenance[0].facts
    text = pipe.mix(slow, other, 1).provenance[0].text(single=True)
    assert (text["seeds"], text["steps"]) == ("7-8", "5,3")


def test_files_without_text_say_nothing(tmp_path):
    grey = Image.new("RGB", (8, 8), "grey")
    for ending in ("png", "jpg", "webp", "gif"):
        save_image(grey, tmp_path / f"a.{ending}")
        assert read_text(tmp_path / f"a.{ending}") == {}
    (tmp_path / "b.png").write_bytes(b"no image")
    assert read_text(tmp_path / "b.png") == read_text(tmp_path / "none.png") == {}
