"""What runs on other systems is pinned by commit, and covers the versions that are promised."""

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_actions_are_pinned_by_commit(path: Path) -> None:
    uses = re.findall(r"uses:\s*(\S+)", path.read_text(encoding="utf-8"))
    assert uses and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name) for name in uses)


def test_the_lowest_and_newest_versions_are_tested() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    rows = jobs["tests"]["strategy"]["matrix"]["include"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = project["requires-python"].removeprefix(">=")
    torch = next(d for d in project["dependencies"] if d.startswith("torch>="))
    oldest = next(row for row in rows if row["python"] == lowest)
    assert oldest["torch"].startswith(torch.removeprefix("torch>="))
    assert {row["os"].split("-")[0] for row in rows} == {"ubuntu", "macos", "windows"}
    assert any(row["torch"] == "newest" for row in rows)
