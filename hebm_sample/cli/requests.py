"""What was asked: the typed options, checked against each other before any work.

An option that would be ignored is an error, so that nothing that was typed is without effect.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hebm_sample.errors import UserInputError
from hebm_sample.io.animation import ANIMATED

__all__ = [
    "DEFAULT_IMAGES",
    "CommandOptions",
    "SampleOptions",
    "SteeringOptions",
    "Wishes",
    "refuse",
]

DEFAULT_IMAGES = 16
DEFAULT_COLUMNS = 8

Wishes = Mapping[str, str | list[str]]
Sheet = Literal["grid", "variations", "layers", "mix", "trajectory"]


def refuse(wrong: bool, message: str) -> None:
    """Raise `UserInputError` with `message` if something is wrong."""
    if wrong:
        raise UserInputError(message)


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """What every command takes, as click parsed it; None where nothing was typed.

    Raises `UserInputError` for a combination that makes no sense; so do the classes below.
    """

    dataset: str | None
    resolution: int | None
    revision: str | None
    device: str
    dtype: str
    batch: int
    offline: bool
    cache_dir: Path | None
    out: Path | None = None
    outdir: Path | None = None
    as_json: bool = False
    quiet: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        refuse(not self.dataset, "--dataset is missing; `hebm-sample --list` shows the models")
        refuse(
            self.out is not None and self.outdir is not None,
            "--out writes one sheet, --outdir one file per image; give one of the two",
        )
        self._check_ending()

    def _check_ending(self) -> None:
        refuse(
            self.out is not None and self.out.suffix.lower() != ".png",
            f"--out is {str(self.out)!r}; images are written as PNG: end it in .png",
        )


@dataclass(frozen=True, kw_only=True)
class SteeringOptions(CommandOptions):
    """Options of the commands that sample: what is asked of the images, and the sampler."""

    classes: tuple[tuple[str, tuple[str, ...]], ...]
    attributes: tuple[tuple[str, tuple[str, ...]], ...]
    guidance: tuple[tuple[str | None, float], ...]
    sampler: str | None
    steps: int | None
    temperature: float | tuple[float, ...] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        # Built now, so that a contradiction is found before the model is loaded.
        _ = self.symbols, self.weights

    @property
    def symbols(self) -> Wishes:
        """What is asked, as `Pipeline` takes it; empty if nothing is."""
        asked: dict[str, tuple[str, ...]] = {}
        for name, wish in (*self.classes, *self.attributes):
            old = asked.setdefault(name, wish)
            refuse(
                set(old) != set(wish),
                f"{name} is asked to be {','.join(old)} and to be {','.join(wish)}; "
                "ask once (a,b is either of two)",
            )
        return {name: wish[0] if len(wish) == 1 else list(wish) for name, wish in asked.items()}

    @property
    def weights(self) -> Mapping[str, float]:
        """Guidance of each variable that is asked."""
        typed: dict[str | None, float] = {}
        for name, weight in self.guidance:
            old = typed.setdefault(name, weight)
            of = "" if name is None else f" of {name}"
            refuse(old != weight, f"--guidance{of} is given as {old:g} and {weight:g}; give one")
        names = list(self.symbols)
        refuse(
            bool(typed) and not names,
            "--guidance weighs what is asked; add --class or --attr, or leave it out",
        )
        for name in typed:
            if name is not None and name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise UserInputError(
                    f"--guidance names {name!r}{hint}, which is not asked for; "
                    f"asked are {', '.join(names)}"
                )
        default = typed.get(None, 1.0)
        return {name: typed.get(name, default) for name in names}

    @property
    def wishes(self) -> dict[str, Any]:
        """Symbols and guidance as arguments of the pipeline's methods."""
        return {"symbols": self.symbols, "guidance": self.weights} if self.symbols else {}

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's settings as arguments of the pipeline's methods."""
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "temperature": self.temperature,
        }


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

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_sheet()
        self._check_sampler()
        seeds, count = self.seeds, self.num_images
        refuse(
            self.skip_existing and self.outdir is None,
            "--skip-existing goes with --outdir; a sheet is always drawn anew",
        )
        refuse(
            not self.layers and seeds is not None and count not in (None, len(seeds)),
            f"--num-images is {count}, but --seeds names {len(seeds or ())}; give one of the two",
        )

    def _check_ending(self) -> None:
        refuse(
            self.seconds is not None and not self.is_animated,
            "--seconds is how long a trajectory moves; give --trajectory and an --out that ends "
            f"in {' or '.join(ANIMATED)}",
        )
        if self.is_animated:
            return
        ending = ".png" if self.out is None else self.out.suffix.lower()
        refuse(
            ending in ANIMATED,
            f"--out is {str(self.out)!r}, which is for images that move: end it in .png, or "
            "add --trajectory",
        )
        refuse(
            self.trajectory and ending != ".png",
            f"--out is {str(self.out)!r}; end it in .png, {' or '.join(ANIMATED)}",
        )
        super()._check_ending()

    @property
    def is_animated(self) -> bool:
        """Whether --out asks for an animation, and there is one."""
        ending = "" if self.out is None else self.out.suffix.lower()
        return self.trajectory and ending in ANIMATED

    def _check_sheet(self) -> None:
        """The kinds of sheet, and what each of them takes."""
        kinds = {
            "--from-seed": self.from_seed is not None,
            "--layers": self.layers,
            "--mix": self.mix is not None,
            "--trajectory": self.trajectory,
        }
        typed = [name for name, given in kinds.items() if given]
        refuse(len(typed) > 1, f"{' and '.join(typed)} do not go together; give one of them")
        refuse(
            self.keep_top is not None and self.from_seed is None and self.mix is None,
            "--keep-top needs --from-seed, or --mix, to say whose groups are kept",
        )
        refuse(
            self.from_seed is not None and self.keep_top is None,
            "--from-seed needs --keep-top, the number of its groups that are kept",
        )
        refuse(
            self.outdir is not None and self.sheet not in ("grid", "variations"),
            f"{''.join(typed)} is one sheet; write it with --out instead of --outdir",
        )
        refuse(
            self.layers and self.seeds is not None and len(self.seeds) != 1,
            f"--layers shows one seed; --seeds names {len(self.seeds or ())}",
        )
        refuse(
            self.layers and self.num_images == 1,
            "--layers has -n columns, the first with the seed's own image; give 2 or more",
        )
        refuse(
            self.mix is not None and not (self.seeds is None and self.num_images is None),
            "--mix names its two seeds itself; leave --seeds and -n out",
        )

    def _check_sampler(self) -> None:
        refuse(
            self.gaussian_prior and not (self.sampler is None and self.steps is None),
            "--gaussian-prior draws without a chain; leave --sampler and --steps out",
        )
        refuse(
            self.gaussian_prior and (bool(self.symbols) or self.best_of is not None),
            "--gaussian-prior draws without the energies; leave --class, --attr and --best-of out",
        )
        refuse(
            self.gaussian_prior and self.sheet not in ("grid", "mix"),
            "--gaussian-prior draws all groups at once; "
            "leave --from-seed, --layers and --trajectory out",
        )
        refuse(
            self.gaussian_prior and self.compiled,
            "--gaussian-prior has no chain; leave --compile out",
        )
        refuse(
            self.best_of is not None and self.sheet not in ("grid", "mix"),
            "--best-of ranks whole images; leave --from-seed, --layers and --trajectory out",
        )

    @property
    def sheet(self) -> Sheet:
        """What is drawn."""
        if self.from_seed is not None:
            return "variations"
        if self.mix is not None:
            return "mix"
        return "layers" if self.layers else "trajectory" if self.trajectory else "grid"

    @property
    def asked_seeds(self) -> tuple[int, ...]:
        """The seeds as typed, or 0 to n-1."""
        if self.mix is not None:
            return self.mix
        if self.layers:
            return self.seeds or (0,)
        return self.seeds or tuple(range(self.num_images or DEFAULT_IMAGES))

    @property
    def columns(self) -> int:
        """Of --layers."""
        return self.num_images or DEFAULT_COLUMNS

    @property
    def facts(self) -> dict[str, Any]:
        """What was asked beyond the sampler's settings; only what applies."""
        asked = {
            "symbols": self.symbols,
            "guidance": self.weights,
            "best_of": self.best_of,
            "sheet": None if self.sheet == "grid" else self.sheet,
            "from_seed": self.from_seed,
            "keep_top": self.keep_top,
        }
        return {key: value for key, value in asked.items() if value not in (None, {})}

    @property
    def grid_path(self) -> Path:
        """Where the sheet goes: --out, or the model's last name with .png."""
        name = os.path.basename(os.path.abspath(self.dataset or "")) or "samples"
        return self.out or Path(f"{name}.png")

    @property
    def prior(self) -> Literal["ebm", "gaussian"]:
        """The density that u_0 is drawn from, in the pipeline's words."""
        return "gaussian" if self.gaussian_prior else "ebm"

    def image_path(self, seed: int) -> Path:
        """Where --outdir puts one seed's image."""
        return (self.outdir or Path()) / f"seed{seed:04d}.png"

    def is_done(self, seed: int) -> bool:
        """With --skip-existing: there already (files appear by rename, so it is whole)."""
        return self.skip_existing and self.image_path(seed).is_file()
