"""Every example runs on a model folder and writes what it says.

Examples are the first code that people copy; without this they would rot with the first renamed
argument.
"""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from tiny import SYMBOLS, symbolic_pipeline, tiny_config, tiny_pipeline

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
GROUPS = len(tiny_config().generator.latent_shapes)
SIZE, GUTTER = tiny_config().generator.image_size, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def symbolic(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of a model with the variables `class` and `Smiling`."""
    folder = tmp_path_factory.mktemp("symbolic")
    symbolic_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three images, none of the model's size or square."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40 + i, 30), (60 * i, 90, 120)).save(path)
    return paths


def run(name: str, *arguments: object) -> str:
    """Run an example's command in this process; what it printed."""
    command = runpy.run_path(str(EXAMPLES / name))["main"]
    done = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def is_image(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) >= 2 * SIZE


def shape(path: Path) -> tuple[int, int]:
    """(columns, rows) of a grid of the tiny model's images."""
    assert is_image(path)
    with Image.open(path) as image:
        columns, rows = ((side + GUTTER) / (SIZE + GUTTER) for side in image.size)
    assert columns.is_integer() and rows.is_integer()
    return int(columns), int(rows)


def test_no_example_is_left_out() -> None:
    tested = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_sample(model: str, tmp_path: Path) -> None:
    run("sample.py", "--model", model, "--out", tmp_path / "faces.png")
    assert is_image(tmp_path / "faces.png")


def test_compare_priors(model: str, tmp_path: Path) -> None:
    out = tmp_path / "priors.png"
    printed = run("compare_priors.py", "--model", model, "--out", out, "-n", 3)
    assert is_image(out)
    assert printed.count("mean energy") == 2


def test_compare_priors_with_images(model: str, tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (20, 24), (60 * i, 90, 120)).save(tmp_path / f"{i}.png")
    out = tmp_path / "out" / "priors.png"
    out.parent.mkdir()
    arguments = ("--model", model, "--out", out, "--pictures", tmp_path)
    run("compare_priors.py", *arguments, "-n", 2)
    assert is_image(out)
    command = runpy.run_path(str(EXAMPLES / "compare_priors.py"))["main"]
    refused = CliRunner().invoke(command, [*map(str, arguments), "-n", "3"])
    assert refused.exit_code == 2 and "has 2 images" in refused.output


def test_energy_score(model: str, tmp_path: Path) -> None:
    out = tmp_path / "energies.csv"
    printed = run("energy_score.py", "--model", model, "--out", out)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["images", *(f"top {k + 1}" for k in range(GROUPS))]
    assert [row[0] for row in rows[1:]] == ["samples"] * 8 + ["N(0, I)"] * 8 + ["noise"] * 8
    assert len(printed.splitlines()) == 4


def test_energy_score_of_files(model: str, tmp_path: Path) -> None:
    image, out = tmp_path / "one.png", tmp_path / "energies.csv"
    Image.new("RGB", (40, 30), (200, 30, 90)).save(image)
    assert str(image) in run("energy_score.py", image, "--model", model, "--out", out)
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_class_conditional(symbolic: str, tmp_path: Path) -> None:
    out = tmp_path / "classes.png"
    printed = run("class_conditional.py", "--dataset", symbolic, "-n", 2, "--out", out)
    assert shape(out) == (2, len(SYMBOLS[0].values))
    assert printed.count("named in") == len(SYMBOLS[0].values)
    chosen = ("--dataset", symbolic, "--symbol", "Smiling", "--out", out)
    assert "yes: named in" in run("class_conditional.py", *chosen)
    assert shape(out) == (8, 2)


def test_class_conditional_of_a_model_without_symbols(model: str) -> None:
    command = runpy.run_path(str(EXAMPLES / "class_conditional.py"))["main"]
    refused = CliRunner().invoke(command, ["--dataset", model])
    assert refused.exit_code == 2 and "has the symbols [], not 'class'" in refused.output


def test_attributes(symbolic: str, tmp_path: Path) -> None:
    out = tmp_path / "attributes.png"
    assert "Smiling=yes" in run("attributes.py", "--dataset", symbolic, "--out", out)
    assert shape(out) == (8, 2)
    asked = ("--attr", "class=~a", "--attr", "Smiling")
    printed = run("attributes.py", "--dataset", symbolic, *asked, "-n", 2, "--out", out)
    assert printed.splitlines()[1:] == ["class=~a", "class=~a, Smiling=yes"]
    assert shape(out) == (2, 3)


def test_vary_layers(model: str, tmp_path: Path) -> None:
    out = tmp_path / "layers.png"
    printed = run("vary_layers.py", "--dataset", model, "--columns", 3, "--out", out)
    assert shape(out) == (3, GROUPS)
    kept = [line.split()[1] for line in printed.splitlines()[1:]]
    assert kept == [str(k) for k in reversed(range(GROUPS))]


def test_mix_interpolate(model: str, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "between.png"
    run("mix_interpolate.py", "--dataset", model, "--out", out)
    assert shape(out) == (GROUPS + 1, 2)
    with Image.open(out) as image:  # both rows begin and end with the same two images
        last = image.width - SIZE
        for x in (0, last):
            top = image.crop((x, 0, x + SIZE, SIZE))
            below = image.crop((x, SIZE + GUTTER, x + SIZE, 2 * SIZE + GUTTER))
            assert top.tobytes() == below.tobytes()
    run("mix_interpolate.py", "--dataset", model, "--pictures", *photos[:2], "--out", out)
    assert shape(out) == (GROUPS + 1, 2)


def test_edit_face(symbolic: str, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "edits.png"
    assert "{'Smiling': 'yes'}" in run("edit_face.py", "--dataset", symbolic, "--out", out)
    assert shape(out) == (8, 3)
    asked = ("--dataset", symbolic, "--attr", "class=b", "--top", 2, "--out", out)
    assert "{'class': 'b'}" in run("edit_face.py", *photos, *asked)
    assert shape(out) == (3, 3)


def test_inpaint(model: str, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "inpainted.png"
    run("inpaint.py", "--dataset", model, "--out", out)
    assert shape(out) == (8, 4)
    mask = tmp_path / "mask.png"
    Image.new("L", (40, 30), 255).save(mask)
    run("inpaint.py", *photos, "--dataset", model, "--mask", mask, "--out", out)
    assert shape(out) == (3, 4)


def test_trajectory(model: str, tmp_path: Path) -> None:
    out = tmp_path / "trajectory.png"
    printed = run("trajectory.py", "--dataset", model, "-n", 3, "--out", out)
    prior = tiny_config().prior
    assert prior is not None
    assert shape(out) == (3, prior.num_levels)
    assert printed.count("mean energy") == prior.num_levels
    animation = tmp_path / "animation.webp"
    run("trajectory.py", "--dataset", model, "-n", 1, "--out", animation)
    with Image.open(animation) as image:
        assert image.n_frames == prior.num_levels


@pytest.mark.slow
def test_train_your_own(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    printed = run("train_your_own.py", "--out", tmp_path, "--model", "circles")
    assert "circles" in printed
    assert is_image(tmp_path / "samples.png")
    assert (tmp_path / "model" / "weights_manifest.json").is_file()


# The notebook


NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def cells(kind: str) -> list[str]:
    every = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in every if cell["cell_type"] == kind]


def test_the_notebook_carries_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    for source in cells("code"):
        compile(source, NOTEBOOK.name, "exec")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    environment = {**os.environ, "HEBM_TINY": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    program = [sys.executable, "-c", "\n".join(cells("code"))]
    subprocess.run(program, cwd=tmp_path, env=environment, check=True)
    with Image.open(tmp_path / "animation.gif") as animation:
        assert animation.n_frames == 4


@pytest.mark.slow
def test_the_notebook_runs_in_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("HEBM_TINY", "1")
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [
        output["data"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result"
    ]
    assert sum("image/png" in data for data in shown) == 8
    assert (tmp_path / "animation.gif").is_file()
