"""The command `hebm-eval`: distances, control, ood, report, compare.

Each subcommand has its own options only. `hebm-train evaluate`, which had all of them, is
translated by `legacy`.
"""

from typing import Any

import click

from hebm_sample import __version__
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.compare import compare
from hebm_sample.cli.evaluation.control import control
from hebm_sample.cli.evaluation.distances import distances
from hebm_sample.cli.evaluation.ood import ood
from hebm_sample.cli.evaluation.options import ARGUMENTS
from hebm_sample.cli.evaluation.report import report

__all__ = ["main"]


class _Group(OneLineErrors, click.Group):
    """A group whose every error is one line, and which remembers what was typed."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        typed = list(args)
        ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta[ARGUMENTS] = typed
        return ctx


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="hebm-eval %(version)s")
def main() -> None:
    """Measure models on images that they were not trained on."""


for command in (distances, control, ood, report, compare):
    main.add_command(command)


if __name__ == "__main__":
    main()
