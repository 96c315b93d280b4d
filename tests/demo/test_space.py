"""The Space's card says what its program needs, and its program builds the page.

A Space is built elsewhere and later: a card that names another gradio, or a program that imports
what is gone, would be found by visitors.
"""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "examples" / "space"


def card() -> dict[str, str]:
    """The simple keys of the front matter."""
    _, front, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return dict(re.findall(r"^(\w+): *(\S.*)$", front, flags=re.MULTILINE))


def test_the_card_is_that_of_a_space() -> None:
    found = card()
    assert found["sdk"] == "gradio" and (SPACE / found["app_file"]).is_file()
    assert {"title", "emoji", "license", "license_name", "python_version"} <= set(found)
    assert len(found["short_description"]) <= 60
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"gradio=={found['sdk_version']}\n" in pins


def test_the_requirement_is_this_package() -> None:
    import hebm_sample

    (line,) = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert line == f"hebm-sample[demo,align]>={hebm_sample.__version__}"


@pytest.mark.slow
def test_the_program_builds_the_page(monkeypatch) -> None:
    gradio = pytest.importorskip("gradio", reason="gradio is not installed (extra: demo)")
    monkeypatch.setattr(sys, "argv", ["app.py"])
    page = runpy.run_path(str(SPACE / "app.py"))["page"]
    assert isinstance(page, gradio.Blocks)
    labels = [block.label for block in page.blocks.values() if hasattr(block, "choices")]
    assert "Model" in labels and "Smiling" in labels
    queued = {
        getattr(event.fn, "__name__", ""): (event.queue, event.concurrency_id)
        for event in page.fns.values()
    }
    work = ("draw", "vary", "reconstruct", "edit")
    assert [queued[name] for name in work] == [(True, "chain")] * len(work)
