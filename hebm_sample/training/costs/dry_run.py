"""What a run would take, before it is started: `hebm-train generator|prior|decoder --dry-run`.

A step of the whole batch is walked through without numbers (torch's device "meta"), and counted:

    FLOPs   of convolutions and matrix products, forward and backward
    memory  learned weights x (weights, gradients, two moments, average) + frozen weights
            + the most bytes of a micro-batch's activations alive at a time, in float32 and
              without kernels' own work space

A step of a batch b, the run's own or a smaller one, is made for real, on images of noise, and
timed (`costs/measure.py`):

    seconds of a step = batch / b  x  forward and backward  +  the optimiser's update

Of a chain of K steps two short ones are taken, and the line through them is followed:

    v(K) = v(1) + (K - 1) (v(3) - v(1)) / 2

Nothing is written. Where b is smaller than the run's batch, a GPU makes that faster than in
proportion: there the time is an upper bound.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import nn

from hebm_sample.config import GeneratorConfig, ModelConfig
from hebm_sample.data.holdout import HELD_OUT_MOST
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import Encoder
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.generator.kinds import AnyGeneratorConfig
from hebm_sample.generator.protocol import Generator, ImageEncoder
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.preset import Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.training.costs.measure import Batch, Costs, measure
from hebm_sample.training.decoding.objective import DecoderObjective, SharpDecoder
from hebm_sample.training.decoding.train import new_learner, with_sharp_decoder
from hebm_sample.training.devices import checkpointing
from hebm_sample.training.elbo import GeneratorObjective
from hebm_sample.training.encoded import MOST_BYTES, encoded_bytes
from hebm_sample.training.energy import MleObjective, PriorObjective, ScoreObjective
from hebm_sample.training.optim import seed_step

__all__ = ["Costs", "Estimate", "dry_run", "trained_rows"]

# Weights, gradients, AdamW's two moments, the average.
COPIES = 5
FLOAT_BYTES = 4

Kind = Literal["generator", "prior", "decoder"]


@dataclass(frozen=True)
class Estimate:
    """What a run would take on one process of this machine.

    Arguments:
        kind: "generator", "prior" or "decoder".
        name: The preset's.
        objective: In words.
        generator: The generator's shape.
        parameters: Numbers of parameters by part.
        learned, frozen: Numbers of parameters that the run changes, and holds besides.
        batch: Images per step and process.
        steps: Of the whole run.
        costs: Of a step, counted and measured.
        timed_batch: Images of the step that was timed.
        device: In words.
        images: Rows of `--data`, if it was given.
        settings: The run's.
        encoded: Bytes per image of the encoder's maps, where they are computed once; 0 elsewhere.
    """

    kind: Kind
    name: str
    objective: str
    generator: AnyGeneratorConfig
    parameters: dict[str, int]
    learned: int
    frozen: int
    batch: int
    steps: int
    costs: Costs
    timed_batch: int
    device: str
    images: int | None = None
    settings: TrainSettings = TrainSettings(steps=1)
    encoded: int = 0

    @property
    def step_seconds(self) -> float:
        """Of a step of the whole batch."""
        return self.costs.seconds * self.batch / self.timed_batch + self.costs.update

    @property
    def state_bytes(self) -> float:
        """Of what does not depend on the batch."""
        return FLOAT_BYTES * (COPIES * self.learned + self.frozen)

    def lines(self) -> list[str]:
        """The report."""
        g, costs = self.generator, self.costs
        groups = len(g.latent_shapes)
        counts = ", ".join(f"{k} {_scaled(v)}" for k, v in self.parameters.items())
        epochs = ""
        if self.images:
            shown = self.steps * self.batch / self.images
            epochs = f"; {shown:,.1f} times through {self.images:,} images"
        return [
            f"{self.name}, {self.kind}: {g.image_size}x{g.image_size} images, {groups} groups, "
            f"{g.latent_dimensions:,} latent dimensions",
            *_scale_table(g),
            f"objective   {self.objective}",
            f"parameters  {counts}; this run learns {_scaled(self.learned)}",
            f"steps       {self.steps:,} of {self.batch} images per process{epochs}",
            *self._how(),
            f"FLOPs       {_scaled(costs.flops / self.batch)} an image, {_scaled(costs.flops)} "
            f"a step, {_scaled(costs.flops * self.steps)} in all",
            f"memory      {_bytes(self.state_bytes + costs.activations)}: "
            f"{_bytes(self.state_bytes)} of weights, gradients, optimiser and average, "
            f"{_bytes(costs.activations)} of activations",
            *self._on_disk(),
            f"measured    {costs.seconds:.3g} s for {self.timed_batch} "
            f"image{'s' * (self.timed_batch > 1)}, {costs.update:.2g} s for the update, "
            f"on {self.device}",
            f"time        {_duration(self.step_seconds)} a step, "
            f"{_duration(self.step_seconds * self.steps)} in all on this device",
            "Time is extrapolated in proportion to the batch and the steps; nothing was written.",
        ]

    def _how(self) -> list[str]:
        """What is not a step's ordinary way, in a line."""
        s, how = self.settings, []
        if s.accumulate > 1:
            how.append(f"{s.accumulate} micro-batches of {s.micro_batch}")
        if s.dtype != "float32":
            how.append(f"{s.dtype} (activations are counted in float32, an upper bound)")
        if s.compile and self.kind != "decoder":
            how.append("compiled (timed without, an upper bound)")
        if s.activation_checkpointing:
            how.append("activations inside T's groups are computed twice")
        return ["            " + "; ".join(how)] if how else []

    def _on_disk(self) -> list[str]:
        """What the encoder's maps of all images take, in a line."""
        if not self.encoded:
            return []
        found = f"disk        {_bytes(self.encoded)} per image of the encoder's maps"
        if self.images is None:
            return [f"{found}, until the run ends; more than {_bytes(MOST_BYTES)} are not written"]
        size = self.encoded * trained_rows(self.images, self.settings.validation)
        if size > MOST_BYTES:
            much = f"{_bytes(size)} are more than {_bytes(MOST_BYTES)}"
            return [f"{found}: {much}, so each step makes them"]
        return [f"{found}, {_bytes(size)} in the run's folder until it ends"]


def _scale_table(config: AnyGeneratorConfig) -> list[str]:
    lines = ["  scale     groups  channels  width   dimensions"]
    for s in config.scales:
        size = s.groups * s.latent_channels * s.resolution**2
        side = f"{s.resolution}x{s.resolution}"
        lines.append(f"  {side:9} {s.groups:6} {s.latent_channels:9} {s.width:6} {size:12,}")
    return lines


def _scaled(number: float) -> str:
    """123456 to "123 k"."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _bytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} s"


def _count(module: nn.Module, *, learned: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learned)


def trained_rows(rows: int, validation: int | None) -> int:
    """Rows that are trained on; about as many, where those held out are chosen by a hash."""
    held = min(rows // 10, HELD_OUT_MOST) if validation is None else validation
    return max(0, rows - held)


def _noise_batch(config: AnyGeneratorConfig, preset: Preset, kind: Kind, count: int) -> Batch:
    """Images of noise on the 256 levels, and random labels where the prior has symbols."""
    size = (count, config.image_channels, config.image_size, config.image_size)
    images = torch.randint(0, 256, size).float() * 2 / 255 - 1
    symbols = preset.prior.symbols if kind == "prior" else ()
    if not symbols:
        return images, None
    return images, torch.stack([torch.randint(len(s.values), (count,)) for s in symbols], dim=1)


def _prior_objective(
    preset: Preset,
    objective: str,
    generator: Generator,
    encoder: ImageEncoder,
) -> PriorObjective:
    config = generator.config
    energy = JointEnergy(preset.prior, config.latent_shapes, config.state_shapes)
    if objective == "mle":
        return MleObjective(generator, encoder, energy, chain_steps=preset.chain_steps)
    if preset.prior.parametrization != "log_snr":
        raise UserInputError(
            f"preset {preset.name} has the parametrisation {preset.prior.parametrization!r}, "
            "which objective 'score' cannot train; use --objective mle"
        )
    return ScoreObjective(generator, encoder, energy)


def _objective_text(objective: nn.Module) -> str:
    if isinstance(objective, GeneratorObjective):
        weights = list(dict.fromkeys(objective.kl_weight))
        return "ELBO, the KL weighted by " + ", ".join(f"{w:g}" for w in weights)
    if isinstance(objective, MleObjective):
        levels = len(objective.energy.config.levels) - 1
        return f"mle, T = {levels}, chains of K = {objective.chain_steps} steps"
    if isinstance(objective, DecoderObjective):
        halves = "reconstructions" if objective.pool is None else "reconstructions and samples"
        return f"a discriminator's, features' and pixels' losses on {halves}"
    return "score, every noise level"


class _Built(NamedTuple):
    """The networks of a run, and its objective around them."""

    generator: Generator
    encoder: ImageEncoder
    objective: PriorObjective | GeneratorObjective | DecoderObjective
    learner: nn.Module


@usual_defaults()
def dry_run(
    kind: Kind,
    preset: Preset,
    device: torch.device,
    *,
    objective: str | None = None,
    model: Pipeline | None = None,
    images: int | None = None,
) -> Estimate:
    """Build the run of a preset, make a step of a small batch, and estimate the whole.

    Arguments:
        kind: Which of the three runs.
        preset: With the options that were typed in its settings.
        device: Where to measure.
        objective: "score" or "mle", for a prior; the preset's if None.
        model: A prior's generator, a decoder's model, or the smaller one that a generator grows
            from; random weights of the preset's shape if None.
        images: Rows of the data, if known.
    """
    settings: TrainSettings = getattr(preset, f"{kind}_settings")
    seed_step(settings.seed, 0, 0)
    built = _build(kind, preset, objective or preset.objective, model)
    built.objective.to(device).train()

    def noise(count: int) -> Batch:
        return _noise_batch(built.generator.config, preset, kind, count)

    rows = trained_rows(images or 0, settings.validation)
    once = kind == "prior" and settings.encodes_once(rows)
    encoded = encoded_bytes(built.encoder) if once else 0
    # Compiling would take longer than all that is measured here.
    kept = encoded * rows <= MOST_BYTES and encoded > 0
    timed = replace(settings, compile=False, encode_once=kept)
    with checkpointing(built.objective, settings.activation_checkpointing):
        costs = measure(built.objective, built.learner, timed, device, noise)
    estimate = _estimate(kind, preset, built, settings, costs)
    estimate = replace(estimate, device=_device_text(device), images=images, encoded=encoded)
    if settings.steps is None and settings.time_budget is not None:
        steps = max(1, int(settings.time_budget / estimate.step_seconds))
        return replace(estimate, steps=steps)
    return estimate


def _build(kind: Kind, preset: Preset, objective: str, model: Pipeline | None) -> _Built:
    """The objective, with random weights where there is no model; arguments as of `dry_run`."""
    if kind == "prior":
        if model is not None:
            networks: tuple[Generator, ImageEncoder] = model.generator, model.encoder
        else:
            networks = HierarchicalGenerator(preset.generator), Encoder(preset.generator)
        energies = _prior_objective(preset, objective, *networks)
        return _Built(*networks, energies, energies.energy)
    if kind == "decoder":
        return _build_decoder(preset, model)
    generator, encoder = HierarchicalGenerator(preset.generator), Encoder(preset.generator)
    learned = GeneratorObjective(generator, encoder, preset.kl_weight)
    if model is not None and generator.begin_with(model.generator):
        encoder.requires_grad_(False)
    return _Built(generator, encoder, learned, learned)


def _build_decoder(preset: Preset, model: Pipeline | None) -> _Built:
    """The decoder's objective; samples of the prior are noise of their shape."""
    if model is None:
        networks = HierarchicalGenerator(preset.generator), Encoder(preset.generator)
        model = Pipeline(
            ModelConfig(preset.model_name, preset.generator, preset.prior, preset.sampling),
            networks[0],
            _energies(preset),
            networks[1],
        )
    config = with_sharp_decoder(model, preset).generator
    generator, encoder = model.generator, model.encoder
    assert isinstance(generator, HierarchicalGenerator) and isinstance(encoder, Encoder)
    assert isinstance(config, GeneratorConfig)
    learner: SharpDecoder = new_learner(config, generator, preset.decoder)
    pool = None
    if model.prior is not None and preset.decoder.samples:
        pool = tuple(torch.randn(preset.decoder.samples, *s) for s in config.latent_shapes)
    objective = DecoderObjective(generator, encoder, learner, preset.decoder, pool)
    return _Built(generator, encoder, objective, learner)


def _estimate(
    kind: Kind, preset: Preset, built: _Built, settings: TrainSettings, costs: Costs
) -> Estimate:
    """The whole run from the costs of a step."""
    objective, learned = built.objective, _count(built.learner, learned=True)
    energies = objective.energy if isinstance(objective, PriorObjective) else _energies(preset)
    parts = {"generator": built.generator, "encoder": built.encoder, "energies": energies}
    return Estimate(
        kind=kind,
        name=preset.name,
        objective=_objective_text(objective),
        generator=built.generator.config,
        parameters={name: _count(part) for name, part in parts.items()},
        learned=learned,
        frozen=_count(objective) - learned,
        batch=settings.batch_size,
        steps=settings.steps or 1,
        costs=costs,
        timed_batch=costs.timed_batch,
        device="",
        settings=settings,
    )


def _energies(preset: Preset) -> JointEnergy:
    """The energies that a generator's run will be followed by."""
    config = preset.generator
    return JointEnergy(preset.prior, config.latent_shapes, config.state_shapes)


def _device_text(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} with {threads} thread" + ("s" if threads > 1 else "")
