"""Commands of benchmarks, tools, examples and figures take what their options give.

Without this an option is renamed, the function's argument is not, and the script ends with a
TypeError after somebody has typed it.
"""

import inspect
from pathlib import Path

import click
import pytest
from scripts import ROOT, script

FOLDERS = ("benchmarks", "tools", "examples", "docs/figures")
FILES = [
    str(path.relative_to(ROOT))
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "import click" in path.read_text(encoding="utf-8")
]


def commands(module):
    """Those that the module makes, not those that it imports."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, click.Command)
        and value.callback is not None
        and value.callback.__module__ == module.__name__
    ]


def test_there_are_such_files():
    assert len(FILES) > 15


@pytest.mark.parametrize("path", FILES)
def test_options_are_arguments(path):
    for name in ("gradio", "selenium", "matplotlib"):
        if f"import {name}" in Path(ROOT / path).read_text(encoding="utf-8"):
            pytest.importorskip(name)
    with script(path) as module:
        found = commands(module)
        assert found
        for command in found:
            function = inspect.unwrap(command.callback)
            parameters = inspect.signature(function).parameters
            given = {p.name for p in command.params if getattr(p, "expose_value", True)}
            named = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD} - {"ctx"}
            assert named == given if len(named) == len(parameters) else named <= given
