"""What the README and the docs tell people to type exists, and what they link to is there.

A renamed option would otherwise break the first thing that a newcomer tries, with all other tests
passing.
"""

import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("*.md"))
PROGRAMS = ("hebm-sample", "hebm-edit", "hebm-train")


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
    if words[0] == "hebm-sample":
        from hebm_sample.cli import main
    elif words[0] == "hebm-edit":
        from hebm_sample.edit_cli import main
    else:
        from hebm_sample.training.cli import main
    command, rest = main, words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{rest[0]} is not one of {sorted(command.commands)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def test_the_readme_shows_all_programs() -> None:
    assert {command[0] for command in OURS} == set(PROGRAMS)
    verbs = {command[1] for command in OURS if command[0] == "hebm-train"}
    assert verbs == {"generator", "prior", "export", "evaluate", "push"}


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
    command.make_context(command.name, list(rest))


@pytest.mark.parametrize("option", re.findall(r"`(--[a-z-]+)`", README))
def test_options_named_in_the_text_exist(option: str) -> None:
    commands = [_resolve(words)[0] for words in OURS]
    assert option in {name for c in commands for p in c.params for name in p.opts}


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
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    develop = next(block for block in _blocks("bash") if "pytest" in block)
    arguments = re.search(r"pip install (.*?) &&", develop)
    tests = re.search(r"bin/(pytest .*)", develop)
    assert arguments is not None and arguments[1] in script
    assert tests is not None and tests[1] in script
