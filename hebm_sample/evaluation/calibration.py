"""A model's calibration: the statistics of held-out images, and the distances of half of them."""

import numpy as np
import torch
from tqdm.auto import tqdm

from hebm_sample.config import require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.io.bars import disabled
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.metrics.typicality import FEWEST_IMAGES, Calibration, fit_calibration
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.pipeline.scoring import DISTORTION_FACT, Measured, distortion_of, measure

__all__ = ["calibrate", "measure_images"]

DRAWS = 2
QUANTILES = (0.5, 0.9, 0.99)  # of the reconstruction error that a calibration keeps


def measure_images(
    pipe: Pipeline,
    images: np.ndarray,
    *,
    draws: int = DRAWS,
    batch_size: int = 50,
    progress: bool = False,
) -> Measured:
    """`pipeline.scoring.measure` of images, uint8 (N, 3, S, S)."""
    require_integer("draws", draws, 1, 1000)
    batch_size = require_integer("batch_size", batch_size, 1, 2**31)
    parts = []
    starts = range(0, len(images), batch_size)
    for i in tqdm(starts, desc="scoring", unit="batch", disable=disabled(progress)):
        x = torch.from_numpy(np.array(images[i : i + batch_size])).float() / 127.5 - 1
        parts.append(measure(pipe.model, x, draws, batch_size))
    columns = ("energies", "bound", "ratios", "rates", "densities", "statistics")
    joined = [torch.cat([getattr(p, name) for p in parts]) for name in columns]
    return Measured(*joined, names=parts[0].names)


@usual_defaults()
def calibrate(
    pipe: Pipeline,
    images: np.ndarray,
    *,
    draws: int = DRAWS,
    batch_size: int = 50,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    """A calibration from held-out images, uint8 (N, 3, S, S); in an order that `seed` shuffles,
    half of them fit the distance and the others' distances are kept, with quantiles of the
    reconstruction error of all.

    Raises:
        UserInputError: Fewer than 200 images, or a model without encoder or prior.
    """
    if len(images) < FEWEST_IMAGES:
        raise UserInputError(
            f"{len(images)} held-out images were given to calibrate {pipe.name}; it takes "
            f"{FEWEST_IMAGES}, and 2000 to tell 1 in 1,000"
        )
    found = measure_images(pipe, images, draws=draws, batch_size=batch_size, progress=progress)
    order = np.random.default_rng(seed).permutation(len(images))
    errors = np.quantile(distortion_of(found).numpy(), QUANTILES)
    kept = {f"{q:g}": float(f"{v:.6g}") for q, v in zip(QUANTILES, errors, strict=True)}
    facts = {"draws": draws, DISTORTION_FACT: kept}
    return fit_calibration(found.statistics.numpy()[order], found.names, facts)
