"""A model's calibration: the statistics of held-out images, and the distances of half of them."""

from dataclasses import fields

import numpy as np
import torch
from tqdm.auto import tqdm

from hebm_sample.config import require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.hub.manifest import MAX_CALIBRATION_BYTES
from hebm_sample.io.bars import disabled
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.metrics.typicality import (
    FEWEST_IMAGES,
    Calibration,
    calibration_bytes,
    fit_calibration,
    uniformity,
)
from hebm_sample.pipeline.identity import scores_hash
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.pipeline.scoring import Measured, measure

__all__ = ["calibrate", "check_calibratable", "measure_images"]

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
    columns = [f.name for f in fields(Measured) if f.name != "names"]
    joined = {name: torch.cat([getattr(p, name) for p in parts]) for name in columns}
    return Measured(**joined, names=parts[0].names)


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
    """A calibration from held-out images, uint8 (N, 3, S, S), in the order of the data; in one
    that `seed` shuffles, half of them fit the distance and the others' distances are kept, with
    quantiles of the reconstruction error of all.

    Its fact `rows_ks_p_value` is that of a Kolmogorov-Smirnov test (`uniformity`) of the kept
    images of the first rows against those of the last: where it is small, p-values are uniform
    over all of them together and not over each part of the data.

    Raises:
        UserInputError: Fewer than 200 images, a model without encoder or prior, or one whose
            calibration would be larger than any that is read.
    """
    check_calibratable(pipe, len(images))
    _check_size(pipe, np.asarray(images[:1]), len(images))
    found = measure_images(pipe, images, draws=draws, batch_size=batch_size, progress=progress)
    order = np.random.default_rng(seed).permutation(len(images))
    errors = np.quantile(found.distortion.numpy(), QUANTILES)
    kept = {f"{q:g}": float(f"{v:.6g}") for q, v in zip(QUANTILES, errors, strict=True)}
    facts = {"draws": draws, "distortion": kept, "weights": scores_hash(pipe.model)}
    statistics = found.statistics.numpy()
    fitted = fit_calibration(statistics[order], found.names, facts)
    rows = np.sort(order[len(order) // 2 :])
    first, last = (fitted.distance(statistics[part]) for part in np.array_split(rows, 2))
    return fitted.saying(rows_ks_p_value=uniformity(first, last)[1])


def check_calibratable(pipe: Pipeline, count: int) -> None:
    """`UserInputError` for a model without energies or encoder, or for too few images."""
    pipe.model.energies()
    if count < FEWEST_IMAGES:
        raise UserInputError(
            f"{count} held-out images were given to calibrate {pipe.name}; it takes "
            f"{FEWEST_IMAGES}, and 2000 to tell 1 in 1,000"
        )
    _ = pipe.encoder


def _check_size(pipe: Pipeline, image: np.ndarray, count: int) -> None:
    """Before hours of measuring: that what is written can be read."""
    statistics = len(measure_images(pipe, image, draws=1).names)
    size = calibration_bytes(statistics, count - count // 2)
    if size > MAX_CALIBRATION_BYTES:
        raise UserInputError(
            f"{pipe.name} has {statistics} statistics, whose calibration of {count} images would "
            f"take {size} bytes; {MAX_CALIBRATION_BYTES} are the most that is read"
        )
