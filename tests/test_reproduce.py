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
from hebm_sample.cli.sample import main as sample
from hebm_sample.io.images import read_text, save_image

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


def test_files_without_text_say_nothing(tmp_path):
    grey = Image.new("RGB", (8, 8), "grey")
    for ending in ("png", "jpg", "webp", "gif"):
        save_image(grey, tmp_path / f"a.{ending}")
        assert read_text(tmp_path / f"a.{ending}") == {}
    (tmp_path / "b.png").write_bytes(b"no image")
    assert read_text(tmp_path / "b.png") == read_text(tmp_path / "none.png") == {}
