"""What `hebm-sample` was asked for: its typed options, checked against each other."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from hebm_sample.cli.requests.base import SteeringOptions, refuse
from hebm_sample.cli.requests.grammar import first_of
from hebm_sample.io.animation import ANIMATED, or_list
from hebm_sample.io.seeds import MAX_SEED

__all__ = ["DEFAULT_COLUMNS", "DEFAULT_IMAGES", "RANKINGS", "SampleOptions"]

DEFAULT_IMAGES = 16
DEFAULT_COLUMNS = 8

RANKINGS = ("density", "energy")  # as in pipeline/states.py, which --help does without
Layout = Literal["grid", "variations", "layers", "mix", "trajectory"]


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SteeringOptions):
    """What `hebm-sample` takes."""

    num_images: int | None
    seeds: tuple[int, ...] | None
    from_seed: int | None
    keep_top: int | None
    layers: bool
    mix: tuple[int, int] | None
    trajectory: bool
    seconds: float | None
    best_of: int | None
    gaussian_prior: bool
    skip_existing: bool
    list_models: bool
    compiled: bool = False
    rank_by: str | None = None
    columns: int | None = None
    scale: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_layout()
        self._check_sampler()
        refuse(
            self.skip_existing and self.outdir is None,
            "--skip-existing goes with --outdir; a grid is always sampled anew",
        )

    def _check_ending(self) -> None:
        refuse(
            self.seconds is not None and not self.is_animated,
            "--seconds is how long an animation runs; give --trajectory and an --out that ends "
            f"in {or_list(ANIMATED)}",
        )
        super()._check_ending()

    @property
    def is_animated(self) -> bool:
        """Whether --out asks for an animation, and there is one."""
        ending = "" if self.out is None else self.out.suffix.lower()
        return self.trajectory and ending in ANIMATED

    def _check_layout(self) -> None:
        """What is shown, and what each kind takes."""
        kinds = {
            "--from-seed": self.from_seed is not None,
            "--layers": self.layers,
            "--mix": self.mix is not None,
            "--trajectory": self.trajectory,
        }
        typed = [name for name, given in kinds.items() if given]
        refuse(len(typed) > 1, f"{' and '.join(typed)} do not go together; give one of them")
        refuse(
            self.outdir is not None and self.layout not in ("grid", "variations"),
            f"{''.join(typed)} is one grid; write it with --out instead of --outdir",
        )
        refuse(
            self.scale is not None and self.layout == "trajectory",
            "--scale does not go with --trajectory; leave it out",
        )
        refuse(
            self.columns is not None
            and (self.outdir is not None or self.layout not in ("grid", "variations")),
            "--columns is of a grid of samples; leave it out",
        )
        self._check_kept()
        self._check_seeds()

    def _check_kept(self) -> None:
        refuse(
            self.keep_top is not None and self.from_seed is None and self.mix is None,
            "--keep-top needs --from-seed, or --mix, to say whose groups are kept",
        )
        refuse(
            self.from_seed is not None and self.keep_top is None,
            "--from-seed needs --keep-top, the number of its groups that are kept",
        )

    def _check_seeds(self) -> None:
        seeds, count = self.seeds, self.num_images
        refuse(
            self.layers and seeds is not None and len(seeds) != 1,
            f"--layers shows one seed; --seeds names {len(seeds or ())}",
        )
        refuse(
            self.layers and count == 1,
            "--layers has -n columns, the first with the seed's own image; give 2 or more",
        )
        refuse(
            self.mix is not None and not (seeds is None and count is None),
            "--mix names its two seeds itself; leave --seeds and -n out",
        )
        refuse(
            self.chosen_seeds[-1] > MAX_SEED,
            f"no seeds follow {self.from_seed}; name those of the variations with --seeds"
            if seeds is None
            else f"{count} seeds from {self.chosen_seeds[0]} on go beyond the last, {MAX_SEED}; "
            "begin with a lower --seed",
        )
        refuse(
            not self.layers
            and seeds is not None
            and len(self.chosen_seeds) != (count or len(seeds)),
            f"--num-images is {count}, but --seeds names {len(seeds or ())}; give one of the two",
        )

    def _check_sampler(self) -> None:
        chain = (self.sampler, self.steps, self.particles)
        refuse(
            self.gaussian_prior and chain != (None, None, None),
            "--gaussian-prior has no chain; leave --sampler, --steps and --particles out",
        )
        refuse(
            self.gaussian_prior and (bool(self.symbols) or self.best_of is not None),
            "--gaussian-prior samples without the energies; "
            "leave --class, --attr and --best-of out",
        )
        refuse(
            self.gaussian_prior and self.layout not in ("grid", "mix"),
            "--gaussian-prior samples all groups at once; "
            "leave --from-seed, --layers and --trajectory out",
        )
        refuse(
            self.gaussian_prior and self.compiled,
            "--gaussian-prior has no chain; leave --compile out",
        )
        refuse(
            self.best_of is not None and self.layout not in ("grid", "mix"),
            "--best-of ranks whole images; leave --from-seed, --layers and --trajectory out",
        )
        refuse(
            self.rank_by is not None and self.best_of is None,
            "--rank-by says which of several candidates is best; give --best-of N",
        )

    @property
    def layout(self) -> Layout:
        """What is shown."""
        if self.from_seed is not None:
            return "variations"
        if self.mix is not None:
            return "mix"
        return "layers" if self.layers else "trajectory" if self.trajectory else "grid"

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """The seeds as typed, a single one being the first of n; or 0 to n-1, of variations the n
        that follow their image's: new noise.
        """
        if self.mix is not None:
            return self.mix
        if self.layers:
            return self.seeds or (0,)
        first = 0 if self.from_seed is None else self.from_seed + 1
        others = range(first, first + (self.num_images or DEFAULT_IMAGES))
        return first_of(self.seeds, self.num_images) or tuple(others)

    @property
    def layer_columns(self) -> int:
        """Of --layers."""
        return self.num_images or DEFAULT_COLUMNS

    @property
    def ranking(self) -> str | None:
        """By what candidates are ranked, where there are several."""
        several = self.best_of is not None and self.best_of > 1
        return (self.rank_by or RANKINGS[0]) if several else None

    @property
    def facts(self) -> dict[str, Any]:
        """What was asked for beyond the sampler's settings; only what applies."""
        facts = {
            "symbols": self.symbols or None,
            "guidance": self.weights or None,
            "best_of": self.best_of,
            "rank_by": self.ranking,
            "compile": "yes" if self.compiled else None,  # which rounds otherwise
            "sheet": None if self.layout == "grid" else self.layout,
            "from_seed": self.from_seed,
            "keep_top": self.keep_top,
        }
        return {key: value for key, value in facts.items() if value is not None}

    @property
    def grid_path(self) -> Path:
        """Where the grid goes: --out, or the model's last name with .png."""
        name = os.path.basename(os.path.abspath(self.dataset or "")) or "samples"
        return self.out or Path(f"{name}.png")

    @property
    def prior(self) -> Literal["ebm", "gaussian"]:
        """The density that u_0 is sampled from, in the pipeline's words."""
        return "gaussian" if self.gaussian_prior else "ebm"

    image_names: ClassVar[str] = r"seed\d{4,}\.png"  # what `image_path` gives

    def image_path(self, seed: int) -> Path:
        """Where --outdir puts one seed's image."""
        return (self.outdir or Path()) / f"seed{seed:04d}.png"
