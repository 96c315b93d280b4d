"""From a checkpoint to a model folder: the only bridge between training and inference.

The averaged weights, from where they were best on held-out images, in half precision, with config,
card and manifest row.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hebm_sample.config import GeneratorConfig, ModelConfig
from hebm_sample.errors import NonFiniteSampleError, UserInputError, WeightsError
from hebm_sample.generator.encoder import Encoder
from hebm_sample.generator.hierarchy import HierarchicalGenerator, sharp_decoder
from hebm_sample.hub.card import CARD_IMAGES, NOT_PICKED, model_card
from hebm_sample.hub.load import new_prior
from hebm_sample.hub.manifest import ModelRow, check_name
from hebm_sample.hub.save import (
    UNSTATED_LICENCE,
    check_new_model,
    licence_of,
    write_model_folder,
)
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.images import png_bytes
from hebm_sample.pipeline.identity import calibration_if_any, calibration_to_save
from hebm_sample.pipeline.pipeline import Pipeline, Prior
from hebm_sample.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    load_part,
    read_state,
)
from hebm_sample.training.decoding.train import sharpened
from hebm_sample.training.elbo import GeneratorObjective
from hebm_sample.training.optim import averaged
from hebm_sample.training.record import BASE, check_base, record_of
from hebm_sample.training.train import trained_generator
from hebm_sample.training.trainer import BEST

__all__ = ["UNSTATED_LICENCE", "export", "load_run", "write_model"]

TRIES = 3


@usual_defaults()
def load_run(run: str | Path) -> Pipeline:
    """A run's averaged weights as a pipeline on the CPU: where they were best on held-out images,
    or those of the newest whole checkpoint where nothing was measured.

    Raises:
        UserInputError: The folder holds no whole checkpoint, or another model than the one that
            the run began with.
    """
    run = Path(run)
    for _ in range(TRIES - 1):
        try:
            return _loaded(run)
        except WeightsError:  # a run that goes on has a new best, and has removed the old one
            continue
    return _loaded(run)


def _loaded(run: Path) -> Pipeline:
    checkpoint = _chosen(run) if run.is_dir() else None
    if checkpoint is None:
        raise UserInputError(
            f"{run} holds no whole checkpoint; give the --out folder of a training run"
        )
    state, kept = read_state(latest_checkpoint(run) or checkpoint), read_state(checkpoint)["step"]
    state["step"] = max(state["step"], kept)  # of a run that ended before it could say so
    identity = state["identity"]
    config = ModelConfig.from_dict(identity["config"])
    record = replace(record_of(state), kept=kept)  # as it is, not wanted
    config = replace(config, training=(*config.training, record))
    start = run / BASE
    check_base(run, state)
    base = Pipeline.from_pretrained(start, device="cpu") if start.is_dir() else None
    if identity["kind"] == "generator":
        described = config.generator
        assert isinstance(described, GeneratorConfig), "runs train no imported generator"
        learner = GeneratorObjective(HierarchicalGenerator(described), Encoder(described))
        _load_average(checkpoint, learner)
        return trained_generator(config, learner, base)
    base = base or Pipeline.from_pretrained(start, device="cpu")  # which says what is missing
    if identity["kind"] == "decoder":
        return _with_decoder(base, config, checkpoint)
    energy = new_prior(config)
    _load_average(checkpoint, energy)
    return Pipeline(config, base.generator, energy, base.encoder)


def _with_decoder(base: Pipeline, config: ModelConfig, checkpoint: Path) -> Pipeline:
    described = config.generator
    assert isinstance(described, GeneratorConfig), "only such a generator's decoder is trained"
    decoder = sharp_decoder(described)
    load_part(checkpoint, "ema", "module.decoder.", decoder)
    return sharpened(base, config, decoder)


def _chosen(run: Path) -> Path | None:
    """The checkpoint to export. The best is of no use before the run has a whole checkpoint."""
    newest = latest_checkpoint(run)
    best = None if newest is None else read_state(newest).get("best")
    found = None if best is None else latest_checkpoint(run / BEST)
    if best is not None and found is None:
        warnings.warn(
            f"{run / BEST} holds no whole checkpoint: the newest weights are exported in "
            f"place of those of step {best['step']}, the best",
            stacklevel=3,
        )
    return found or newest


def _load_average(checkpoint: Path, learner: nn.Module) -> None:
    ema = averaged(learner, 0.0)
    load_checkpoint(checkpoint, modules={"ema": ema}, optimizer=None)
    learner.load_state_dict(ema.module.state_dict())


@usual_defaults()
def export(
    run: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    licence: str = UNSTATED_LICENCE,
    figures: dict[str, Any] | None = None,
    notes: str = "",
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
    samples: bool = True,
    **sampling: Any,
) -> ModelRow:
    """Write a run's model to `folder`; returns its manifest row.

    Arguments:
        run: Folder of a training run, finished or not.
        name: The model's name; the preset's if None.
        licence: Of the weights, in words.
        figures: Name to measured value, for card and manifest.
        notes: Markdown on data, training and limits, for the card.
        dtype: On disk.
        overwrite: Replace a model that is in `folder`.
        samples: Sample images for the card, seeds 0 to 15.
        sampling: Fields of `LangevinConfig` that become the model's defaults.
    """
    check_new_model(Path(folder), overwrite)
    if name is not None:
        check_name(name)
    pipe = load_run(run)
    config = pipe.config if name is None else replace(pipe.config, name=name)
    config = replace(config, sampling=pipe.sampling_config(**sampling))
    how = {"figures": figures, "notes": notes, "dtype": dtype, "overwrite": overwrite}
    parts = (config, pipe.generator, pipe.prior, pipe.encoder)
    shown = Pipeline(*parts, device="cpu", calibration=calibration_if_any(pipe.model))
    return write_model(Path(folder), shown, licence=licence, samples=samples, **how)


def write_model(
    folder: Path,
    pipe: Pipeline,
    *,
    licence: str = UNSTATED_LICENCE,
    figures: dict[str, Any] | None = None,
    notes: str = "",
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
    samples: bool = True,
) -> ModelRow:
    """Write a model with a new card; arguments, errors and row as of `export`."""
    config, figures = pipe.config, figures or {}
    licence = licence_of(config, licence)
    image = _sampled(pipe) if samples else None
    shown = None if image is None else NOT_PICKED
    return write_model_folder(
        folder,
        config,
        pipe.generator,
        pipe.prior,
        pipe.encoder,
        dtype=dtype,
        licence=licence,
        figures=figures,
        card=model_card(config, licence=licence, figures=figures, notes=notes, samples=shown),
        samples=image,
        calibration=calibration_to_save(pipe.model, dtype),
        overwrite=overwrite,
    )


def _sampled(model: Pipeline) -> bytes | None:
    """A PNG of images for the card; None of a model whose chains leave the finite numbers."""
    prior: Prior = "gaussian" if model.prior is None else "ebm"
    try:
        found = model(CARD_IMAGES, prior=prior, progress=False)
    except NonFiniteSampleError:
        return None
    return png_bytes(found.grid(), found.provenance[0].of_seeds(*found.seeds).text())
