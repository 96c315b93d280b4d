"""Runs what the page tells people to type."""

import shlex

from click.testing import CliRunner

from hebm_sample.cli import edit as edit_cli
from hebm_sample.cli import sample as cli


def run_python(lines: str) -> dict:
    """The names that a program binds."""
    names: dict = {}
    exec(compile(lines, "lines", "exec"), names)
    return names


def run_shell(lines: str) -> None:
    for line in lines.splitlines():
        program, *words = shlex.split(line, comments=True)
        command = {"hebm-sample": cli.main, "hebm-edit": edit_cli.main}[program]
        done = CliRunner().invoke(command, [*words, "--quiet"])
        assert done.exit_code == 0, done.output
