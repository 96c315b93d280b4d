"""The typed options of every command that loads a model, checked before any work.

An option that would be ignored is an error, so that nothing that was typed is without effect.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hebm_sample.cli.requests.grammar import known_word
from hebm_sample.config import DecoderName
from hebm_sample.errors import UserInputError
from hebm_sample.io.animation import STILLS, or_list

__all__ = ["CommandOptions", "Conditions", "SteeringOptions", "counted", "refuse"]

Conditions = Mapping[str, str | list[str]]


def refuse(wrong: bool, message: str) -> None:
    """Raise `UserInputError` with `message` if something is wrong."""
    if wrong:
        raise UserInputError(message)


def counted(count: int) -> str:
    """`1 image`, `3 images`."""
    return f"{count} image" if count == 1 else f"{count} images"


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
            "--out writes one grid, --outdir one file per image; give one of the two",
        )
        self._check_ending()

    def _check_ending(self) -> None:
        refuse(
            self.out is not None and self.out.suffix.lower() not in STILLS,
            f"--out is {str(self.out)!r}; end it in {or_list(STILLS)}",
        )


@dataclass(frozen=True, kw_only=True)
class SteeringOptions(CommandOptions):
    """Options of the commands that sample: the condition, its guidance, the sampler and the
    decoder.
    """

    classes: tuple[tuple[str, tuple[str, ...]], ...]
    attributes: tuple[tuple[str, tuple[str, ...]], ...]
    guidance: tuple[tuple[str | None, float], ...]
    sampler: str | None
    steps: int | None
    temperature: float | tuple[float, ...] | None
    decoder: DecoderName | None = None
    particles: int | None = None

    default_guidance: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        # Built now, so that a contradiction is found before the model is loaded.
        _ = self.symbols, self.weights

    @property
    def symbols(self) -> Conditions:
        """The condition, as `Pipeline` takes it; empty if there is none."""
        targets: dict[str, tuple[str, ...]] = {}
        for name, target in (*self.classes, *self.attributes):
            old = targets.setdefault(name, target)
            refuse(
                set(old) != set(target),
                f"the condition on {name} is {','.join(old)} and {','.join(target)}; "
                "give one (a,b is either of two)",
            )
        return {name: t[0] if len(t) == 1 else list(t) for name, t in targets.items()}

    @property
    def weights(self) -> Mapping[str, float]:
        """Guidance of each variable of the condition, the command's default where none was
        typed.
        """
        typed: dict[str | None, float] = {}
        names = list(self.symbols)
        for name, weight in self.guidance:
            name = name and known_word(name, names)
            old = typed.setdefault(name, weight)
            of = "" if name is None else f" of {name}"
            refuse(old != weight, f"--guidance{of} is given as {old:g} and {weight:g}; give one")
        refuse(
            bool(typed) and not names,
            "--guidance weighs a condition; add --class or --attr, or leave it out",
        )
        for name in typed:
            if name is not None and name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise UserInputError(
                    f"--guidance names {name!r}{hint}, which has no condition; "
                    f"there are conditions on {', '.join(names)}"
                )
        # Where some variables have a weight of their own, the others are weighed plainly, as in
        # Python.
        default = typed.get(None, 1.0 if typed else self.default_guidance)
        return {name: typed.get(name, default) for name in names}

    @property
    def condition(self) -> dict[str, Any]:
        """Symbols and guidance as arguments of the pipeline's methods."""
        return {"symbols": self.symbols, "guidance": self.weights} if self.symbols else {}

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's settings and the decoder as arguments of the pipeline's methods."""
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "temperature": self.temperature,
            "decoder": self.decoder,
            **({} if self.particles is None else {"particles": self.particles}),
        }
