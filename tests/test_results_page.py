"""The page of results and the cards say what docs/results/*.json say.

Without this a figure is measured anew and the page keeps the old one.
"""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from scripts import script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool():
    with script("tools/results_page.py") as module:
        yield module


@pytest.fixture
def copy(tool, tmp_path):
    """Docs, manifests and cards, without weights."""
    shutil.copytree(ROOT / "docs/results", tmp_path / "docs/results")
    shutil.copytree(ROOT / "docs/cards", tmp_path / "docs/cards")
    shutil.copytree(ROOT / "docs/images/results", tmp_path / "docs/images/results")
    shutil.copy(ROOT / "docs/results.md", tmp_path / "docs")
    shutil.copy(ROOT / "weights_manifest.json", tmp_path)
    skip = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(ROOT / "hebm_sample/weights", tmp_path / "weights", ignore=skip)
    return lambda: tool.Docs(
        tmp_path / "docs", tmp_path / "weights", tmp_path / "weights_manifest.json"
    )


def test_what_is_committed_is_what_the_numbers_make(tool):
    result = CliRunner().invoke(tool.main, ["--check"])
    assert result.exit_code == 0, result.output


def test_another_number_changes_page_card_and_manifest(copy, tmp_path):
    assert copy().differing() == []
    path = tmp_path / "docs/results/cifar10-32.json"
    found = json.loads(path.read_text())
    space = next(iter(found["parts"]["gap"]["gaps"].values()))
    space["gap_closed"] = 0.4321
    path.write_text(json.dumps(found))
    docs = copy()
    names = {Path(name).name for name in docs.differing()}
    assert names == {"results.md", "README.md", "weights_manifest.json"}
    assert "0.432" in docs.page() and "short (0.432)" in docs.page()


def test_taking_over_keeps_other_parts(tool, copy, tmp_path):
    docs = copy()
    before = docs.models["cifar10-32"]["parts"]
    hole = {"rate": [1 / 3], "part_seconds": 7.0}  # of a release that names no weights
    (tmp_path / "f.json").write_text(json.dumps(hole))
    docs.take_part("cifar10-32", "hole", tmp_path / "f.json")
    after = copy().models["cifar10-32"]["parts"]
    assert after == before | {"hole": {"rate": [0.333333]}}
    known = docs.models["cifar10-32"]["weights"]
    assert copy().models["cifar10-32"]["weights"] == known | {"hole": "unknown"}
    with pytest.raises(tool.UserInputError, match="there are no weights x; there are"):
        docs.take_part("x", "hole", tmp_path / "f.json")
    with pytest.raises(tool.UserInputError, match="'holes' is no part"):
        docs.take_part("cifar10-32", "holes", tmp_path / "f.json")


def test_the_page_never_mixes_two_sets_of_weights(tool, copy, tmp_path, monkeypatch):
    """Figures of other weights than are embedded are refused; old ones go when these change."""
    monkeypatch.setattr(tool.Docs, "hash_of", lambda self, key: "a" * 64)
    part = tmp_path / "f.json"

    def take(weights):
        part.write_text(json.dumps({"rate": [0.5], "weights": weights} if weights else {}))
        copy().take_part("cifar10-32", "hole", part)

    with pytest.raises(tool.UserInputError, match="of other weights"):
        take("b" * 64)
    take("a" * 64)
    kept = copy().models["cifar10-32"]
    assert len(kept["parts"]) > 1 and kept["weights"]["hole"] == "a" * 64
    path = tmp_path / "weights_manifest.json"
    text = path.read_text()
    digest = kept["files"]["prior.safetensors"]
    path.write_text(text.replace(digest, "c" * 64))  # other weights are embedded
    assert any("cifar10-32.json (of other weights" in name for name in copy().differing())
    with pytest.raises(tool.UserInputError, match="do not say which weights"):
        take("")
    before = (tmp_path / "docs/results/cifar10-32.json").read_bytes()
    with pytest.raises(tool.UserInputError, match="cifar10-32 would have no distances"):
        take("a" * 64)  # page and card begin with the gap
    assert (tmp_path / "docs/results/cifar10-32.json").read_bytes() == before
    part.write_text(json.dumps(kept["parts"]["gap"] | {"weights": "a" * 64}))
    copy().take_part("cifar10-32", "gap", part)
    take("a" * 64)
    after = copy().models["cifar10-32"]
    assert list(after["parts"]) == ["gap", "hole"] and "ablations" not in after


@pytest.mark.parametrize("name", ["gap", "control"])
def test_figures_of_another_sampler_are_refused(tool, copy, tmp_path, monkeypatch, name):
    found = dict(copy().models["cifar10-32"]["parts"]["gap"])
    found["sampling"] = found["sampling"] | {"steps": 4}
    (tmp_path / "f.json").write_text(json.dumps(found))
    with pytest.raises(tool.UserInputError, match=f"the part {name} was measured with other sett"):
        copy().take_part("cifar10-32", name, tmp_path / "f.json")


def test_seconds_of_training_are_those_of_the_config(copy, tmp_path):
    page = copy().page()
    assert "(its card)" in page and "(its config)" not in page
    for path in (tmp_path / "weights").glob("*/config.json"):
        config = json.loads(path.read_text())
        run = {"part": "prior", "seconds": 4321.4}
        path.write_text(json.dumps(config | {"training": [run, run | {"part": "decoder"}]}))
    assert "trained for 4,321 s (its config)" in copy().page()
    assert "(its card)" not in copy().page()
