"""An ablation changes one setting at a time, and goes on where it was.

Without this two points of a curve differ by more than its axis says, or an evening is measured
twice.
"""

import json

import pytest
from click.testing import CliRunner
from scripts import script
from tiny import tiny_pipeline
from toy import draw_images

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def tool():
    with script("tools/ablate.py") as module:
        yield module


@pytest.mark.slow
def test_variants_are_trained_drawn_measured_and_kept(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / "images", count=60)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    command = ["model", "--data", "images", "--out", "out", "--validation", "24", "-n", "12"]
    command += ["--max-steps", "2", "--batch", "12", "--quiet", "--device", "cpu"]
    command += ["--only", "step-scale,ema,levels-mle", "--set", "chain_steps=2"]
    result = CliRunner().invoke(tool.main, command)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out/results.json").read_text())["ablations"]
    assert [row["label"] for row in found["step-scale"]] == ["0.5", "1", "1.5", "2"]
    assert [row["changes"] for row in found["levels-mle"]][3][0] == "prior.num_levels=4"
    assert len({row["frechet"] for row in found["step-scale"]}) == 4
    steps = {row["training"]["steps"] for name in ("ema", "levels-mle") for row in found[name]}
    assert steps == {2}
    # One run is looked at twice; the energies of each T start from it.
    assert len(list((tmp_path / "out/runs").iterdir())) == 1 + 5
    for name in found:
        assert (tmp_path / f"out/figures/ablation-{name}.png").is_file()
    monkeypatch.setattr(tool.Ablation, "trained", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(tool.Ablation, "sampled", lambda *_: pytest.fail("drawn again"))
    assert CliRunner().invoke(tool.main, command).exit_code == 0
    result = CliRunner().invoke(tool.main, [*command, "--only", "levels,depth"])
    assert result.exit_code == 2 and "no ablation depth; there are levels" in result.stderr
