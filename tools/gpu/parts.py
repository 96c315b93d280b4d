"""What each stage of a recipe learns: objective, learner, figures, and the model that comes of it.

The objectives, their weights and their order are those of `hebm-train recipe`; here they are put
on the device once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from hebm_sample.config import GeneratorConfig, ModelConfig, TrainingRecord
from hebm_sample.data.dataset import to_float
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import Encoder, encode
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.generator.kinds import new_encoder, new_generator
from hebm_sample.hub.load import new_prior
from hebm_sample.io.files import write_atomically
from hebm_sample.latents import Latents, concatenate
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.preset import Preset
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.training.decoding.objective import ALONE, RAMP, DecoderObjective, SharpDecoder
from hebm_sample.training.decoding.train import (
    Watch,
    new_learner,
    with_sharp_decoder,
)
from hebm_sample.training.elbo import GeneratorObjective, standard_normal
from hebm_sample.training.energy import ScoreObjective
from hebm_sample.training.heldout import heldout_figures
from hebm_sample.training.recipe import Stage
from hebm_sample.training.record import records_of_generator
from hebm_sample.training.train import channels_last, sampling_for

from .packing import Packed

__all__ = ["Job", "check_objective", "new_job"]

POOL = "samples.safetensors"
POOL_BATCH = 500
FIRST_IMAGES = 32  # that a decoder's error at the start is measured on


@dataclass
class Job:
    """One stage's work.

    Arguments:
        objective, learner: As `Stepper` takes them.
        model: A record of training to the model with the learner's present weights.
        in_float: Layers that stay out of autocast.
        graph_from, takes_tensor: As `Stepper` takes them.
        encoder: Whose maps the objective takes in the place of images; None where it does not.
        measure: Held-out figures of the learner's present weights; `heldout_loss` is the least
            for the best.
        watch: Given the means of statistics; raises where no good can come of going on.
    """

    objective: nn.Module
    learner: nn.Module
    model: Callable[[TrainingRecord], Pipeline]
    in_float: Sequence[nn.Module] = ()
    graph_from: float | None = 0.0
    takes_tensor: bool = False
    encoder: Encoder | None = None
    measure: Callable[[], dict[str, float]] | None = None
    watch: Callable[[dict[str, Any]], None] | None = None


def check_objective(preset: Preset) -> None:
    """`UserInputError` for energies that are not trained here, before anything else is."""
    if preset.objective != "score" or preset.prior.parametrization != "log_snr":
        raise UserInputError(
            f"preset {preset.name} trains its energies by chains; this trains by score matching"
        )


def new_job(
    stage: Stage, model: Pipeline | None, packed: Packed, folder: Path, device: torch.device
) -> Job:
    """The work of a stage.

    Arguments:
        model: That of the stage before, or what an earlier run has made of this one; None for the
            first.
        folder: Of the stage.
    """
    torch.manual_seed(stage.settings.seed)
    if stage.part == "generator":
        return _generator(stage, model, packed, device)
    assert model is not None, "a prior and a decoder have a generator"
    generator, encoder = model.generator.to(device), model.encoder.to(device)
    assert isinstance(generator, HierarchicalGenerator) and isinstance(encoder, Encoder)
    if stage.part == "prior":
        return _prior(stage, model, generator, encoder, packed)
    return _decoder(stage, model, generator, encoder, packed, folder)


def _recorded(config: ModelConfig, record: TrainingRecord) -> ModelConfig:
    return replace(config, training=(*config.training, record))


def _copied(
    config: ModelConfig,
    generator: Mapping[str, Tensor],
    encoder: Encoder,
    prior: JointEnergy | None,
) -> Pipeline:
    """A model of its own on the CPU: a pipeline moves its modules, and those that learn must stay
    where a captured step knows them.
    """
    modules: list[tuple[nn.Module, Mapping[str, Tensor]]] = [
        (new_generator(config.generator), generator),
        (new_encoder(config.generator), encoder.state_dict()),
    ]
    if prior is not None:
        modules.append((new_prior(config), prior.state_dict()))
    for module, state in modules:
        module.load_state_dict(state)
    fresh: list[Any] = [module for module, _ in modules]
    return Pipeline(config, fresh[0], fresh[2] if prior is not None else None, fresh[1])


def _heads(generator: HierarchicalGenerator, encoder: Encoder) -> list[nn.Module]:
    """The layers that means and widths come from: bfloat16 has half a grey level near white."""
    priors = [cast("nn.Module", group.prior) for group in generator.groups]
    return [*priors, *(cast("nn.Module", head.out) for head in encoder.heads)]


# Generator


def _generator(stage: Stage, model: Pipeline | None, packed: Packed, device: torch.device) -> Job:
    preset = stage.preset
    generator, encoder = HierarchicalGenerator(preset.generator), Encoder(preset.generator)
    objective = GeneratorObjective(generator, encoder, preset.kl_weight)
    config = ModelConfig(preset.model_name, preset.generator, None, preset.sampling)
    prior = None
    if model is not None:
        objective.warm_up, prior = 0.0, model.prior
        kept = {"prior": model.config.prior, "sampling": model.config.sampling}
        before = records_of_generator(model.config.training, prior=prior is not None)
        config = replace(config, training=before, **(kept if prior else {}))
        encoder.load_state_dict(model.encoder.state_dict())
        if generator.begin_with(model.generator):
            encoder.requires_grad_(False)  # T stays, too, so that its prior fits
    channels_last(objective.to(device))
    measure = None
    if len(packed.held_out):
        names = {"bits": "heldout_bits"}
        measure = _measure(objective, stage, packed, device, names)
    return Job(
        objective,
        objective,
        lambda record: _copied(_recorded(config, record), generator.state_dict(), encoder, prior),
        [*_heads(generator, encoder), generator.decoder.head],
        takes_tensor=True,
        measure=measure,
    )


def _measure(
    objective: nn.Module,
    stage: Stage,
    packed: Packed,
    device: torch.device,
    names: dict[str, str],
) -> Callable[[], dict[str, float]]:
    count = stage.settings.heldout
    return lambda: heldout_figures(objective, packed.held_out, count, device, names)


# Energies


def _prior(
    stage: Stage,
    model: Pipeline,
    generator: HierarchicalGenerator,
    encoder: Encoder,
    packed: Packed,
) -> Job:
    preset, device = stage.preset, packed.images.device
    config = replace(
        model.config, name=preset.model_name, prior=preset.prior, sampling=sampling_for(preset)
    )
    energy = new_prior(config)
    if model.prior is not None:
        energy.load_state_dict(model.prior.state_dict())
    objective = ScoreObjective(
        generator,
        encoder,
        energy,
        symbol_weight=preset.symbol_weight,
        condition_share=preset.condition_share,
    )
    channels_last(objective.to(device))
    return Job(
        objective,
        energy,
        lambda record: _copied(_recorded(config, record), generator.state_dict(), encoder, energy),
        [*_heads(generator, encoder), *_energy_heads(energy)],
        encoder=encoder if stage.settings.zoom == 1 else None,
        measure=_measure(objective, stage, packed, device, {"drop": "heldout_gain"})
        if len(packed.held_out)
        else None,
    )


def _energy_heads(energy: JointEnergy) -> list[nn.Module]:
    names = ("out", "gain", "pooled", "symbol_pooled")
    return [getattr(net, name) for net in energy.nets for name in names if hasattr(net, name)]


# Decoder


def _decoder(
    stage: Stage,
    model: Pipeline,
    generator: HierarchicalGenerator,
    encoder: Encoder,
    packed: Packed,
    folder: Path,
) -> Job:
    config, plan = with_sharp_decoder(model, stage.preset), stage.preset.decoder
    device = packed.images.device
    assert isinstance(config.generator, GeneratorConfig)
    learner = new_learner(config.generator, generator, plan)
    pool = _pool(model, plan.samples, folder, device)
    objective = DecoderObjective(generator, encoder, learner, plan, pool)
    channels_last(objective.to(device))
    start = _error(generator, encoder, learner.decoder, packed.images[:FIRST_IMAGES])
    side = stage.preset.generator.scales[-1].resolution
    whole = plan.square is None or plan.square >= side

    def finished(record: TrainingRecord) -> Pipeline:
        known = {k: v for k, v in generator.state_dict().items() if not k.startswith("sharp.")}
        sharp = {f"sharp.{k}": v for k, v in learner.decoder.state_dict().items()}
        return _copied(_recorded(config, record), known | sharp, encoder, model.prior)

    return Job(
        objective,
        learner,
        finished,
        [*_heads(generator, encoder), cast("nn.Module", learner.decoder.head)],
        # Before, losses change their weights; squares are cut at places that the CPU must know.
        graph_from=ALONE + RAMP if whole else None,
        measure=_sharp_figures(objective, learner, stage, packed)
        if len(packed.held_out)
        else None,
        watch=Watch(start),
    )


@torch.no_grad()
def _error(
    generator: HierarchicalGenerator, encoder: Encoder, decoder: nn.Module, images: Tensor
) -> float:
    """Mean absolute error of reconstructions by `decoder`."""
    x = to_float(images)
    stream = torch.Generator(x.device).manual_seed(0)
    noise = standard_normal(generator.latent_shapes, len(x), x.device, stream)
    y = decoder(encode(generator, encoder, x, noise).top.features)
    return float((y - x).abs().mean())


def _sharp_figures(
    objective: DecoderObjective, learner: SharpDecoder, stage: Stage, packed: Packed
) -> Callable[[], dict[str, float]]:
    """The error of held-out reconstructions; the least is not the best here, so it is no loss."""

    def error(
        x: Tensor, _: float, __: None, stream: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        y = learner.decoder(objective.states(x, stream)[0])
        return (y - x).abs().mean(), {}

    def measure() -> dict[str, float]:
        count, device = stage.settings.heldout, packed.images.device
        found = heldout_figures(error, packed.held_out, count, device, {})
        return {"heldout_pixels": found["heldout_loss"]}

    return measure


def _pool(model: Pipeline, count: int, folder: Path, device: torch.device) -> Latents | None:
    """Latents of samples of the prior, seeds 0 and on, kept in the stage's folder."""
    if model.prior is None or count == 0:
        return None
    path = folder / POOL
    if not path.exists():
        sampler, found = model.to(device), []
        for first in range(0, count, POOL_BATCH):
            seeds = range(first, min(first + POOL_BATCH, count))
            how = {"batch_size": POOL_BATCH, "particles": 1, "output_type": "torch"}
            found.append(sampler(seeds=seeds, **how).latents)
        named = {str(i): u.half().contiguous() for i, u in enumerate(concatenate(found))}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, safetensors.torch.save({k: v.cpu() for k, v in named.items()}))
    named = safetensors.torch.load_file(path, device=str(device))
    return tuple(named[str(i)] for i in range(len(named)))
