"""What the README and the docs tell people to type exists, and what they link to is there; every
block of the README runs (slow).

A renamed option would otherwise break the first thing that a newcomer tries, with all other tests
passing.
"""

import contextlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS: dict[str, str] = PROJECT["project"]["scripts"]
PROGRAMS = ("hebm-sample", "hebm-edit", "hebm-train", "hebm-eval", "hebm-demo")

# What the blocks are run with here, where it is not what they say, and why.
CHANGED = {
    # The project's own environment is under test; .ci/run makes these two from nothing.
    r"python3 -m venv \S+ && \S+/pip install [^&]+ && ": "",
    r"\.venv/bin/pytest.*": "true",  # the tests that are running
    r"\.venv/bin/": "",
    # Seconds and 48 images in place of hours and thousands.
    r"--time-budget \w+": "--preset tiny --max-steps 4 --validation 20",
    r"(hebm-eval distances .*)": r"\1 --validation 20 -n 10",
}


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def _commands(text: str = README) -> list[list[str]]:
    """Words of each simple command in the shell blocks, split at `&&`, comments dropped."""
    commands = []
    for line in "".join(_blocks("bash", text)).replace("\\\n", " ").splitlines():
        for words in re.split(r"\s&&\s", line):
            if found := shlex.split(words, comments=True):
                commands.append([Path(found[0]).name, *found[1:]])
    return commands


OURS = [command for command in _commands() if command[0] in PROGRAMS]
IN_DOCS = [
    command
    for page in PAGES
    for command in _commands(page.read_text(encoding="utf-8"))
    if command[0] in PROGRAMS and command not in OURS
]


def _resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The click command that these words run, and the words that follow its name."""
    module, _, name = SCRIPTS[words[0]].partition(":")
    command, rest = getattr(importlib.import_module(module), name), words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{rest[0]} is not one of {sorted(command.commands)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def test_the_readme_shows_all_programs() -> None:
    shown = {command[0] for command in OURS}
    assert shown | {"hebm-demo"} == set(PROGRAMS) and "`hebm-demo`" in README
    verbs = {command[1] for command in OURS if command[0] == "hebm-train"}
    assert verbs == {"generator", "prior", "decoder", "export", "push"}


@pytest.mark.parametrize("words", OURS + IN_DOCS, ids=" ".join)
def test_options_exist(words: list[str]) -> None:
    command, rest = _resolve(words)
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    asked = {word.partition("=")[0] for word in rest if re.match(r"--?[A-Za-z]", word)}
    assert asked <= known


@pytest.mark.parametrize("words", OURS + IN_DOCS, ids=" ".join)
def test_the_words_can_be_parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Values too: choices and ranges. The reader's folders are not here, so none is looked for.
    command, rest = _resolve(words)
    for parameter in command.params:
        if isinstance(parameter.type, click.Path):
            monkeypatch.setattr(parameter.type, "exists", False)
    with contextlib.suppress(click.exceptions.Exit):  # of options that answer and leave
        command.make_context(command.name, list(rest))


@pytest.mark.parametrize("option", re.findall(r"`(--[a-z-]+)`", README))
def test_options_named_in_the_text_exist(option: str) -> None:
    commands = [_resolve(words)[0] for words in OURS]
    assert option in {"--help"} | {name for c in commands for p in c.params for name in p.opts}


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", README)
    local = [target for target in targets if "://" not in target]
    assert local
    missing = [target for target in local if not (ROOT / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_docs_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_the_gallery_draws_what_it_is_asked_to() -> None:
    script = (ROOT / "docs/figures/gallery.py").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^@figure\ndef (\w+)\(", script, flags=re.MULTILINE))
    text = README + (ROOT / "docs/gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"gallery\.py (\w+)", text)) == drawn
    assert {name.replace("_", "-") for name in drawn} <= set(
        re.findall(r"images/([\w-]+)\.webp", text)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_the_docs_are_python(page: Path) -> None:
    for block in _blocks("python", page.read_text(encoding="utf-8")):
        compile(block, page.name, "exec")


def test_paths_named_in_the_text_exist() -> None:
    paths = re.findall(r"`(hebm_sample/[\w./]+)`", README)
    assert paths
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_python_blocks_are_python() -> None:
    blocks = _blocks("python")
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


# As written


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with what the README takes for granted, and an environment with the commands.

    The images are drawn, and the Hub is one on this machine.
    """
    from hub.loopback import SECRET, LoopbackHub
    from toy import draw_images

    folder, programs = tmp_path_factory.mktemp("desk"), tmp_path_factory.mktemp("bin")
    draw_images(folder / "photos", count=48)
    face = np.full((218, 178, 3), 127, np.uint8)
    Image.fromarray(face).save(folder / "face.jpg")
    for name, place in SCRIPTS.items():
        module, _, function = place.partition(":")
        code = f"from {module} import {function}; {function}(prog_name='{name}')"
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{code}" "$@"\n')
        script.chmod(0o755)
    with LoopbackHub() as hub:
        yield (
            folder,
            {
                **os.environ,
                "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "HEBM_CACHE": str(folder / "cache"),
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(folder / "hub"),
                "HF_HUB_DISABLE_XET": "1",
                "HF_TOKEN": SECRET,
                "NO_PROXY": "127.0.0.1,localhost",
            },
        )


def _first_line(block: str) -> str:
    return block.splitlines()[0][:40]


def _written(block: str) -> list[str]:
    """The images that a block names as its results."""
    return re.findall(r'--out (\S+\.\w+)|\.save\("([^"]+)"\)', block)


def _run(desk: tuple[Path, dict[str, str]], block: str, *program: str) -> None:
    folder, environment = desk
    named = [a or b for a, b in _written(block)]
    for name in named:
        (folder / name).unlink(missing_ok=True)
    done = subprocess.run(
        [*program, block], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
    for name in named:
        with Image.open(folder / name) as image:
            image.load()
            assert min(image.size) >= 32


@pytest.mark.slow
@pytest.mark.parametrize("block", _blocks("python"), ids=_first_line)
def test_python_blocks_run(desk: tuple[Path, dict[str, str]], block: str) -> None:
    _run(desk, block, sys.executable, "-c")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the README's commands are for bash")
@pytest.mark.parametrize("block", _blocks("bash"), ids=_first_line)
def test_commands_run(desk: tuple[Path, dict[str, str]], block: str) -> None:
    if "hebm-train" in block:
        for module in ("accelerate", "scipy"):
            pytest.importorskip(module)
    for old, new in CHANGED.items():
        block = re.sub(old, new, block)
    _run(desk, block, "bash", "-euo", "pipefail", "-c")


def test_every_change_to_the_blocks_is_needed() -> None:
    text = "".join(_blocks("bash"))
    assert [old for old in CHANGED if not re.search(old, text)] == []


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    develop = next(block for block in _blocks("bash") if "pytest" in block)
    arguments = re.search(r"pip install (.*?) &&", develop)
    tests = re.search(r"bin/(pytest .*)", develop)
    assert arguments is not None and arguments[1] in script
    assert tests is not None and tests[1] in script
