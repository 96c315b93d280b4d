"""What the tests' own options promise: a test for another machine is not selected, and a device
that is not there is one line.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = """
import pytest

@pytest.mark.gpu
def test_gpu(): pass

@pytest.mark.network
def test_network(): pass

def test_device(device): assert device == {device!r}
"""


@pytest.fixture
def run(tmp_path):
    here = Path(__file__).with_name("conftest.py")
    (tmp_path / "conftest.py").write_text(here.read_text(encoding="utf-8"), encoding="utf-8")

    def outcomes(*options: str, device: str = "cpu") -> tuple[dict[str, int], str]:
        (tmp_path / "test_it.py").write_text(TESTS.format(device=device), encoding="utf-8")
        (tmp_path / "none.ini").write_text("[pytest]\n", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-c", "none.ini", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, "-p", "no:xdist", *options, "test_it.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        last = done.stdout.splitlines()[-1]
        return {name: int(n) for n, name in re.findall(r"(\d+) (\w+)", last)}, done.stdout

    return outcomes


@pytest.mark.slow
def test_what_this_machine_cannot_run_is_not_selected(run):
    missing = 0 if torch.cuda.is_available() else 1
    counts, _ = run()
    assert counts["passed"] == 2 - missing and counts["deselected"] == 1 + missing
    counts, _ = run("--network")
    assert counts["passed"] == 3 - missing and counts.get("deselected", 0) == missing


@pytest.mark.slow
def test_a_device_that_is_not_there_fails_in_a_line(run):
    counts, said = run("--device", "meta", device="meta")
    assert counts["passed"] == 1
    counts, said = run("--device", "xpu")
    assert counts.get("failed", 0) + counts.get("error", 0) == 1
    assert "--device xpu cannot be used" in said
