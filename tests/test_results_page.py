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
    hole = {"rate": [1 / 3], "part_seconds": 7.0}
    (tmp_path / "f.json").write_text(json.dumps(hole))
    docs.take_part("cifar10-32", "hole", tmp_path / "f.json")
    after = copy().models["cifar10-32"]["parts"]
    assert after == before | {"hole": {"rate": [0.333333]}}
    with pytest.raises(tool.UserInputError, match="there are no weights x; there are"):
        docs.take_part("x", "hole", tmp_path / "f.json")
    with pytest.raises(tool.UserInputError, match="'holes' is no part"):
        docs.take_part("cifar10-32", "holes", tmp_path / "f.json")
