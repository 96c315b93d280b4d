"""How likely a model finds images, as users ask for it; the mathematics is in
`pipeline/scoring.py`.

What is said of images is a mean over `scoring.score_draws` samples of u ~ q(u | x), with the same
noise for every image: it depends neither on its neighbours nor on its place among them, and
`energy`, `log_density`, `rate`, `score` and `classify` are of the same samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hebm_sample.config import require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS
from hebm_sample.latents import Latents
from hebm_sample.pipeline import scoring
from hebm_sample.pipeline.alignment import crops
from hebm_sample.pipeline.identity import own_calibration
from hebm_sample.pipeline.model import EncodeMode, Groups, ImagesLike, Model
from hebm_sample.pipeline.scoring import Measured

if TYPE_CHECKING:
    from hebm_sample.metrics.typicality import Calibration

__all__ = [
    "GroupScores",
    "Scores",
    "energy",
    "group_scores",
    "log_density",
    "p_value_note",
    "rate",
    "score",
]

MAX_DRAWS = 1000


@dataclass(frozen=True)
class Scores:
    """What `score` says of N images, on the CPU: means over samples of u ~ q(u | x).

    Arguments:
        energy: -F, (N,).
        log_density: log p(u), up to its constant, in nats, (N,).
        rate: E_q[-F] + KL in nats, (N,).
        bound: The evidence lower bound under N(0, I) in nats, (N,).
        ratios: LLR^{>k} of the k = 0 ... n-1 finest groups in nats, (N, n).
        distance: From held-out images; None where the model carries no calibration.
        p_value: The share of held-out images that are at least as far; None likewise.
        note: What the p-value is, or why there is none, in one line.
        held_out: How many held-out images a p-value counts; 0 without.
    """

    energy: Tensor
    log_density: Tensor
    rate: Tensor
    bound: Tensor
    ratios: Tensor
    distance: Tensor | None
    p_value: Tensor | None
    note: str
    held_out: int = 0

    def __len__(self) -> int:
        """N."""
        return len(self.energy)

    def __str__(self) -> str:
        """A line per image, and the note."""
        from hebm_sample.metrics.typicality import in_words

        lines = []
        for i in range(len(self)):
            line = f"log density {float(self.log_density[i]):.1f}"
            if self.p_value is not None:
                p = float(self.p_value[i])
                line += f", p-value {p:.3g}: {in_words(p, self.held_out)}"
            lines.append(line)
        return "\n".join([*lines, self.note])


def _mean_over(samples: Sequence[Latents], score_of: Callable[[Latents], Tensor]) -> Tensor:
    """(N,), added up in double precision."""
    return torch.stack([score_of(u).double() for u in samples]).mean(0).float()


def energy(
    model: Model,
    /,
    images: ImagesLike | None = None,
    *,
    latents: Latents | None = None,
    groups: Groups | None = None,
    mode: EncodeMode = "sample",
    batch_size: int = 16,
    align: bool = False,
    face: int | None = None,
) -> Tensor:
    """The energy -F_G at the lowest noise level, all symbols open, (N,): the log ratio of N(0, I)
    to the prior. It orders images by that, and not by how unusual they are, as `score` does.

    Arguments:
        images: As for `encode`; or give `latents`.
        latents: u, as `encode` or a call returns it.
        groups: The groups G that count: a slice, indices or one index; all if None.
        mode: "sample", samples of q(u | x) over which the energy is a mean, or "mean", the
            posterior's mean.
        align, face: As of `edit`.
    """
    chosen, prior = model.group_indices(groups), model.energies()
    samples = scoring.samples_of(model, images, latents, mode, batch_size, align, face)
    return _mean_over(
        samples, lambda u: -prior.select(model.lowest_outputs(u, batch_size), chosen)
    )


def log_density(
    model: Model,
    /,
    images: ImagesLike | None = None,
    *,
    latents: Latents | None = None,
    groups: Groups | None = None,
    mode: EncodeMode = "sample",
    batch_size: int = 16,
    align: bool = False,
    face: int | None = None,
) -> Tensor:
    """The prior log density log p_G(u) = F_G(u) - |u_G|^2 / 2 at the lowest noise level, all
    symbols open, up to its constant, in nats: (N,).

    It is no measure of how unusual an image is: smooth images of any kind have a high density.
    `score` gives p-values. `energy` is -F_G alone, the log ratio of N(0, I) to the prior.

    Arguments:
        images: As for `encode`; or give `latents`.
        latents: u, as `encode` or a call returns it.
        groups: The groups G that count: a slice, indices or one index; all if None.
        mode, align, face: As of `energy`.

    Raises:
        UserInputError: No prior, no encoder, or groups that the model has not.
    """
    chosen, _ = model.group_indices(groups), model.energies()
    samples = scoring.samples_of(model, images, latents, mode, batch_size, align, face)
    return _mean_over(samples, lambda u: scoring.log_density(model, u, chosen, batch_size))


def rate(
    model: Model,
    /,
    images: ImagesLike,
    *,
    groups: Groups | None = None,
    draws: int | None = None,
    batch_size: int = 16,
    align: bool = False,
    face: int | None = None,
) -> Tensor:
    """E_q[-F_G(u)] + sum over G of KL(q(u_i | x, u_{<i}) || N(0, I)) in nats, (N,): of all groups,
    or of the top ones, the divergence of the posterior from the prior up to a constant. Of groups
    without those above them it is a score and no divergence: what F_G would have to be divided by
    depends on the groups above.

    Arguments:
        images, groups, align, face: As for `log_density`.
        draws: Samples of u, the same noise for every image; those of the other scores if None.

    Raises:
        UserInputError: As for `log_density`.
    """
    draws = draws if draws is None else require_integer("draws", draws, 1, MAX_DRAWS)
    batch_size = require_integer("batch_size", batch_size, 1, MAX_SEEDS)
    chosen, _ = model.group_indices(groups), model.energies()
    x = model.read_images(crops(model, images, align, face))
    return scoring.rate(model, x, chosen, draws or scoring.score_draws(model), batch_size)


class GroupScores(NamedTuple):
    """What `group_scores` says of N images.

    Arguments:
        energy, log_density: Of the groups together, (N,).
        energies: -F of each group alone, (N,), by its number.
        symbols: p of each symbol's values, (N, values), by its name.
    """

    energy: Tensor
    log_density: Tensor
    energies: dict[int, Tensor]
    symbols: dict[str, Tensor]


def group_scores(
    model: Model, images: ImagesLike, groups: Groups | None = None, batch_size: int = 16
) -> GroupScores:
    """`energy`, `log_density` and `classify` at once, and each group's own energy.

    Arguments:
        images, groups: As for `log_density`.
    """
    chosen, prior = model.group_indices(groups), model.energies()
    samples = scoring.samples_of(model, images, None, "sample", batch_size)
    outputs = [model.lowest_outputs(u, batch_size) for u in samples]

    def energy_of(some: list[int]) -> Tensor:
        return torch.stack([-prior.select(o, some).double() for o in outputs]).mean(0)

    squares = torch.stack([scoring.half_squares(u)[:, chosen].sum(1) for u in samples]).mean(0)
    energy = energy_of(chosen)
    symbols: dict[str, Tensor] = {}
    if len(prior.table):
        each = [prior.table.probabilities(o.logits[:, chosen].sum(1)) for o in outputs]
        symbols = {name: torch.stack([p[name] for p in each]).mean(0) for name in each[0]}
    single = {i: energy_of([i]).float() for i in chosen}
    return GroupScores(energy.float(), (-energy - squares).float(), single, symbols)


def score(
    model: Model,
    images: ImagesLike,
    *,
    batch_size: int = 16,
    align: bool = False,
    face: int | None = None,
) -> Scores:
    """Densities, likelihood ratios, and a p-value: how unusual images are among held-out ones.

    Likelihood ratios of the finest groups as in "Hierarchical VAEs Know What They Don't Know"
    (arXiv 2102.08248). The p-value is that of a distance of all levels' statistics
    (`metrics/typicality.py`). Every image is met by the same noise: its scores are the same alone
    and in any batch, to rounding.

    Arguments:
        images: As for `encode`.
        align, face: As of `edit`.

    Raises:
        UserInputError: No prior, no encoder, or a calibration that another release made.
        WeightsError: The calibration's file cannot be read.
    """
    batch_size = require_integer("batch_size", batch_size, 1, MAX_SEEDS)
    model.energies()
    calibration, note = own_calibration(model)
    x = model.read_images(crops(model, images, align, face))
    found = scoring.measure(model, x, scoring.score_draws(model), batch_size)
    distance, p_value = _calibrated(model, calibration, found)
    return Scores(
        energy=found.energies.float(),
        log_density=-found.densities[:, -1].float(),
        rate=found.rates[:, -1].float(),
        bound=found.bound.float(),
        ratios=found.ratios.float(),
        distance=distance,
        p_value=p_value,
        note=note or _meaning(calibration),
        held_out=0 if calibration is None else len(calibration.distances),
    )


def _calibrated(
    model: Model, calibration: "Calibration | None", found: Measured
) -> tuple[Tensor | None, Tensor | None]:
    """Distance from held-out images and its p-value, (N,) each; None without a calibration."""
    if calibration is None:
        return None, None
    if calibration.names != found.names:
        raise UserInputError(
            f"the calibration of {model.name} is of other statistics than this release "
            "has; calibrate the model again with hebm-train calibrate"
        )
    statistics = found.statistics.numpy()
    distance = torch.from_numpy(calibration.distance(statistics)).float()
    return distance, torch.from_numpy(calibration.p_value(statistics)).float()


def p_value_note(model: Model) -> str:
    """What the p-values of `score` are, or why there are none, in one line."""
    calibration, note = own_calibration(model)
    return note or _meaning(calibration)


def _meaning(calibration: "Calibration | None") -> str:
    assert calibration is not None
    count = len(calibration.distances)
    return f"p-value: the share of {count:,} held-out images that are at least as unusual"
