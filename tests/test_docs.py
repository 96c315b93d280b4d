"""The docs are true: links lead somewhere, examples run and print what they say, the site builds.

Pages rot in silence: a renamed heading breaks links that no program follows, and a block of code
that nobody runs goes on teaching an argument that is gone.
"""

import ast
import doctest
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "hebm_sample"
sys.path.append(str(DOCS / "figures"))

from pages import run_page, same_text, with_outputs  # noqa: E402

WRITTEN = ("*.md", "docs/**/*.md", "examples/**/*.md", ".github/**/*.md", "hebm_sample/**/*.md")
MARKDOWN = sorted(
    page for pattern in WRITTEN for page in ROOT.glob(pattern) if "_build" not in page.parts
)
PAGES_THAT_RUN = ("contributing.md", "reproducibility.md", "scoring.md", "tutorial.md")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Links


def prose(page: Path) -> str:
    """A page without its blocks of code and its code in lines."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^( *)(```+|~~~+).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]+`", lambda code: re.sub(r"[\[\]()#]", "", code[0]), text)


def anchors(page: Path) -> set[str]:
    """What `#...` can name on a page, by the rules of Git hosts, which MyST follows."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", prose(page), flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = 0
        while (own := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(own)
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    """Targets of a page's links and images within the repository."""
    text = prose(page)
    found = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def broken(page: Path) -> list[str]:
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            wrong.append(link)
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(f"{link}: {name_of(target)} has no such heading")
    return wrong


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken(page)


def test_broken_links_are_found(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text(
        "# A `code` heading, [linked](x)\n\n```bash\n# no heading\n```\n# Twice\n# Twice\n"
    )
    assert anchors(other) == {"a-code-heading-linked", "twice", "twice-1"}
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#twice-1) [c](#here) [d](https://x.org) `[e](f)`\n\n# Here\n"
    page.write_text(f"{good}\n```python\n[g](h)\n```\n")
    assert not broken(page)
    page.write_text(good + "[i](gone.md) ![j](no.png) [k](other.md#no-heading)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "ROOT", tmp_path)
        assert [link.split(":")[0] for link in broken(page)] == [
            "gone.md",
            "no.png",
            "other.md#no-heading",
        ]


def test_every_page_is_in_the_index() -> None:
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.M | re.S)
    listed = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages)


def test_every_image_of_the_tutorial_is_shown() -> None:
    folder = DOCS / "images" / "tutorial"
    shown = {Path(link).name for link in links(DOCS / "tutorial.md") if "images/" in link}
    assert {path.name for path in folder.iterdir()} == shown


# Examples


def test_pages_are_run_and_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    first, second = "```python\nx = 2\n```\n", "```python\nprint(x, 'is', x / 3)\n```\n"
    page.write_text(f"{first}\n{second}\n```text\n2 is 0.7\n```\n")
    ran = run_page(page, tmp_path)
    assert ran.names["x"] == 2
    assert ran.outputs == [("", ""), ("2 is 0.6666666666666666\n", "2 is 0.7\n")]
    assert all(same_text(*pair) for pair in ran.outputs)
    assert "2 is 0.6666666666666666\n```" in with_outputs(page, ran.outputs)
    assert not same_text("2 is 0.9", "2 is 0.7") and not same_text("2 was 0.7", "2 is 0.7")
    assert not same_text("120", "100") and same_text("102", "100") and same_text("-3", "-2")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES_THAT_RUN)
def test_blocks_run_and_print_what_the_page_says(name: str, tmp_path: Path) -> None:
    ran = run_page(DOCS / name, tmp_path)
    different = [pair for pair in ran.outputs if not same_text(*pair)]
    assert not different
    if name == "tutorial.md":
        kept = {path.name for path in (DOCS / "images" / "tutorial").iterdir()}
        drawn = {path.name for path in tmp_path.glob("*.png")}
        assert drawn and kept - drawn == {
            "chains.png",
            "energies.png",
            "levels.png",
            "prior-hole.png",
        }


def _examples_in(path: Path) -> list[str]:
    """Docstrings of a module that hold examples."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in texts if ">>>" in text]


def _loads_weights(text: str) -> bool:
    return "from_pretrained(" in text


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if _examples_in(path)]
QUICK = [p for p in MODULES if not all(_loads_weights(t) for t in _examples_in(p))]
SLOW = [p for p in MODULES if any(_loads_weights(t) for t in _examples_in(p))]


def run_examples(path: Path, *, with_weights: bool) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        if test.examples and _loads_weights(test.docstring or "") == with_weights:
            runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0


@pytest.mark.parametrize("path", QUICK, ids=name_of)
def test_examples_in_docstrings(path: Path) -> None:
    run_examples(path, with_weights=False)


@pytest.mark.slow
@pytest.mark.parametrize("path", SLOW, ids=name_of)
def test_examples_with_weights_in_docstrings(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples(path, with_weights=True)


@pytest.mark.parametrize(
    "name",
    ["io/seeds", "pipeline/outputs", "config/generator", "prior/schedule", "pipeline/pipeline"],
)
def test_what_people_meet_first_has_examples(name: str) -> None:
    assert PACKAGE / f"{name}.py" in MODULES


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as `make docs` does."""
    for package in ("sphinx", "myst_parser", "furo", "sphinx_click", "sphinx_copybutton"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    options = ["-b", "html", "-W", "--keep-going", "-q", "-d", str(out / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(DOCS), str(out / "html")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site: Path) -> None:
    built = {page.stem for page in site.glob("*.html")}
    assert built >= {page.stem for page in DOCS.glob("*.md")}


@pytest.mark.slow
def test_the_site_needs_no_other_site(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img)[^>]+src="(?:https?:)?//[^"]+"', text), page.name
        assert not re.findall(r'<link[^>]+rel="stylesheet"[^>]+"(?:https?:)?//', text), page.name
    assert "<math" in (site / "model.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_are_described_from_themselves(site: Path) -> None:
    text = (site / "cli.html").read_text(encoding="utf-8")
    for shown in ("hebm-sample", "hebm-edit inpaint", "hebm-train push", "--keep-top"):
        assert shown in re.sub(r"<[^>]+>", "", text), shown


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_knows_what_the_docs_say() -> None:
    asked = set(
        re.findall(r"^make ([a-z ]+?) *(?:#.*)?$", (DOCS / "contributing.md").read_text(), re.M)
    )
    targets = sorted({target for line in asked for target in line.split()})
    assert {"docs", "test", "lint"} <= set(targets)
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_promises_of_reliability_have_a_test() -> None:
    """A test that is renamed would leave a promise that nobody looks after."""
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    there = set(re.findall(r"def (test_\w+)", tests))
    there |= {p.stem for p in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) > 50 and not named - there
