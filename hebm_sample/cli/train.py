"""The command `hebm-train`: generator, prior, decoder, recipe, export, evaluate,
classifier, baseline, calibrate, crop, push, import-nvae.

Options override single values of a preset. A run lives in one folder, `--out`; `--resume` goes on
from its newest whole checkpoint. `accelerate launch -m hebm_sample.training ...` runs the same
commands on several devices.
"""

import click

from hebm_sample import __version__
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.evaluation.baseline import baseline
from hebm_sample.cli.evaluation.calibrate import calibrate
from hebm_sample.cli.evaluation.classifier import classifier, judge
from hebm_sample.cli.evaluation.crop import crop
from hebm_sample.cli.evaluation.legacy import evaluate
from hebm_sample.cli.import_nvae import import_nvae
from hebm_sample.cli.printing import say
from hebm_sample.cli.push import push
from hebm_sample.cli.training.export import export
from hebm_sample.cli.training.recipe import recipe
from hebm_sample.cli.training.runs import decoder, generator, prior

__all__ = ["main"]


class _OneLineGroup(OneLineErrors, click.Group):
    """A group of commands whose every error is one line."""


def _list_presets(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value:
        return
    from hebm_sample.presets.models import PRESETS

    for name, preset in sorted(PRESETS.items()):
        say(f"{name:15} {preset.note}")
    ctx.exit()


@click.group(
    cls=_OneLineGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--list-presets",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_presets,
    help="And leave.",
)
@click.version_option(__version__, message="hebm-train %(version)s")
def main() -> None:
    """Train, export and measure models."""


for command in (
    generator,
    prior,
    decoder,
    recipe,
    export,
    evaluate,
    classifier,
    baseline,
    calibrate,
    crop,
    push,
    import_nvae,
):
    main.add_command(command)
main.add_command(judge, "judge")


if __name__ == "__main__":
    main()
