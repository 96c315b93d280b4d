"""`hebm-train evaluate`, as it was: the `hebm-eval` line that is the same, said and run."""

import shlex
from collections.abc import Sequence

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.printing import say
from hebm_sample.errors import UserInputError

__all__ = ["evaluate", "translated"]

_FLAGS = ("--control", "--quiet", "--inception", "--overwrite")
_VALUES = {"--report": 1, "--compare": 2}  # of the options that choose a subcommand


def _tokens(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Options with their values, and ("", [word]) for other words."""
    rest, found = list(arguments), []
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            found.append(("", [word]))
        elif equals and word.startswith("--"):
            found.append((name, [value]))
        elif word in _FLAGS or (word.startswith("-n") and word != "-n"):
            found.append((word, []))
        else:
            count = _VALUES.get(word, 1)
            found.append((word, rest[:count]))
            del rest[:count]
    return found


def _subcommand(names: set[str]) -> str:
    if names >= {"--control", "--report"}:
        raise UserInputError("a report has the control tables in it; leave --control out")
    if "--compare" in names and names & {"--control", "--report"}:
        raise UserInputError("--compare takes two folders and no model; leave the others out")
    return next((n[2:] for n in ("--report", "--control", "--compare") if n in names), "distances")


def translated(arguments: Sequence[str]) -> list[str]:
    """Arguments of `hebm-train evaluate` as those of `hebm-eval`.

    >>> translated(["m", "--data", "d", "--report", "out"])
    ['report', 'm', '--data', 'd', '--out', 'out']
    >>> translated(["--compare", "a", "b"])
    ['compare', 'a', 'b']
    """
    tokens = _tokens(arguments)
    command = _subcommand({name for name, _ in tokens})
    if (command == "compare") == any(not name for name, _ in tokens):
        raise UserInputError("give a MODEL, or two folders with --compare, and not both")
    line = [command]
    for name, values in tokens:
        if name == "--report":
            line += ["--out", *values]
        elif name == "--compare" or not name:
            line += values
        elif name != "--control":
            line += [name, *values]
    return line


@click.command(
    cls=OneLineErrors,
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    short_help="Measure a model: hebm-eval's earlier name.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="MODEL [OPTIONS]")
def evaluate(arguments: tuple[str, ...]) -> None:
    """Measure a model: the earlier spelling of hebm-eval, which says the new one and runs it.

    \b
    hebm-train evaluate MODEL ...               hebm-eval distances MODEL ...
    hebm-train evaluate MODEL --control ...     hebm-eval control MODEL ...
    hebm-train evaluate MODEL --report DIR ...  hebm-eval report MODEL --out DIR ...
    hebm-train evaluate --compare A B ...       hebm-eval compare A B ...

    Options are those of hebm-eval.
    """
    from hebm_sample.cli.evaluation.main import main

    line = translated(arguments)
    if "--quiet" not in line:
        say(f"hebm-train evaluate is now: hebm-eval {shlex.join(line)}", err=True)
    main.main(args=line, prog_name="hebm-eval", standalone_mode=False)
