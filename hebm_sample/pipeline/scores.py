"""How likely a model finds images, as users ask for it; the mathematics is in
`pipeline/scoring.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hebm_sample.config import require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS
from hebm_sample.latents import Latents, check_latents
from hebm_sample.pipeline import scoring
from hebm_sample.pipeline.alignment import crops
from hebm_sample.pipeline.model import EncodeMode, Groups, ImagesLike, Model
from hebm_sample.pipeline.scoring import Measured

__all__ = ["Scores", "energy", "log_density", "p_value_note", "rate", "score"]

MAX_DRAWS = 1000
SCORE_DRAWS = 2


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
    """

    energy: Tensor
    log_density: Tensor
    rate: Tensor
    bound: Tensor
    ratios: Tensor
    distance: Tensor | None
    p_value: Tensor | None
    note: str

    def __len__(self) -> int:
        """N."""
        return len(self.energy)

    def __str__(self) -> str:
        """A line per image, and the note."""
        lines = []
        for i in range(len(self)):
            p = "" if self.p_value is None else f", p-value {float(self.p_value[i]):.3g}"
            lines.append(f"log density {float(self.log_density[i]):.1f}{p}")
        return "\n".join([*lines, self.note])


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
    """The energy -F_G at the lowest noise level, all symbols open, (N,): low for images like
    the training data.

    Arguments:
        images: As for `encode`; or give `latents`.
        latents: u, as `encode` or a call returns it.
        groups: The groups G that count: a slice, indices or one index; all if None.
        align, face: As of `edit`.
    """
    chosen, prior = model.group_indices(groups), model.energies()
    u = model.latents_from(images, latents, mode, batch_size, align, face)
    return -prior.select(model.lowest_outputs(u, batch_size), chosen)


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
    symbols open, up to its constant, in nats: (N,). High for images like the training data.

    `energy` is -F_G alone, the log ratio of N(0, I) to the prior.

    Arguments:
        images: As for `encode`; or give `latents`.
        latents: u, as `encode` or a call returns it.
        groups: The groups G that count: a slice, indices or one index; all if None.
        mode: "sample", u ~ q(u | x), or "mean", the posterior's mean.
        align, face: As of `edit`.

    Raises:
        UserInputError: No prior, no encoder, or groups that the model has not.
    """
    chosen, _ = model.group_indices(groups), model.energies()
    u = model.latents_from(images, latents, mode, batch_size, align, face)
    check_latents(u, model.generator.latent_shapes)
    return scoring.log_density(model, u, chosen, batch_size)


def rate(
    model: Model,
    /,
    images: ImagesLike,
    *,
    groups: Groups | None = None,
    draws: int = 4,
    batch_size: int = 16,
    align: bool = False,
    face: int | None = None,
) -> Tensor:
    """E_q[-F_G(u)] + KL(q(u_G | x) || N(0, I)) in nats, (N,): the divergence of the posterior
    from the prior up to a constant, low for images like the training data.

    Arguments:
        images, groups: As for `log_density`.
        draws: Samples of u, the same noise for every image.
        align, face: As of `edit`.

    Raises:
        UserInputError: As for `log_density`.
    """
    draws = require_integer("draws", draws, 1, MAX_DRAWS)
    batch_size = require_integer("batch_size", batch_size, 1, MAX_SEEDS)
    chosen, _ = model.group_indices(groups), model.energies()
    x = model.read_images(crops(model, images, align, face))
    return scoring.rate(model, x, chosen, draws, batch_size)


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
    """
    batch_size = require_integer("batch_size", batch_size, 1, MAX_SEEDS)
    model.energies()
    calibration, x = model.calibration, model.read_images(crops(model, images, align, face))
    draws = calibration.facts.get("draws", SCORE_DRAWS) if calibration else SCORE_DRAWS
    found = scoring.measure(model, x, draws, batch_size)
    distance, p_value = _calibrated(model, found)
    return Scores(
        energy=found.energies.float(),
        log_density=-found.densities[:, -1].float(),
        rate=found.rates[:, -1].float(),
        bound=found.bound.float(),
        ratios=found.ratios.float(),
        distance=distance,
        p_value=p_value,
        note=p_value_note(model),
    )


def _calibrated(model: Model, found: Measured) -> tuple[Tensor | None, Tensor | None]:
    """Distance from held-out images and its p-value, (N,) each; None without a calibration."""
    calibration = model.calibration
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
    if model.calibration is None:
        return (
            f"no p-values: {model.name} carries no calibration; write one into a model folder "
            "with hebm-train calibrate FOLDER --data SOURCE"
        )
    count = len(model.calibration.distances)
    return f"p-value: the share of {count:,} held-out images that are at least as unusual"
