"""Guards: images that are read are changed, completed and scored as the pipeline does it, never
overwritten, and every failure is one line with the promised exit status.

The pipeline is the real one, with a tiny model that has the symbols `class` and `Smiling`.
"""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageChops
from tiny import symbolic_pipeline, tiny_config, tiny_modules

import hebm_sample
from hebm_sample.cli.edit import main
from hebm_sample.cli.work import editing
from hebm_sample.io.images import grid, prepare, read_text, to_pil
from hebm_sample.pipeline.pipeline import Pipeline

SIZE = 16
STEP = SIZE + 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    symbolic_pipeline(steps=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return hebm_sample.Pipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def images(tmp_path, monkeypatch):
    """a.png and b.png of 24 x 20 pixels, and a mask of that size whose left half is white."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in "ab":
        pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{name}.png")
    mask = Image.new("L", (24, 20))
    mask.paste(255, (0, 0, 12, 20))
    mask.save("mask.png")
    return ["a.png", "b.png"]


def hebm_edit(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture
def run(folder):
    """Run on the tiny model; the first file, if one was written, and what --json said."""

    def run(*arguments):
        result = hebm_edit(*arguments, "--dataset", folder, "--device", "cpu", "--json")
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        if "files" not in answer:
            return answer
        with Image.open(answer["files"][0]) as written:
            written.load()
        return written, answer

    return run


def refused(result, status, message):
    """One line on stderr, nothing on stdout, the status."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr, result.stderr


def alike(a, b):
    return a.size == b.size and ImageChops.difference(a, b.convert(a.mode)).getbbox() is None


def squares(paths):
    return to_pil(prepare(paths, SIZE))


# What is written


def test_edit_shows_what_was_what_the_model_reads_and_what_became(run, pipe, images):
    steering = ["--attr", "Smiling", "--guidance", 3, "--groups", "0-1", "--strength", 0.5]
    written, answer = run("edit", *images, *steering, "--seeds", "5,3")
    edited = pipe.edit(
        images, {"Smiling": "yes"}, guidance=3.0, groups=[0, 1], strength=0.5, seeds=[5, 3]
    )
    seeds = (5, 3)
    before = pipe.decode(pipe.encode(images, seeds=seeds))
    rows = zip(squares(images), before, edited.images, strict=True)
    assert alike(written, grid([x for row in rows for x in row], 3))
    assert answer["files"] == ["a-edit.png"]
    assert (answer["seeds"], answer["groups"], answer["strength"]) == ([5, 3], [0, 1], 0.5)
    assert answer["energies"] == edited.energies.tolist()
    assert written.text["symbols"] == "Smiling=yes" and written.text["seeds"] == "5,3"


def test_edited_images_one_by_one(run, pipe, images):
    _, answer = run("edit", *images, "--class", "b", "--outdir", "out/here")
    assert answer["files"] == ["out/here/a.png", "out/here/b.png"]
    edited = pipe.edit(images, {"class": "b"})
    for path, image, seed in zip(answer["files"], edited.images, "01", strict=True):
        with Image.open(path) as file:
            assert alike(file, image)
            assert file.text["seed"] == seed
            assert (file.text["sampler"], file.text["steps"]) == ("flow", "48")


def test_interpolate_is_a_row(run, pipe, images):
    written, answer = run("interpolate", *images, "-n", 4, "--out", "row.png")
    assert alike(written, grid(pipe.interpolate(["a.png"], ["b.png"], 4), 4))
    assert answer["files"] == ["row.png"]


def test_inpaint_keeps_what_is_black_in_the_mask(run, pipe, images):
    written, answer = run("inpaint", "a.png", "--mask", "mask.png", "--seeds", "2,7")
    assert written.size == (4 * STEP - 2, SIZE)
    (own,) = squares(["a.png"])
    assert alike(written.crop((0, 0, SIZE, SIZE)), own)
    right = (SIZE // 2, 0, SIZE, SIZE)
    cells = [written.crop((i * STEP, 0, i * STEP + SIZE, SIZE)) for i in range(4)]
    assert all(alike(cell.crop(right), own.crop(right)) for cell in cells)
    assert cells[1].getpixel((2, 2)) == (128, 128, 128)
    assert not alike(cells[2], cells[3])
    expected = pipe.inpaint([Image.open("a.png")] * 2, "mask.png", seeds=[2, 7])
    assert alike(cells[2], expected.images[0]) and alike(cells[3], expected.images[1])
    first, answer = run("inpaint", "a.png", "--mask", "mask.png", "--seeds", 2, "--outdir", ".")
    assert answer["files"] == ["a-seed0002.png"]
    known = np.asarray(first)[:, SIZE // 2 :] == np.asarray(own)[:, SIZE // 2 :]
    assert known.all()


def test_scores_are_the_pipelines(run, pipe, images):
    answer = run("score", *images, "--groups", "0,2")
    energy, each = pipe.energy(images, groups=[0, 2]), pipe.energy(images, groups=2)
    density, found = pipe.log_density(images, groups=[0, 2]), pipe.classify(images, groups=[0, 2])
    for i, row in enumerate(answer["scores"]):
        assert row["picture"] == images[i]
        assert row["energy"] == pytest.approx(float(energy[i]))
        assert row["log_density"] == pytest.approx(float(density[i]), rel=1e-5)
        assert list(row["groups"]) == ["0", "2"]
        assert row["groups"]["2"] == pytest.approx(float(each[i]))
        assert list(row["symbols"]["class"]) == ["a", "b", "c"]
        for name, p in found.items():
            assert list(row["symbols"][name].values()) == pytest.approx(p[i].tolist())


def test_a_score_does_not_depend_on_the_other_files(run, pipe, images):
    """Nor on the order of all; and is what `pipe.score` says."""
    rows = {row["picture"]: row for row in run("score", *images)["scores"]}
    found = pipe.score(images)
    for i, name in enumerate(images):
        (alone,) = run("score", name)["scores"]
        (first, *_) = run("score", *images[i:], *images[:i])["scores"]
        for row in (alone, first):
            for key in ("energy", "log_density"):
                assert row[key] == pytest.approx(rows[name][key], rel=1e-5)
                assert row[key] == pytest.approx(float(getattr(found, key)[i]), rel=1e-4)
            assert row["groups"] == pytest.approx(rows[name]["groups"], rel=1e-4)
            for symbol, p in row["symbols"].items():
                assert p == pytest.approx(rows[name]["symbols"][symbol], rel=1e-4)


def test_scores_as_a_table(folder, pipe, images):
    result = hebm_edit("score", *images, "--dataset", folder)
    *lines, note = result.stdout.splitlines()
    assert note == pipe.p_value_note()
    header, *rows = [line.split("  ") for line in lines]
    header, *rows = [[cell.strip() for cell in row if cell] for row in (header, *rows)]
    groups = ["group 0", "group 1", "group 2"]
    assert header == ["image", "log density", "energy", *groups, "class", "Smiling=yes"]
    found, energy = pipe.classify(images), pipe.energy(images)
    density = pipe.log_density(images)
    for i, row in enumerate(rows):
        best = int(found["class"][i].argmax())
        assert row[:3] == [images[i], f"{float(density[i]):.1f}", f"{float(energy[i]):.1f}"]
        assert row[6] == f"{'abc'[best]} {float(found['class'][i, best]):.2f}"
        assert row[7] == f"{float(found['Smiling'][i, 1]):.2f}"


def test_the_closing_line(folder, images):
    common = ["--dataset", folder, "--device", "cpu"]
    result = hebm_edit("edit", "a.png", *common, "--class", "a")
    assert result.stdout.startswith("a-edit.png: 1 image in ")
    assert (
        hebm_edit("edit", "a.png", *common, "--class", "a", "--quiet", "--overwrite").output == ""
    )


@pytest.mark.parametrize("strength", ["0.3", "1"])
@pytest.mark.parametrize("verb", ["edit", "inpaint"])
def test_the_bar_ends_where_it_said(run, images, monkeypatch, verb, strength):
    counts = []

    @contextlib.contextmanager
    def bar(total, name, quiet):
        counts.append([total, 0])

        def update(count):
            counts[0][1] += count

        yield update

    monkeypatch.setattr(editing, "progress_bar", bar)
    more = images if verb == "edit" else ["a.png", "--mask", "mask.png", "--seeds", "0,1"]
    run(verb, *more, "--batch", 1, "--steps", 4, "--strength", strength)
    assert counts == [[8, 8]]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edit"], "Missing argument 'IMAGE...'"),
        (["edit", "a.png", "--seeds", "1,2"], "--seeds names 2 for 1 image; give one per image"),
        (["edit", "a.png", "--strength", "0"], "0.0 is not in the range 0.0<x<=1.0"),
        (["edit", "a.png", "--strength", "nan"], "nan is not a finite number"),
        (["edit", "a.png", "--groups", "3-1"], "'3-1' names no groups; write numbers and ranges"),
        (["edit", "a.png", "--guidance", "2"], "add --class or --attr"),
        (["edit", "none.png"], "cannot read none.png: No such file"),
        (["edit", "."], "cannot read .: Is a directory"),
        (["edit", "text.png"], "it is not a PNG, JPEG, WEBP"),
        (["edit", "a.png", "sub/A.jpg", "--outdir", "o"], "a.png and sub/A.jpg would both become"),
        (["edit", "a.png", "--outdir", "."], "a.png is an image that is read"),
        (["edit", "a.png", "--out", "a.png"], "a.png is an image that is read"),
        (["edit", "a.png", "--out", "x.png", "--outdir", "o"], "give one of the two"),
        (["edit", "a.png", "--out", "text.png/x.png"], "it is not a possible path"),
        (["interpolate", "a.png"], "Missing argument 'B'"),
        (["interpolate", "a.png", "text.png"], "it is not a PNG"),
        (["interpolate", "a.png", "b.png", "-n", "1"], "1 is not in the range"),
        (["inpaint", "a.png"], "Missing option '--mask'"),
        (["inpaint", "a.png", "--mask", "text.png"], "cannot read text.png"),
        (["inpaint", "a.png", "--mask", "mask.png", "--weight", "-1"], "-1.0 is not in the range"),
        (["score", "text.png"], "cannot read text.png"),
        (["improve", "a.png"], "No such command 'improve'"),
    ],
)
def test_what_is_wrongly_typed_is_refused_before_loading(images, tmp_path, arguments, message):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (8, 8)).save("sub/A.jpg")
    before = sorted(os.listdir(tmp_path))
    where = [] if arguments == ["improve", "a.png"] else ["--dataset", "./no-such-model"]
    refused(hebm_edit(*arguments, *where), 2, message)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["edit", "a.png", "--attr", "Smilin"],
            "(did you mean 'Smiling'?); it has class, Smiling",
        ),
        (["edit", "a.png", "--class", "d"], "symbol 'class' has no value 'd'; it has a, b, c"),
        (["edit", "a.png", "--groups", "1-3"], "this model has 3, numbered 0 (top) to 2"),
        (["score", "a.png", "--groups", "7"], "this model has 3, numbered 0 (top) to 2"),
        (
            ["inpaint", "a.png", "--mask", "small.png"],
            "the mask has 9 x 9 pixels; the image has",
        ),
    ],
)
def test_what_the_model_has_not_is_refused(folder, images, tmp_path, arguments, message):
    Image.new("L", (9, 9)).save("small.png")
    before = sorted(os.listdir(tmp_path))
    where = [] if arguments[0] == "score" else ["--outdir", "out"]
    refused(hebm_edit(*arguments, *where, "--dataset", folder), 2, message)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_model_without_symbols_scores_energies_only(images, tmp_path):
    generator, encoder, prior = tiny_modules()
    Pipeline(tiny_config(), generator, prior, encoder).save_pretrained(tmp_path / "plain")
    result = hebm_edit("score", "a.png", "--dataset", "./plain")
    assert "group 2" in result.stdout.splitlines()[0]
    assert "=yes" not in result.stdout
    edited = hebm_edit("edit", "a.png", "--dataset", "./plain", "--attr", "Smiling")
    refused(edited, 2, "tiny has no symbols, so 'Smiling'")


def test_a_model_without_an_encoder_reads_no_images(images, tmp_path):
    generator, _, prior = tiny_modules()
    Pipeline(tiny_config(), generator, prior).save_pretrained(tmp_path / "blind")
    result = hebm_edit("score", "a.png", "--dataset", "./blind")
    refused(result, result.exit_code, "encoder")
    assert result.exit_code in (1, 2)


def test_a_model_without_a_prior_has_no_energies(images, tmp_path):
    generator, encoder, _ = tiny_modules()
    config = replace(tiny_config(), prior=None)
    Pipeline(config, generator, None, encoder).save_pretrained(tmp_path / "bare")
    refused(hebm_edit("score", "a.png", "--dataset", "./bare"), 2, "no energy-based prior")
    refused(hebm_edit("edit", "a.png", "--dataset", "./bare"), 2, "no energy-based prior")
    assert hebm_edit("interpolate", *images, "--dataset", "./bare").exit_code == 0


# --help


@pytest.mark.parametrize("arguments", [["--help"], ["edit", "--help"], ["score", "none.png"]])
def test_quick_answers_do_not_wait_for_torch(arguments):
    script = (
        "import sys\n"
        "from hebm_sample.cli.edit import main\n"
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


def test_the_examples_of_the_help_parse(monkeypatch):
    lines = hebm_edit("--help").stdout.splitlines()
    examples = [line.split()[1:] for line in lines if line.strip().startswith("hebm-edit ")]
    assert {words[0] for words in examples} == set(main.commands)
    for words in examples:
        command = main.commands[words[0]]
        assert command.make_context(words[0], words[1:]).params["dataset"]


def test_nothing_that_exists_is_overwritten_unasked(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (SIZE, SIZE), (9, 80, 7)).save("cat.jpg")
    names = {"cat.png": ("edit", "--outdir", "."), "cat-edit.png": ("edit",)}
    names["cat-seed0000.png"] = ("inpaint", "--mask", "cat.jpg", "--outdir", ".")
    for name, (command, *more) in names.items():
        (tmp_path / name).write_bytes(b"mine")
        arguments = (command, "cat.jpg", *more, "--dataset", folder, "--device", "cpu")
        result = hebm_edit(*arguments)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
        assert f"{name} would be overwritten" in result.stderr and "--overwrite" in result.stderr
        assert (tmp_path / name).read_bytes() == b"mine"
    result = hebm_edit("edit", "cat.jpg", "--outdir", ".", "--overwrite", "--dataset", folder)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "cat.png").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["edit", "a.png"], ["edit", "b.png"]),
        (["inpaint", "a.png", "--mask", "mask.png"],) * 2,
    ],
)
def test_results_of_two_models_never_share_a_folder(folder, images, tmp_path, first, second):
    pipe = symbolic_pipeline(steps=3)
    with torch.no_grad():
        next(iter(pipe.generator.parameters())).add_(1.0)
    pipe.save_pretrained(tmp_path / "other")

    def run(words, seed, *more):
        return hebm_edit(*words, "--class", "b", "--seeds", seed, *more, "--device", "cpu")

    os.mkdir("out")  # where others' files and a grid are, which do not count
    os.rename("b.png", "out/somebody's.png")
    Image.new("RGB", (20, 20)).save("b.png")
    done = run(second, 1, "--dataset", tmp_path / "other", "--out", "out/grid.png")
    assert done.exit_code == 0, done.output
    done = run(first, 0, "--dataset", folder, "--outdir", "out")
    assert done.exit_code == 0, done.output
    made = sorted(os.listdir("out"))
    for more in ([], ["--overwrite"]):
        result = run(second, 1, "--dataset", tmp_path / "other", "--outdir", "out", *more)
        refused(result, 2, "out would hold images of two kinds: a")
        assert "was made otherwise: weights is" in result.stderr
    assert sorted(os.listdir("out")) == made


def test_a_folder_that_is_filled_during_an_edit_is_looked_at_again(
    folder, images, tmp_path, monkeypatch
):
    other, filled = symbolic_pipeline(steps=3), []
    with torch.no_grad():
        next(iter(other.generator.parameters())).add_(1.0)
    other.save_pretrained(tmp_path / "other")
    edited = editing._edited

    def filling(*args):
        found = edited(*args)
        if not filled:
            filled.append(1)
            words = ["edit", "b.png", "--dataset", tmp_path / "other", "--outdir", "out"]
            assert hebm_edit(*words, "--device", "cpu").exit_code == 0
        return found

    monkeypatch.setattr(editing, "_edited", filling)
    words = ["edit", "a.png", "--class", "b", "--dataset", folder, "--outdir", "out"]
    result = hebm_edit(*words, "--device", "cpu")
    refused(result, 2, "out would hold images of two kinds: b")
    assert os.listdir("out") == ["b.png"]


def test_files_of_one_name_are_told_apart_in_the_text(folder, images, tmp_path):
    for name in ("d1", "d2"):
        os.mkdir(name)
        os.rename("a.png" if name == "d1" else "b.png", f"{name}/a.png")
    for words, line in (
        (["edit", "d1/a.png", "d2/a.png"], "hebm-edit edit d1/a.png d2/a.png "),
        (["interpolate", "d1/a.png", "d2/a.png"], "hebm-edit interpolate d1/a.png d2/a.png "),
        (["edit", "d1/a.png"], "hebm-edit edit a.png "),
        (
            ["inpaint", "d1/a.png", "--mask", "d2/a.png"],
            "hebm-edit inpaint d1/a.png --mask d2/",
        ),
    ):
        done = hebm_edit(*words, "--dataset", folder, "-o", "x.png", "--overwrite")
        assert done.exit_code == 0, done.output
        assert read_text("x.png")["command"].startswith(line)


# What would be ignored


def test_a_temperature_of_an_edit_by_inversion_is_refused(folder, images):
    common = ["edit", "a.png", "--class", "a", "--dataset", folder, "--device", "cpu"]
    refused(hebm_edit(*common, "--temperature", 0.3), 2, "an edit by inversion draws none")
    first = hebm_edit(*common, "--temperature", 1, "--out", "a1.png")  # as files told it once
    assert first.exit_code == 0, first.output
    assert hebm_edit(*common, "--out", "a2.png").exit_code == 0
    texts = [read_text(name) for name in ("a1.png", "a2.png")]
    assert all("temperature" not in text for text in texts)
    assert all("--temperature" not in text["command"] for text in texts)
    assert Image.open("a1.png").tobytes() == Image.open("a2.png").tobytes()
    noise = hebm_edit(*common, "--method", "noise", "--temperature", 0.3, "--out", "a3.png")
    assert noise.exit_code == 0 and read_text("a3.png")["temperature"] == "0.3"


@pytest.mark.parametrize("words", [[], ["--quiet"], ["--json"]])
def test_an_edit_without_a_condition_says_that_nothing_changes(folder, images, words):
    common = ["edit", "a.png", "--dataset", folder, "--device", "cpu", "--steps", 4]
    done = hebm_edit(*common, *words)
    assert done.exit_code == 0
    assert (
        done.stderr == "warning: no --attr or --class says what should change, so nothing does\n"
    )
    done = hebm_edit(*common, *words, "--method", "noise", "--out", "other.png")
    assert done.exit_code == 0 and done.stderr == ""
