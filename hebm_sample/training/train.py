"""From images to a trained model: build the task, run the loop, write the folder that `Pipeline`
loads.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hebm_sample.config import (
    GeneratorConfig,
    LangevinConfig,
    ModelConfig,
    require_choice,
)
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.generator.encoder import Encoder, encode
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.generator.protocol import Generator, ImageEncoder
from hebm_sample.hub.load import new_prior
from hebm_sample.hub.weights import content_digest
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.latents import Latents
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.models import Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.training.checkpoint import check_start, latest_checkpoint, read_state
from hebm_sample.training.devices import agreed, by_first
from hebm_sample.training.elbo import (
    GeneratorObjective,
    group_weights,
    standard_normal,
)
from hebm_sample.training.encoded import BATCH as ENCODED
from hebm_sample.training.encoded import EncodedImages, encoded_by_first, remove_encoded
from hebm_sample.training.ending import check_model_place
from hebm_sample.training.energy import MleObjective, PriorObjective, ScoreObjective
from hebm_sample.training.heldout import BATCH, heldout_figures
from hebm_sample.training.label_columns import label_columns, with_values
from hebm_sample.training.lock import locked
from hebm_sample.training.record import (
    check_generator,
    check_prior,
    former_digest,
    records_of_energies,
    records_of_generator,
    same_rows,
)
from hebm_sample.training.trainer import RunResult, Task, make_accelerator, make_run_folder, train

__all__ = [
    "Objective",
    "channels_last",
    "train_generator",
    "train_prior",
    "trained_generator",
]

PREVIEW = 16
Objective = Literal["score", "mle"]


def channels_last(module: nn.Module) -> None:
    """Put convolutions into channels-last memory, in which CPUs and GPUs run them fastest."""
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def in_pieces(make: Callable[[Latents], Tensor], rows: Latents, at_once: int) -> Tensor:
    """`make` of tensors (N, ...), of `at_once` rows at a time."""
    pieces = zip(*(x.split(at_once) for x in rows), strict=True)
    return torch.cat([make(piece) for piece in pieces])


def _generator_task(
    config: ModelConfig,
    kl_weight: float | tuple[float, ...],
    validation: ImageDataset,
    identity: str,
    device: torch.device,
    settings: TrainSettings,
) -> Task:
    """Generator and encoder. The grid shows held-out images, their reconstructions, N(0, I)
    samples.
    """
    described = config.generator
    assert isinstance(described, GeneratorConfig), "an imported generator is not trained further"
    torch.manual_seed(settings.seed)
    objective = GeneratorObjective(HierarchicalGenerator(described), Encoder(described), kl_weight)
    channels_last(objective.to(device))

    @torch.no_grad()
    def preview(learner: nn.Module) -> Tensor:
        assert isinstance(learner, GeneratorObjective)
        shapes = config.generator.latent_shapes
        at_once = settings.at_once(PREVIEW)
        parts = [in_pieces(learner.generator, standard_normal(shapes, PREVIEW, device), at_once)]
        if count := min(PREVIEW, len(validation)):
            images = validation.some(count).batch(torch.arange(count)).to(device)
            noise = standard_normal(shapes, count, device)

            def again(rows: Latents) -> Tensor:
                posterior = encode(learner.generator, learner.encoder, rows[0], rows[1:])
                return learner.generator.decode(posterior.top.features)

            parts = [images, in_pieces(again, (images, *noise), at_once), *parts]
        return torch.cat(parts)

    def evaluate(learner: nn.Module) -> dict[str, float]:
        assert isinstance(learner, GeneratorObjective)
        names, at_once = {"bits": "heldout_bits"}, settings.at_once(BATCH)
        return heldout_figures(learner, validation, settings.heldout, device, names, at_once)

    measured = evaluate if len(validation) else None
    return Task("generator", objective, objective, config, preview, identity, evaluate=measured)


@usual_defaults()
def train_generator(
    preset: Preset,
    images: ImageDataset,
    folder: str | Path,
    *,
    resume: bool = False,
    init: Pipeline | None = None,
    accelerator: Any = None,
    show_progress: bool = True,
) -> RunResult:
    """Train generator and encoder in `folder`; ends with a loadable model in `folder/model`.

    Arguments:
        preset: The architecture and the run's settings.
        images: All rows; those that the settings' `validation` says are kept apart.
        resume: Go on from the folder's newest whole checkpoint.
        init: A model of the same architecture to fine-tune from; or one of smaller images that
            the preset's generator grows from, or one that has grown so: its T, encoder and prior
            are kept as they are and only the image decoder and the likelihood are trained. A
            sharp decoder is left out: it is trained anew.
        accelerator: accelerate's engine; made if None.

    Raises:
        UserInputError: `init` was trained on other rows of these data, or a preset that grows has
            none, among others.
    """
    check_generator(preset, init)
    folder, accelerator = Path(folder), accelerator or make_accelerator()
    settings, ended = agreed(preset.generator_settings, accelerator), check_model_place(folder)
    training, validation = images.split(settings.validation)
    if init is not None:
        same_rows(init.name, init.config.training, training, settings.validation)
    config = ModelConfig(
        name=preset.model_name, generator=preset.generator, sampling=preset.sampling
    )
    identity = f"{training.identity} kl_weight={_weights_text(preset)}"
    check_start(folder, resume)
    device = accelerator.device
    task = _generator_task(config, preset.kl_weight, validation, identity, device, settings)
    if init is not None:
        _start_from(init, task, preset)
    make_run_folder(folder)

    def begin() -> None:
        lock.enter_context(locked(folder))
        if latest_checkpoint(folder) is None:
            _keep_start(init, folder / "generator")

    with ExitStack() as lock:
        by_first(accelerator, begin)
        how = {"resume": resume, "accelerator": accelerator, "show_progress": show_progress}
        result = train(task, training, settings, folder, **how)
        if not ended:
            learner = cast("GeneratorObjective", result.learner)
            config = replace(config, training=(result.record,))
            made = trained_generator(config, learner, init)
            by_first(accelerator, lambda: made.save_pretrained(folder / "model", overwrite=True))
    return result


def _keep_start(init: Pipeline | None, folder: Path) -> None:
    """The model that a run begins with, whole, so that it can be exported by itself; without one,
    none of an abandoned start.
    """
    if init is not None:
        init.save_pretrained(folder, overwrite=True)
    elif folder.is_dir():
        shutil.rmtree(folder)


def trained_generator(
    config: ModelConfig, learner: GeneratorObjective, init: Pipeline | None
) -> Pipeline:
    """The model that a generator's run has made; one that has grown keeps encoder, prior and
    sampler of what it grew from.

    Arguments:
        config: Of the run, with its own record.
        init: What it began with.
    """
    if init is None:
        return Pipeline(config, learner.generator, None, learner.encoder)
    described = config.generator
    assert isinstance(described, GeneratorConfig), "an imported generator is not trained further"
    kept = described.keeps_latents_of(init.config.generator)
    before = records_of_generator(init.config.training, prior=kept)
    config = replace(config, training=(*before, *config.training))
    if not kept:
        return Pipeline(config, learner.generator, None, learner.encoder)
    config = replace(config, prior=init.config.prior, sampling=init.config.sampling)
    # The encoder to the last bit: averaging makes 0 of -0, and files are shared.
    return Pipeline(config, learner.generator, init.prior, init.encoder)


def _weights_text(preset: Preset) -> str:
    """The weights as they enter a run's identity: one number where all are alike."""
    weights = group_weights(preset.generator, preset.kl_weight)
    return str(weights[0] if len(set(weights)) == 1 else weights)


def _mark_start(task: Task, init: Pipeline) -> None:
    """Have a checkpoint tell by their content which weights the run started from."""
    parts = (init.generator, init.encoder, *([] if init.prior is None else [init.prior]))
    task.init = content_digest(*parts)
    task.former = task.identity, former_digest(init.generator)


def _start_from(init: Pipeline, task: Task, preset: Preset) -> None:
    """Take over `init`'s weights; of what grows, or has grown, T and encoder are then frozen."""
    learner = task.learner
    assert isinstance(learner, GeneratorObjective)
    _mark_start(task, init)
    # Its groups are alive: a warm-up would only make them fill up and empty again.
    learner.warm_up = 0.0
    learner.encoder.load_state_dict(init.encoder.state_dict())
    if learner.generator.begin_with(init.generator):
        learner.encoder.requires_grad_(False)


def _prior_objective(
    kind: Objective,
    generator: Generator,
    encoder: ImageEncoder,
    energy: JointEnergy,
    preset: Preset,
) -> PriorObjective:
    if kind == "score":
        return ScoreObjective(
            generator,
            encoder,
            energy,
            symbol_weight=preset.symbol_weight,
            condition_share=preset.condition_share,
        )
    return MleObjective(
        generator,
        encoder,
        energy,
        chain_steps=preset.chain_steps,
        symbol_weight=preset.symbol_weight,
    )


def _warm_start(energy: JointEnergy, init: Pipeline) -> None:
    """Take over the energies of `init`; symbols' outputs that it lacks stay at zero."""
    prior = init.prior
    assert prior is not None
    known = prior.state_dict()
    if prior.config.symbols != energy.config.symbols:
        known = {k: v for k, v in known.items() if ".symbol_" not in k}
    energy.load_state_dict(known, strict=False)


@usual_defaults()
def train_prior(
    preset: Preset,
    model: Pipeline,
    images: ImageDataset,
    folder: str | Path,
    *,
    objective: Objective = "score",
    resume: bool = False,
    init: Pipeline | None = None,
    accelerator: Any = None,
    show_progress: bool = True,
) -> RunResult:
    """Train the energies of `model`'s frozen generator in `folder`; ends with a model in
    `folder/model`.

    The generator is copied to `folder/generator`, so that the run can be resumed and exported by
    itself.

    Arguments:
        preset: The prior's architecture and the run's settings; the generator is `model`'s.
        model: Generator and encoder.
        images: All rows; those that the settings' `validation` says are kept apart.
        objective: "score", or "mle", the paper's.
        resume: Go on from the folder's newest whole checkpoint.
        init: A model whose energies to start from: a warm start for "mle".
        accelerator: accelerate's engine; made if None.

    Raises:
        UserInputError: The generator, or `init`, was trained on other rows of these data, among
            others.
    """
    require_choice("objective", objective, Objective)
    check_prior(preset, model, objective, init)
    folder, accelerator = Path(folder), accelerator or make_accelerator()
    settings = agreed(preset.prior_settings, accelerator)
    preset, ended = replace(preset, prior_settings=settings), check_model_place(folder)
    run = _PriorRun(preset, model, objective, init, accelerator)
    training, validation = images.split(settings.validation)
    for part in (model, *([] if init is None else [init])):
        same_rows(part.name, part.config.training, training)
    columns = label_columns(preset, training)
    training = with_values(preset, training, columns)
    make_run_folder(folder)
    with ExitStack() as lock:
        by_first(accelerator, lambda: lock.enter_context(locked(folder)))
        # Without a checkpoint, what lies there is an abandoned start's, maybe of another model.
        started = (checkpoint := latest_checkpoint(folder)) is not None
        if not started:
            by_first(accelerator, lambda: run.save_base(folder))
        begun = settings.as_begun(checkpoint and read_state(checkpoint))
        encodes = begun.encodes_once(len(training), accelerator.num_processes)
        encodes = encodes and resume == started and not ended  # else the loop refuses it
        prepare = run.encoded(training, folder, show_progress) if encodes else None
        task = run.task(training, validation, prepare, columns)
        how = {"resume": resume, "accelerator": accelerator, "show_progress": show_progress}
        result = train(task, training, settings, folder, **how)
        by_first(accelerator, lambda: run.finish(result, folder, ended))
    return result


class _PriorRun:
    """The energies of one generator, and what trains them."""

    def __init__(
        self,
        preset: Preset,
        model: Pipeline,
        objective: Objective,
        init: Pipeline | None,
        accelerator: Any,
    ) -> None:
        self.preset, self.kind, self.accelerator = preset, objective, accelerator
        self.device, settings = accelerator.device, preset.prior_settings
        self.generator, self.encoder = (
            model.generator.to(self.device),
            model.encoder.to(self.device),
        )
        self.config = replace(
            model.config,
            name=preset.model_name,
            prior=preset.prior,
            sampling=sampling_for(preset),
            training=records_of_energies(model, init),
        )
        torch.manual_seed(settings.seed)
        self.energy = new_prior(self.config)
        self.frozen = content_digest(self.generator, self.encoder)
        self.start = self.former_start = ""
        if init is not None:
            _warm_start(self.energy, init)
            assert init.prior is not None
            self.start, self.former_start = content_digest(init.prior), former_digest(init.prior)
        channels_last(self.energy.to(self.device))
        self.objective = _prior_objective(
            objective, self.generator, self.encoder, self.energy, preset
        )

    def save_base(self, folder: Path) -> None:
        """Write the generator without energies."""
        config = replace(self.config, prior=None)
        base = Pipeline(config, self.generator, None, self.encoder)
        base.save_pretrained(folder / "generator", overwrite=True)

    def encoded(self, images: ImageDataset, folder: Path, progress: bool) -> EncodedImages | None:
        """The encoder's maps of the training images, or None (`training/encoded.py`)."""
        batch = self.preset.prior_settings.at_once(ENCODED)
        how = {"key": self.frozen, "batch": batch, "progress": progress}
        return encoded_by_first(self.encoder, images, folder, self.accelerator, **how)

    def finished(self, result: RunResult) -> Pipeline:
        """The model with the energies that were learned."""
        config = replace(self.config, training=(*self.config.training, result.record))
        return Pipeline(config, self.generator, cast("JointEnergy", result.learner), self.encoder)

    def finish(self, result: RunResult, folder: Path, ended: bool) -> None:
        """Write the model, unless the run had ended before, and remove what it needs no more."""
        if not ended:
            self.finished(result).save_pretrained(folder / "model", overwrite=True)
        remove_encoded(folder)

    def identity(self, training: ImageDataset, columns: tuple[str, ...], frozen: str) -> str:
        """Of what must agree on resuming besides config and settings.

        Arguments:
            frozen: A digest of the frozen networks.
        """
        preset = self.preset
        chain = f" K={preset.chain_steps}" if self.kind == "mle" else ""
        found = f"{training.identity} {self.kind}{chain} {frozen}"
        if columns:
            found += f" {columns} {preset.symbol_weight} {preset.condition_share}"
        return found

    def preview(self, learner: nn.Module) -> Tensor:
        """Samples of the energies."""
        prior = cast("JointEnergy", learner)
        pipe = Pipeline(self.config, self.generator, prior, device=self.device)
        few = {"batch_size": self.preset.prior_settings.at_once(PREVIEW), "progress": False}
        return pipe(PREVIEW, output_type="torch", **few).images * 2 - 1

    def task(
        self,
        training: ImageDataset,
        validation: ImageDataset,
        prepare: EncodedImages | None,
        columns: tuple[str, ...],
    ) -> Task:
        """What the loop is given."""

        def evaluate(learner: nn.Module) -> dict[str, float]:
            objective = ScoreObjective(self.generator, self.encoder, cast("JointEnergy", learner))
            settings, names = self.preset.prior_settings, {"drop": "heldout_gain"}
            count, at_once = settings.heldout, settings.at_once(BATCH)
            return heldout_figures(objective, validation, count, self.device, names, at_once)

        former = self.identity(training, columns, former_digest(self.generator))
        # Maximum likelihood's loss tells energies apart from their own chains only.
        measured = len(validation) > 0 and self.kind == "score"
        return Task(
            "prior",
            self.objective,
            self.energy,
            self.config,
            self.preview,
            self.identity(training, columns, self.frozen),
            columns,
            prepare,
            evaluate if measured else None,
            self.start,
            former=(former, self.former_start),
        )


def sampling_for(preset: Preset) -> LangevinConfig:
    """The preset's sampler, with what the release's parametrisation cannot do switched off."""
    if preset.prior.parametrization == "log_snr":
        return preset.sampling
    return preset.sampling.changed(
        sampler="recovery", kernel="plain", start="u_next", denoise=False, step_scale=1.0
    )
