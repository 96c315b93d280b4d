"""A sweep over KL weights trains each candidate once, and shows which has the nearest samples.

Without this the rate of a long run is chosen by figures that compare a model with itself only.
"""

import json

import pytest
from click.testing import CliRunner
from scripts import script
from tiny import tiny_pipeline
from toy import draw_images, short_preset

from hebm_sample.errors import UserInputError
from hebm_sample.presets import models


@pytest.fixture(scope="module")
def tool():
    with script("tools/sweep_rate.py") as module:
        yield module


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    draw_images(folder / "images", count=60)
    tiny_pipeline().save_pretrained(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def short(home, monkeypatch):
    monkeypatch.setenv("HEBM_CACHE", str(home / "cache"))
    monkeypatch.setitem(models.PRESETS, "tiny", short_preset(validation=24))


def sweep(tool, home, *more):
    line = ["tiny", "--data", home / "images", "--out", home / "out", "--model", home / "model"]
    line += ["--steps", "2,2,2", "-n", 12, "--device", "cpu", "--quiet", *more]
    return CliRunner().invoke(tool.main, [str(x) for x in line])


@pytest.mark.slow
def test_candidates_are_trained_once_and_compared(tool, home, monkeypatch):
    first = sweep(tool, home, "--weights", "5", "--weights", "1,9")
    assert first.exit_code == 0, first.output
    found = json.loads((home / "out/sweep.json").read_text())
    assert [row["weights"] for row in found["candidates"]] == [[5.0], [1.0, 9.0]]
    assert found["steps"] == [2, 2, 2]
    (space,) = found["real"]
    nearest = min(found["candidates"], key=lambda row: row["distances"][space]["samples"])
    lines = (home / "out/sweep.md").read_text().splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1 and lines[:5] == [
        line for line in first.stdout.splitlines() if line.startswith("|")
    ]
    bold = [line for line in lines if "**" in line]
    assert len(bold) == 1 and f"| {', '.join(f'{w:g}' for w in nearest['weights'])} |" in bold[0]

    for name in ("train_generator", "train_prior", "train_decoder", "measure"):
        monkeypatch.setattr(tool, name, lambda *_, **__: pytest.fail("made again"))
    assert sweep(tool, home, "--weights", "1,9", "--weights", "5").exit_code == 0
    # Other runs are other candidates.
    monkeypatch.setattr(tool, "train_generator", stop)
    result = sweep(tool, home, "--weights", "5", "--set", "prior", "settings.batch_size=4")
    assert result.exit_code == 2 and "it is trained" in result.stderr


def stop(*_, **__):
    raise UserInputError("it is trained")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("1,2,3,4", "3 groups: give one number, one per scale or one per group"),
        ("0", "write numbers above 0"),
        ("5,-1", "write numbers above 0"),
        ("much", "write numbers above 0"),
        ("nan", "write numbers above 0"),
    ],
)
def test_other_weights_are_refused_before_anything_is_trained(tool, home, weights, message):
    result = sweep(tool, home, "--weights", weights)
    assert result.exit_code == 2 and message in result.stderr


def test_so_are_other_models_and_too_many_images(tool, home, monkeypatch):
    assert "24 held-out ones allow 12" in sweep(tool, home, "--weights", "5", "-n", 13).stderr
    monkeypatch.setitem(models.PRESETS, "tiny", models.find_preset("cifar10"))
    assert "another generator than preset" in sweep(tool, home, "--weights", "5").stderr


def test_dead_groups_are_named(tool):
    row = {"weights": [5.0], "bits": 4.0, "kl": [20.0, 0.5, 3.0]}
    assert tool._rate_cells(row, [1, 2]) == ["5", "20 / 4 (1 dead)", "24", "4.000"]
