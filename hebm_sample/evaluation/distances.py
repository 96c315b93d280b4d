"""The first measurement of a model, on images it was not trained on.

    gap closed = (FD_gauss - FD_ebm) / (FD_gauss - FD_recon)

Fréchet distances to one half of the held-out images; reconstructions come from the other half,
so nothing is compared with itself, and all four sets have the same size. Held-out images are the
last rows of the data, or another split of it where training used all rows. Distances are taken in
the features of a small classifier trained here on the training rows' labels, and in principal
components of the pixels beside it; without labels in the components only. Bits per dimension are
the ELBO under the generator's own N(0, I).
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hebm_sample import __version__
from hebm_sample.config import LangevinConfig, require_integer
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.evaluation.context import EvaluationContext, as_bytes
from hebm_sample.evaluation.held_out import held_out_by, open_held_out
from hebm_sample.evaluation.reference import find_set
from hebm_sample.generator.likelihood import bits_per_dimension
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.files import cache_home
from hebm_sample.io.kept import damaged
from hebm_sample.io.seeds import MAX_SEEDS
from hebm_sample.latents import Latents
from hebm_sample.metrics import (
    GapMeasurement,
    PcaFeatures,
    load_extractor,
    measure_gap,
    save_extractor,
    train_feature_net,
)
from hebm_sample.metrics.quality import Quality, measure_quality
from hebm_sample.pipeline.pipeline import Pipeline

__all__ = [
    "DEFAULT_FEATURE_STEPS",
    "DEFAULT_IMAGES",
    "Evaluation",
    "as_bytes",
    "cache_path",
    "evaluate",
    "feature_spaces",
    "make_context",
    "make_context_without_data",
    "held_out_by",
    "kept_network",
    "measure",
    "open_held_out",
]

FEATURE_RECIPE = 1
DEFAULT_FEATURE_STEPS = 1200
DEFAULT_IMAGES = 2000
PCA_ROWS = 8000
FEWEST_LABELS = 20
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Arguments:
        model: The model's name.
        sampling: Its sampler's settings in this measurement.
        held_out: Held-out images: reference and reconstructed halves together.
        bits: ELBO under N(0, I) in bits per dimension, on all held-out images.
        distortion_bits: Its first part, -log p(x | h_{L+1}).
        kl: KL per group in nats.
        u_square: Mean square of the sampler's u per group; q(u)'s is beside it.
        gaps: Distances and gap closed by name of the feature space; the first is the headline.
        feature_reports: What is known of each space, such as its classifier's accuracy.
        seconds: The whole measurement.
        sampling_seconds: Of that, sampling the energy-based prior.
        quality: By space and set ("reconstructions", "gaussian", "ebm"): kernel distance,
            precision, recall, density and coverage against the reference.
    """

    model: str
    sampling: dict[str, Any]
    held_out: int
    bits: float
    distortion_bits: float
    kl: list[float]
    u_square: list[float]
    u_square_posterior: list[float]
    gaps: dict[str, GapMeasurement]
    feature_reports: dict[str, Any]
    seconds: float
    sampling_seconds: float
    version: str = __version__
    quality: dict[str, dict[str, Quality]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for a figure that is not a number, such as a gap closed where
        N(0, I) is no worse than the reconstructions.
        """
        plain = asdict(self)
        plain["quality"] = {
            space: {name: q.to_dict() for name, q in sets.items()}
            for space, sets in self.quality.items()
        }
        for gap in plain["gaps"].values():  # JSON has no nan
            gap |= {k: v if math.isfinite(v) else None for k, v in gap.items()}
        return plain

    def table(self) -> str:
        """The figures as text."""
        how = LangevinConfig.from_dict(self.sampling).words
        lines = [
            f"{self.model}: {self.held_out} held-out images; {how}, {self.sampling_seconds:.0f} s",
            f"bits per dimension (Gaussian-prior ELBO)  {self.bits:.3f}  "
            f"(of which distortion {self.distortion_bits:.3f})",
            "group                 " + "".join(f"{i:>9}" for i in range(len(self.kl))),
            "KL in nats            " + "".join(f"{v:9.1f}" for v in self.kl),
            "mean square of q(u)   " + "".join(f"{v:9.3f}" for v in self.u_square_posterior),
            "mean square of samples" + "".join(f"{v:9.3f}" for v in self.u_square),
        ]
        for name, gap in self.gaps.items():
            lines += [
                f"Fréchet distances in {name}, {gap.num_images} images per side:",
                f"  reconstructions {gap.fd_recon:.3f} ± {gap.fd_recon_error:.3f}",
                f"  N(0, I)         {gap.fd_gauss:.3f} ± {gap.fd_gauss_error:.3f}",
                f"  EBM prior       {gap.fd_model:.3f} ± {gap.fd_model_error:.3f}",
                f"  gap closed      {gap.gap_closed:.3f} ± {gap.gap_closed_error:.3f}",
                *(f"  {which:15} {q}" for which, q in self.quality.get(name, {}).items()),
            ]
        return "\n".join(lines)


def cache_path(folder: str, key: list[Any], cache_dir: Path | None = None) -> Path:
    """Where a trained network is kept: a safetensors file named by its key's hash, in a folder of
    `cache_dir`, $HEBM_CACHE or ~/.cache/hebm_sample.
    """
    home = cache_home(cache_dir)
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return home / folder / f"{name}.safetensors"


def kept_network(path: Path, load: Callable[..., Loaded]) -> Loaded | None:
    """What a cache has there; None where there is nothing, or what there is was damaged since, of
    which a line is said.

    Arguments:
        load: The reader of such a file.
    """
    if not path.is_file():
        return None
    try:
        return load(path, hashed=True)
    except WeightsError as error:
        damaged(path, str(error).partition("; train it again")[0])
        return None


@usual_defaults()
def feature_spaces(
    training: ImageDataset,
    *,
    steps: int | None = None,
    model: str | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name to (extractor, report): a classifier if the training rows have labels, and PCA.

    Arguments:
        training: The PCA is fitted to them, and the classifier trained on their labels.
        steps: Of the classifier, 1,200 if None. It is kept in the cache folder, under a key of
            data, recipe and steps.
        model: Without `steps`, the classifier that the package has for a model of that name and
            these very training rows is used in place of a new one; one of other data, which the
            package has reference statistics of these rows for, is a space of its own, the last.
    """
    spaces: dict[str, tuple[Any, dict[str, Any]]] = {}
    # Fewer labels than that teach a classifier nothing.
    labels = {k: v for k, v in training.labels.items() if (v >= 0).sum() >= FEWEST_LABELS}
    shipped = find_set(model, training.images.shape[-1]) if model and steps is None else None
    if shipped is not None and shipped.recipe.get("training") != training.identity:
        shipped = None
    if shipped is not None and shipped.net_of is None:
        spaces[shipped.space] = (shipped.net, shipped.recipe["classifier"])
    elif labels:
        steps = steps or DEFAULT_FEATURE_STEPS
        path = cache_path("features", [FEATURE_RECIPE, steps, training.identity], cache_dir)
        known = kept_network(path, load_extractor)
        if known is None:
            known = train_feature_net(training.images, labels, steps=steps, progress=progress)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_extractor(known[0], path, known[1])
        spaces[known[0].name] = known
    rows = training.some(PCA_ROWS).images
    pca = PcaFeatures(min(100, len(rows) - 1))
    pca.fit(rows[:])
    spaces[pca.name] = (pca, {})
    if shipped is not None and shipped.net_of is not None:
        spaces[shipped.space] = (shipped.net, shipped.recipe["classifier"])
    return spaces


def make_context(
    pipe: Pipeline,
    training: ImageDataset,
    held_out: ImageDataset,
    *,
    num_images: int | None = None,
    batch_size: int = 50,
    folder: Path | None = None,
    progress: bool = True,
    **sampling: Any,
) -> EvaluationContext:
    """A model with an energy-based prior and 2 n held-out images (`ImageDataset.some`); scores
    have a random part of all of them (`EvaluationContext.scored_images`). n is 2,000 if it is not
    said, or half of the held-out images if they are fewer.

    Raises:
        UserInputError: Too few held-out images, a model without a prior, or a setting that the
            sampler has not.
    """
    if pipe.prior is None:
        raise UserInputError(
            f"{pipe.name} has no energy-based prior yet; train one with hebm-train prior"
        )
    if len(held_out) < 20:
        raise UserInputError(
            f"{len(held_out)} images are held out; it takes 20 to measure, 10 per side"
        )
    if num_images is None:
        num_images = min(DEFAULT_IMAGES, len(held_out) // 2)
    if not 10 <= num_images <= len(held_out) // 2:
        raise UserInputError(
            f"{num_images} images per side were asked for; with {len(held_out)} held-out "
            f"images it can be 10 to {len(held_out) // 2}"
        )
    require_integer("num_images", num_images, 1, MAX_SEEDS)
    pipe.sampling_config(**sampling)
    return EvaluationContext(
        pipe,
        num_images,
        training,
        held_out.some(2 * num_images),
        batch_size,
        folder,
        progress,
        {k: v for k, v in sampling.items() if v is not None},
        held_out,
    )


def make_context_without_data(
    pipe: Pipeline,
    *,
    num_images: int | None = None,
    batch_size: int = 50,
    folder: Path | None = None,
    progress: bool = True,
    **sampling: Any,
) -> EvaluationContext:
    """A model alone, for what needs no images; `UserInputError` for a setting that the sampler
    has not.
    """
    pipe.sampling_config(**sampling)
    return EvaluationContext(
        pipe,
        DEFAULT_IMAGES if num_images is None else num_images,
        batch_size=batch_size,
        folder=folder,
        progress=progress,
        sampling={k: v for k, v in sampling.items() if v is not None},
    )


def _mean_squares(u: Latents) -> list[float]:
    return [float(g.double().square().mean()) for g in u]


def _held_out_figures(context: EvaluationContext) -> dict[str, Any]:
    """ELBO and KL over all held-out images, and q(u)'s mean square."""
    encoded, shape = context.encoded(), tuple(context.held_out_images().images.shape[1:])
    total = (encoded.distortion + encoded.kl.sum(1)).mean()
    return {
        "bits": float(bits_per_dimension(total, shape)),
        "distortion_bits": float(bits_per_dimension(encoded.distortion.mean(), shape)),
        "kl": encoded.kl.mean(0).tolist(),
        "u_square_posterior": _mean_squares(encoded.u),
    }


@usual_defaults()
def measure(
    context: EvaluationContext,
    spaces: dict[str, tuple[Any, dict[str, Any]]],
    *,
    announce: Callable[[str], object] = lambda _: None,
) -> Evaluation:
    """What `evaluate` measures, in a context and in feature spaces that are there already."""
    start = time.perf_counter()
    announce("held-out images and reconstructions")
    figures = _held_out_figures(context)
    announce("samples of N(0, I) and of the energy-based prior")
    samples = context.samples("ebm")
    names = ("gaussian", "ebm", "reconstructions", "reference")
    found = {name: context.features(name, spaces) for name in names}
    groups = min(20, context.num_images // 2)
    gaps = {s: measure_gap(*(found[n][s] for n in names), num_groups=groups) for s in spaces}
    quality = {
        s: {n: measure_quality(found[n][s], found["reference"][s]) for n in names[:-1]}
        for s in spaces
    }
    return Evaluation(
        model=context.pipe.name,
        sampling=context.pipe.sampling_config(**context.sampling).to_dict(),
        held_out=2 * context.num_images,
        u_square=_mean_squares(samples.u),
        gaps=gaps,
        feature_reports={name: report for name, (_, report) in spaces.items()},
        seconds=time.perf_counter() - start,
        sampling_seconds=samples.seconds,
        quality=quality,
        **figures,
    )


@usual_defaults()
def evaluate(
    pipe: Pipeline,
    training: ImageDataset,
    held_out: ImageDataset,
    *,
    num_images: int | None = None,
    feature_steps: int | None = None,
    batch_size: int = 50,
    cache_dir: Path | None = None,
    folder: Path | None = None,
    progress: bool = True,
    announce: Callable[[str], object] = lambda _: None,
    **sampling: Any,
) -> Evaluation:
    """Measure a model with an energy-based prior.

    Arguments:
        pipe: The model.
        training: What it was trained on; the feature spaces are too.
        held_out: What it was not.
        num_images: In each of the four sets; at most half of the held-out ones, which is also
            what None is where that is less than 2,000.
        feature_steps: Optimiser steps of the classifier whose features are used; None takes the
            package's own where it has one for this model and these data, or else 1,200.
        batch_size: Images at a time.
        cache_dir: Where the classifier is kept; by default $HEBM_CACHE or ~/.cache/hebm_sample.
        folder: Where latents are kept as they are drawn, so that a second call goes on where
            the first was interrupted; without it they are kept in memory.
        progress: Show bars.
        announce: Told what begins.
        sampling: Fields of `LangevinConfig` in place of the model's own.

    Raises:
        UserInputError: Too few held-out images, or a model without a prior.
    """
    context = make_context(
        pipe,
        training,
        held_out,
        num_images=num_images,
        batch_size=batch_size,
        folder=folder,
        progress=progress,
        **sampling,
    )
    announce("feature spaces")
    spaces = feature_spaces(
        training, steps=feature_steps, model=pipe.name, cache_dir=cache_dir, progress=progress
    )
    return measure(context, spaces, announce=announce)
