"""Every example runs on a model folder and writes what it says.

Examples are the first code that people copy; without this they would rot with the first renamed
argument.
"""

import csv
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from tiny import tiny_config, tiny_pipeline

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
GROUPS = len(tiny_config().generator.latent_shapes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


def run(name: str, *arguments: object) -> str:
    """Run an example's command in this process; what it printed."""
    command = runpy.run_path(str(EXAMPLES / name))["main"]
    done = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG" and min(picture.size) >= 2 * 16


def test_no_example_is_left_out() -> None:
    tested = {"sample.py", "compare_priors.py", "energy_score.py", "train_your_own.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_sample(model: str, tmp_path: Path) -> None:
    run("sample.py", "--model", model, "--out", tmp_path / "faces.png")
    assert is_picture(tmp_path / "faces.png")


def test_compare_priors(model: str, tmp_path: Path) -> None:
    out = tmp_path / "priors.png"
    printed = run("compare_priors.py", "--model", model, "--out", out, "-n", 3)
    assert is_picture(out)
    assert printed.count("mean energy") == 2


def test_compare_priors_with_pictures(model: str, tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (20, 24), (60 * i, 90, 120)).save(tmp_path / f"{i}.png")
    out = tmp_path / "out" / "priors.png"
    out.parent.mkdir()
    arguments = ("--model", model, "--out", out, "--pictures", tmp_path)
    run("compare_priors.py", *arguments, "-n", 2)
    assert is_picture(out)
    command = runpy.run_path(str(EXAMPLES / "compare_priors.py"))["main"]
    refused = CliRunner().invoke(command, [*map(str, arguments), "-n", "3"])
    assert refused.exit_code == 2 and "has 2 pictures" in refused.output


def test_energy_score(model: str, tmp_path: Path) -> None:
    out = tmp_path / "energies.csv"
    printed = run("energy_score.py", "--model", model, "--out", out)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["pictures", *(f"top {k + 1}" for k in range(GROUPS))]
    assert [row[0] for row in rows[1:]] == ["samples"] * 8 + ["N(0, I)"] * 8 + ["noise"] * 8
    assert len(printed.splitlines()) == 4


def test_energy_score_of_files(model: str, tmp_path: Path) -> None:
    picture, out = tmp_path / "one.png", tmp_path / "energies.csv"
    Image.new("RGB", (40, 30), (200, 30, 90)).save(picture)
    assert str(picture) in run("energy_score.py", picture, "--model", model, "--out", out)
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_train_your_own(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    printed = run("train_your_own.py", "--out", tmp_path, "--model", "circles")
    assert "circles" in printed
    assert is_picture(tmp_path / "samples.png")
    assert (tmp_path / "model" / "weights_manifest.json").is_file()
