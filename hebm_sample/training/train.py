"""From images to a trained model: build the task, run the loop, write the folder that `Pipeline`
loads.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hebm_sample.config import GeneratorConfig, LangevinConfig, ModelConfig, require_choice
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import Encoder, encode
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.generator.protocol import Generator, ImageEncoder
from hebm_sample.hub.load import new_prior
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.models import Preset
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.training.checkpoint import latest_checkpoint
from hebm_sample.training.elbo import (
    GeneratorObjective,
    group_weights,
    standard_normal,
)
from hebm_sample.training.encoded import EncodedImages, encode_images, remove_encoded
from hebm_sample.training.energy import MleObjective, PriorObjective, ScoreObjective
from hebm_sample.training.label_columns import label_columns
from hebm_sample.training.lock import locked
from hebm_sample.training.trainer import RunResult, Task, make_accelerator, make_run_folder, train

__all__ = ["Objective", "train_generator", "train_prior"]

PREVIEW = 16
HELDOUT_BATCH = 50
Objective = Literal["score", "mle"]


def _channels_last(module: nn.Module) -> None:
    """Put convolutions into channels-last memory, in which CPUs and GPUs run them fastest."""
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _heldout(
    objective: Callable[..., tuple[Tensor, dict[str, Any]]],
    images: ImageDataset,
    count: int,
    device: torch.device,
    names: dict[str, str],
) -> dict[str, float]:
    """Means of an objective's loss and statistics over held-out images, with fixed noise.

    Arguments:
        names: Of the statistics, to what they are logged as.
    """
    sums = dict.fromkeys(["heldout_loss", *names.values()], 0.0)
    count = min(count, len(images))
    with torch.no_grad():
        for start in range(0, count, HELDOUT_BATCH):
            rows = torch.arange(start, min(start + HELDOUT_BATCH, count))
            stream = torch.Generator(device).manual_seed(start)
            loss, stats = objective(images.batch(rows).to(device), 1.0, None, stream)
            sums["heldout_loss"] += float(loss) * len(rows) / count
            for name, logged in names.items():
                sums[logged] += float(stats[name]) * len(rows) / count
    return sums


def _generator_task(
    config: ModelConfig,
    kl_weight: float | tuple[float, ...],
    validation: ImageDataset,
    identity: str,
    device: torch.device,
    heldout: int,
) -> Task:
    """Generator and encoder. The grid shows held-out images, their reconstructions, N(0, I)
    samples.
    """
    described = config.generator
    assert isinstance(described, GeneratorConfig), "an imported generator is not trained further"
    objective = GeneratorObjective(HierarchicalGenerator(described), Encoder(described), kl_weight)
    _channels_last(objective.to(device))

    @torch.no_grad()
    def preview(learner: nn.Module) -> Tensor:
        assert isinstance(learner, GeneratorObjective)
        shapes = config.generator.latent_shapes
        parts = [learner.generator(standard_normal(shapes, PREVIEW, device))]
        if count := min(PREVIEW, len(validation)):
            images = validation.batch(torch.arange(count)).to(device)
            noise = standard_normal(shapes, count, device)
            posterior = encode(learner.generator, learner.encoder, images, noise)
            parts = [images, learner.generator.decode(posterior.top.features), *parts]
        return torch.cat(parts)

    def evaluate(learner: nn.Module) -> dict[str, float]:
        assert isinstance(learner, GeneratorObjective)
        return _heldout(learner, validation, heldout, device, {"bits": "heldout_bits"})

    measured = evaluate if len(validation) else None
    return Task("generator", objective, objective, config, preview, identity, evaluate=measured)


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
            the preset's generator grows from: its T, encoder and prior are kept as they are and
            only the image decoder and the likelihood are trained.
        accelerator: accelerate's engine; made if None.
    """
    accelerator = accelerator or make_accelerator()
    settings = preset.generator_settings
    training, validation = images.split(settings.validation)
    torch.manual_seed(settings.seed)
    config = ModelConfig(
        name=preset.model_name, generator=preset.generator, sampling=preset.sampling
    )
    grown_from: Pipeline | None = None
    identity = f"{training.identity} kl_weight={_weights_text(preset)}"
    task = _generator_task(
        config, preset.kl_weight, validation, identity, accelerator.device, settings.heldout
    )
    if init is not None:
        assert isinstance(task.learner, GeneratorObjective)
        task.init = _fingerprint(init.generator)
        if _start_from(init, task.learner, preset):
            grown_from = init
            config = replace(config, prior=init.config.prior, sampling=init.config.sampling)
    result = train(
        task,
        training,
        settings,
        folder,
        resume=resume,
        accelerator=accelerator,
        show_progress=show_progress,
    )
    if accelerator.is_main_process:
        learner = cast("GeneratorObjective", result.learner)
        # Its own encoder to the last bit: averaging makes 0 of -0, and files are shared.
        encoder = grown_from.encoder if grown_from else learner.encoder
        prior = grown_from.prior if grown_from else None
        trained = Pipeline(config, learner.generator, prior, encoder)
        trained.save_pretrained(Path(folder) / "model", overwrite=True)
    return result


def _weights_text(preset: Preset) -> str:
    """The weights as they enter a run's identity: one number where all are alike."""
    weights = group_weights(preset.generator, preset.kl_weight)
    return str(weights[0] if len(set(weights)) == 1 else weights)


def _start_from(init: Pipeline, learner: GeneratorObjective, preset: Preset) -> bool:
    """Take over `init`'s weights; whether T and encoder are now frozen, so that its prior fits."""
    grows = preset.generator.grows_from(init.config.generator)
    if not grows and init.config.generator != preset.generator:
        raise UserInputError(
            f"{init.name} has another architecture than preset {preset.name}, and is not what it "
            "grows from; use its own preset"
        )
    # Its groups are alive: a warm-up would only make them fill up and empty again.
    learner.warm_up = 0.0
    learner.encoder.load_state_dict(init.encoder.state_dict())
    if grows:
        learner.generator.grow_from(init.generator)
        learner.encoder.requires_grad_(False)
    else:
        learner.generator.load_state_dict(init.generator.state_dict())
    return grows


def _prior_objective(
    kind: Objective,
    generator: Generator,
    encoder: ImageEncoder,
    energy: JointEnergy,
    preset: Preset,
) -> PriorObjective:
    if kind == "score":
        if energy.config.parametrization != "log_snr":
            raise UserInputError(
                "objective 'score' needs energies at every noise level; "
                "use parametrization log_snr"
            )
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


def _warm_start(energy: JointEnergy, init: Pipeline, preset: Preset) -> None:
    """Take over the energies of `init`; symbols' outputs that it lacks stay at zero."""
    prior, same = init.prior, {"symbols": ()}
    if energy.config.parametrization == "log_snr":
        same |= {"levels": energy.config.levels}  # defined at every level, whichever are sampled
    if prior is None or replace(prior.config, **same) != replace(energy.config, **same):
        raise UserInputError(
            f"{init.name} has other energies than preset {preset.name}; start from its own preset"
        )
    known = prior.state_dict()
    if prior.config.symbols != energy.config.symbols:
        known = {k: v for k, v in known.items() if ".symbol_" not in k}
    energy.load_state_dict(known, strict=False)


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
    """
    with ExitStack() as lock:
        return _train_prior(
            lock,
            preset,
            model,
            images,
            Path(folder),
            objective,
            resume,
            init,
            accelerator,
            show_progress,
        )


def _train_prior(
    lock: ExitStack,
    preset: Preset,
    model: Pipeline,
    images: ImageDataset,
    folder: Path,
    objective: Objective,
    resume: bool,
    init: Pipeline | None,
    accelerator: Any,
    show_progress: bool,
) -> RunResult:
    """`train_prior`; `lock` is given that of the folder, which its caller releases."""
    require_choice("objective", objective, Objective)
    accelerator = accelerator or make_accelerator()
    settings, device = preset.prior_settings, accelerator.device
    training, validation = images.split(settings.validation)
    generator, encoder = model.generator.to(device), model.encoder.to(device)
    config = replace(
        model.config, name=preset.model_name, prior=preset.prior, sampling=sampling_for(preset)
    )
    torch.manual_seed(settings.seed)
    energy = new_prior(config)
    if init is not None:
        _warm_start(energy, init, preset)
    _channels_last(energy.to(device))
    learned = _prior_objective(objective, generator, encoder, energy, preset)
    make_run_folder(folder)
    lock.enter_context(locked(folder, accelerator.is_main_process))
    # Without a checkpoint, what lies there is an abandoned start's, maybe with another generator.
    if accelerator.is_main_process and latest_checkpoint(folder) is None:
        Pipeline(replace(config, prior=None), generator, None, encoder).save_pretrained(
            folder / "generator", overwrite=True
        )

    def preview(learner: nn.Module) -> Tensor:
        pipe = Pipeline(config, generator, cast("JointEnergy", learner), device=device)
        return pipe(PREVIEW, output_type="torch").images * 2 - 1

    chain = f" K={preset.chain_steps}" if objective == "mle" else ""
    identity = f"{training.identity} {objective}{chain} {_fingerprint(generator)}"
    columns = label_columns(preset, training)
    if columns:
        identity += f" {columns} {preset.symbol_weight} {preset.condition_share}"

    def evaluate(learner: nn.Module) -> dict[str, float]:
        judged = ScoreObjective(generator, encoder, cast("JointEnergy", learner))
        return _heldout(judged, validation, settings.heldout, device, {"drop": "heldout_gain"})

    prepare = None
    started = latest_checkpoint(folder) is not None
    if settings.encode_once and settings.zoom == 1 and resume == started:  # else it is refused
        prepare = _encoded(generator, encoder, training, Path(folder), accelerator, show_progress)
    # Maximum likelihood's loss tells energies apart from their own chains only.
    measured = evaluate if len(validation) and objective == "score" else None
    start = _fingerprint(init.prior) if init is not None and init.prior is not None else ""
    task = Task(
        "prior", learned, energy, config, preview, identity, columns, prepare, measured, start
    )
    result = train(
        task,
        training,
        settings,
        folder,
        resume=resume,
        accelerator=accelerator,
        show_progress=show_progress,
    )
    if accelerator.is_main_process:
        prior = cast("JointEnergy", result.learner)
        trained = Pipeline(config, generator, prior, encoder)
        trained.save_pretrained(folder / "model", overwrite=True)
        remove_encoded(Path(folder))
    return result


def _encoded(
    generator: Generator,
    encoder: ImageEncoder,
    images: ImageDataset,
    folder: Path,
    accelerator: Any,
    show_progress: bool,
) -> EncodedImages | None:
    """The encoder's maps of the training images; None where the disk has no room for them. The
    first process makes them, the others wait.
    """
    main, found = accelerator.is_main_process, None
    for turn in (True, False):
        if main is turn:
            found = encode_images(
                encoder,
                images,
                folder,
                accelerator.device,
                key=_fingerprint(generator) + _fingerprint(encoder),
                build=main,
                progress=show_progress and main,
            )
        accelerator.wait_for_everyone()
    if found is None and main:
        warnings.warn(
            f"{folder} has no room for the encoder's maps of all images; each step makes them",
            stacklevel=2,
        )
    return found


def sampling_for(preset: Preset) -> LangevinConfig:
    """The preset's sampler, with what the release's parametrisation cannot do switched off."""
    if preset.prior.parametrization == "log_snr":
        return preset.sampling
    return replace(
        preset.sampling,
        sampler="recovery",
        kernel="plain",
        start="u_next",
        denoise=False,
        step_scale=1.0,
    )


def _fingerprint(module: nn.Module) -> str:
    """A short digest of a module's weights, to notice that a resumed run has another generator."""
    total = sum(float(p.double().abs().sum()) for p in module.parameters())
    return f"{total:.10e}"
