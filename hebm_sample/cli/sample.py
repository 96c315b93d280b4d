"""The command `hebm-sample`: its options, its help, and which work they start.

Whatever can be checked without the model (options, seeds, output paths) is checked first, and
torch is imported only after that (`work/sampling.py`).
"""

from typing import Any

import click

from hebm_sample import __version__
from hebm_sample.cli.list_models import list_models
from hebm_sample.cli.options import (
    CONTEXT,
    DATASET,
    DECODER,
    MANY,
    MODEL,
    OUTPUT,
    OVERWRITE,
    REVISION,
    SAMPLER,
    SectionedCommand,
    one_model,
    option,
    out,
    outdir,
    seeds,
    steering,
    taking,
)
from hebm_sample.cli.requests.grammar import MixType, NumberType, SeedType, WordType
from hebm_sample.cli.requests.sample import (
    DEFAULT_COLUMNS,
    DEFAULT_IMAGES,
    RANKINGS,
    SampleOptions,
)
from hebm_sample.cli.verify import verify
from hebm_sample.errors import UserInputError
from hebm_sample.io.animation import ANIMATED, HOLD, MAX_SECONDS, SECONDS
from hebm_sample.io.seeds import MAX_SEEDS

__all__ = ["main"]

_EXAMPLES = """\b
Examples:
  hebm-sample --dataset celebahq                     16 images to celebahq.png
  hebm-sample --dataset celebahq -n 64 --out faces.png
  hebm-sample --dataset celebahq -n 4 --seed 7       seeds 7 to 10
  hebm-sample --dataset celebahq --seeds 0-15,20 --outdir faces
  hebm-sample --dataset cifar10 --class horse --guidance 2
  hebm-sample --dataset celeba64 --attr Smiling --attr Male=no
  hebm-sample --dataset celebahq --keep-top 3 --from-seed 7 -n 8
  hebm-sample --dataset celebahq --layers --seeds 7  top to bottom, one more block freed a row
  hebm-sample --dataset celebahq --sampler flow --steps 20
  hebm-sample --dataset celeba64 --trajectory --sampler flow --steps 24 --out way.gif
  hebm-sample --list
  hebm-sample --verify                               every file against its SHA-256

Completion: eval "$(_HEBM_SAMPLE_COMPLETE=bash_source hebm-sample)" in ~/.bashrc; also zsh, fish.
"""

# The command


# What the commands that sample nothing take beside themselves.
_LIST_TAKES = {"list_models", "as_json", "quiet"}
_PLACE = {"dataset", "resolution", "revision", "cache_dir"}
_VERIFY_TAKES = {"verify", "offline", "as_json", "quiet", "model", *_PLACE}


def _refuse_company(ctx: click.Context, allowed: set[str], message: str) -> None:
    """An option that would be ignored is an error."""
    typed = click.core.ParameterSource.COMMANDLINE
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is typed}
    if given - allowed:
        raise UserInputError(f"{message}; leave the other options out")


_NUMBER = click.IntRange(1, MAX_SEEDS)
_SECONDS = NumberType(0, MAX_SECONDS, min_open=True)
_HELP = {
    "list": "Show the models and their symbols, and leave.",
    "verify": "Check the SHA-256 of every file, of --dataset or of all models, and leave.",
    "n": "Number of images, of seeds 0 to N-1; with a single --seed S of S to S+N-1.  "
    f"[default: {DEFAULT_IMAGES}]",
    "seeds": "One image per seed: numbers and ranges, 0-15,20.",
    "from": "Variations of this seed's image: with the noise of --seeds, or of the -n seeds that "
    "follow it.",
    "keep": "With --from-seed or --mix: number of top groups of latents that are kept.",
    "layers": "One seed from top to bottom: each row frees one more group; -n columns "
    f"[default: {DEFAULT_COLUMNS}].",
    "mix": "Coarse groups of seed A, fine ones of seed B: one image for each cut, B to A.",
    "trajectory": "A row per seed: its image after each noise level; an animation if --out "
    f"ends in {' or '.join(ANIMATED)}.",
    "seconds": f"How long it runs before the last image is held for {HOLD:g} s.  "
    f"[default: {SECONDS:g}]",
    "best": "Of N candidates per image, keep the one that ranks first.",
    "rank": "With --best-of: density, the highest log p(u | y), or energy, the lowest -F.  "
    "[default: density]",
    "gaussian": "Sample from N(0, I), without the energy-based prior.",
    "columns": "Of the grid.  [default: near to a square]",
    "scale": "Show each pixel as K x K: for small images.",
    "skip": "With --outdir: leave out seeds whose file was made by the same command.",
}


@click.command(
    cls=SectionedCommand,
    epilog=_EXAMPLES,
    context_settings=CONTEXT,
)
@taking(
    DATASET,
    REVISION,
    MODEL,
    option("Model", "--list", "list_models", is_flag=True, help=_HELP["list"]),
    option("Model", "--verify", is_flag=True, help=_HELP["verify"]),
    option("Images", "-n", "--num-images", "--num", type=_NUMBER, metavar="N", help=_HELP["n"]),
    seeds(_HELP["seeds"]),
    option("Images", "--from-seed", type=SeedType(), metavar="S", help=_HELP["from"]),
    option("Images", "--keep-top", type=click.IntRange(0), metavar="K", help=_HELP["keep"]),
    option("Images", "--layers", is_flag=True, help=_HELP["layers"]),
    option("Images", "--mix", type=MixType(), metavar="A:B", help=_HELP["mix"]),
    option("Images", "--trajectory", is_flag=True, help=_HELP["trajectory"]),
    option(
        "Images",
        "--seconds",
        type=_SECONDS,
        metavar="S",
        help=_HELP["seconds"],
    ),
    steering(),
    option("Steering", "--best-of", type=click.IntRange(1, 1000), metavar="N", help=_HELP["best"]),
    option("Steering", "--rank-by", type=WordType(RANKINGS), help=_HELP["rank"]),
    SAMPLER,
    option("Sampler", "--gaussian-prior", is_flag=True, help=_HELP["gaussian"]),
    MANY,
    out("One image file with all images on a grid.  [default: the model's name.png]"),
    option("Output", "--columns", type=_NUMBER, metavar="N", help=_HELP["columns"]),
    DECODER,
    option("Output", "--scale", type=click.IntRange(1, 64), metavar="K", help=_HELP["scale"]),
    outdir("One PNG an image instead: DIR/seed0007.png. If stopped, it goes on from there."),
    option("Output", "--skip-existing", is_flag=True, help=_HELP["skip"]),
    OVERWRITE,
    OUTPUT,
)
@click.version_option(__version__, message="hebm-sample %(version)s")
@click.pass_context
def main(ctx: click.Context, /, **options: Any) -> None:
    """Sample images from a hierarchical generator with an energy-based prior.

    One seed is one image, whatever the batch. On a terminal a progress bar counts gradient
    evaluations. Seeds, model, condition, settings and version are written into the PNG's text.
    """
    options["dataset"] = one_model(options.pop("model"), options["dataset"])
    if options["list_models"]:
        _refuse_company(ctx, _LIST_TAKES, "--list goes with --json at most")
        list_models(options["as_json"])
    elif options.pop("verify"):
        _refuse_company(ctx, _VERIFY_TAKES, "--verify goes with what says where a model lies")
        verify(
            **{name: options[name] for name in _PLACE},
            local_files_only=options["offline"],
            as_json=options["as_json"],
            quiet=options["quiet"],
        )
    else:
        from hebm_sample.cli.work.sampling import sample

        sample(SampleOptions(**options))


if __name__ == "__main__":
    main()
