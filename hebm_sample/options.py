"""What `hebm-sample` was asked: the typed options, checked against each other.

An option that would be ignored is an error, so that nothing that was typed is without effect.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from hebm_sample.errors import UserInputError
from hebm_sample.seeds import parse_seeds

__all__ = ["DEFAULT_PICTURES", "SampleOptions", "SeedsType", "finite"]

DEFAULT_PICTURES = 16


@dataclass(frozen=True)
class SampleOptions:
    """What was typed, as click parsed it; None where nothing was.

    Raises `UserInputError` for a combination that makes no sense.
    """

    dataset: str | None
    num_images: int | None
    seeds: tuple[int, ...] | None
    resolution: int | None
    out: Path | None
    outdir: Path | None
    skip_existing: bool
    sampler: str | None
    steps: int | None
    temperature: float | None
    gaussian_prior: bool
    device: str
    dtype: str
    batch: int
    offline: bool
    revision: str | None
    cache_dir: Path | None
    list_models: bool
    as_json: bool
    quiet: bool

    def __post_init__(self) -> None:
        def refuse(wrong: bool, message: str) -> None:
            if wrong:
                raise UserInputError(message)

        out, seeds = self.out, self.seeds
        refuse(not self.dataset, "--dataset is missing; `hebm-sample --list` shows the models")
        refuse(
            out is not None and self.outdir is not None,
            "--out writes one grid, --outdir one file a picture; give one of the two",
        )
        refuse(
            out is not None and out.suffix.lower() != ".png",
            f"--out is {str(out)!r}; pictures are written as PNG: end it in .png",
        )
        refuse(
            self.skip_existing and self.outdir is None,
            "--skip-existing goes with --outdir; a grid is always drawn anew",
        )
        refuse(
            self.gaussian_prior and not (self.sampler is None and self.steps is None),
            "--gaussian-prior draws without a chain; leave --sampler and --steps out",
        )
        refuse(
            seeds is not None and self.num_images not in (None, len(seeds)),
            f"--num-images is {self.num_images}, but --seeds names {len(seeds or ())}; "
            "give one of the two",
        )

    @property
    def asked_seeds(self) -> tuple[int, ...]:
        """The seeds as typed, or 0 to n-1."""
        return self.seeds or tuple(range(self.num_images or DEFAULT_PICTURES))

    @property
    def grid_path(self) -> Path:
        """Where the grid goes: --out, or the model's last name with .png."""
        name = os.path.basename(os.path.abspath(self.dataset or "")) or "samples"
        return self.out or Path(f"{name}.png")

    @property
    def prior(self) -> Literal["ebm", "gaussian"]:
        """The density that u_0 is drawn from, in the pipeline's words."""
        return "gaussian" if self.gaussian_prior else "ebm"

    def picture_path(self, seed: int) -> Path:
        """Where --outdir puts one seed's picture."""
        return (self.outdir or Path()) / f"seed{seed:04d}.png"

    def is_done(self, seed: int) -> bool:
        """With --skip-existing: there already (files appear by rename, so it is whole)."""
        return self.skip_existing and self.picture_path(seed).is_file()


class SeedsType(click.ParamType):
    """`0-15,20` on the command line."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse, or fail as click's parameter types do."""
        try:
            return parse_seeds(value)
        except UserInputError as error:
            self.fail(str(error), param, ctx)


def finite(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """Refuse nan and the infinities."""
    # nan lies in no range, yet passes click's comparison with the ends.
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value
