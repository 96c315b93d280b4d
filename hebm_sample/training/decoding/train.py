"""The sharp image decoder's run: everything else of the model is frozen.

The run's folder holds the whole model that it began with (`generator/`, prior included) and
latents of its prior's samples (`samples.safetensors`), which half of the decoded images are made
of; so it goes on, and is exported, by itself. Its identity names them by their hash.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hebm_sample.config import GeneratorConfig, ModelConfig
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import TrainingDivergedError, UserInputError
from hebm_sample.generator.encoder import Encoder, encode
from hebm_sample.generator.hierarchy import (
    HierarchicalGenerator,
    ImageDecoder,
    sharp_decoder,
)
from hebm_sample.hub.weights import content_digest
from hebm_sample.io.bars import disabled
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.files import sha256_of, write_atomically
from hebm_sample.latents import Latents, concatenate
from hebm_sample.pipeline.identity import calibration_if_any
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.preset import DecoderPlan, Preset
from hebm_sample.training.checkpoint import (
    check_identity,
    check_start,
    latest_checkpoint,
    read_state,
)
from hebm_sample.training.decoding.objective import DecoderObjective, SharpDecoder, sharpness
from hebm_sample.training.devices import agreed, by_first
from hebm_sample.training.elbo import standard_normal
from hebm_sample.training.ending import check_model_place
from hebm_sample.training.heldout import BATCH, heldout_figures
from hebm_sample.training.lock import locked
from hebm_sample.training.record import same_rows
from hebm_sample.training.train import PREVIEW, channels_last, in_pieces
from hebm_sample.training.trainer import RunResult, Task, make_accelerator, make_run_folder, train

__all__ = ["Watch", "check_decoder", "new_learner", "train_decoder", "with_sharp_decoder"]

POOL = "samples.safetensors"
POOL_BATCH = 50
FIRST_IMAGES = 32  # that the error at the start is measured on


class Watch:
    """Ends a run that goes wrong, before what it has learned is saved.

    Arguments:
        least: The mean absolute error of reconstructions with the decoder it starts from, and
            then the least so far, which errors are compared with.
    """

    WORST_ERROR = 2.0  # times the least so far, and a grey level
    WIDEST_GAP = 25.0  # between the logits of images and of decoded ones
    STEEPEST = 1e6  # mean square of the discriminator's gradient, at images and at decoded ones

    def __init__(self, least: float) -> None:
        self.least = least

    def __call__(self, means: dict[str, Any]) -> None:
        """Look at the means of a log line.

        Raises:
            TrainingDivergedError: The decoder has lost the images, or the discriminator has run
                away.
        """
        if not means:
            return  # every step was skipped: those are counted (`NanGuard`)
        limit = self.WORST_ERROR * self.least + 2 / 255
        gap = means["logit_real"] - means["logit_fake"]
        slopes = [means["penalty"], means["penalty_fake"]]
        if not means["pixels"] <= limit:
            fault = (
                f"reconstructions are off by {means['pixels']:.3g}, and have been by "
                f"{self.least:.3g}"
            )
        elif not abs(gap) <= self.WIDEST_GAP or not all(s <= self.STEEPEST for s in slopes):
            fault = (
                f"the discriminator has run away (logits {gap:.3g} apart, gradients "
                f"{slopes[0]:.3g} and {slopes[1]:.3g})"
            )
        else:
            self.least = min(self.least, means["pixels"])
            return
        raise TrainingDivergedError(
            f"{fault}: the last good checkpoint is kept, and can be exported; go on from it in "
            "another folder (--generator RUN) with a lower --learning-rate, or another --set "
            "decoder.adversarial or decoder.penalty"
        )


def with_sharp_decoder(model: Pipeline, preset: Preset) -> ModelConfig:
    """The config of `model` with the sharp decoder that the preset names.

    Raises:
        UserInputError: A generator whose image decoder is not trained here.
    """
    described = model.config.generator
    if not isinstance(described, GeneratorConfig):
        raise UserInputError(
            f"{model.name} is an imported generator, whose image decoder is not trained further; "
            "give a model that hebm-train generator made"
        )
    stages = preset.decoder.stages
    described = replace(
        described,
        sharp_decoder=described.decoder if stages is None else stages,
        sharp_upsampling=preset.decoder.upsampling,
    )
    return replace(model.config, generator=described)


def check_patience(preset: Preset) -> None:
    """`UserInputError` for a decoder's run that is to end by a figure that it has not."""
    if patience := preset.decoder_settings.patience:
        raise UserInputError(
            f"patience is {patience}, but a sharp decoder has no held-out figure that says when "
            "to end; leave it out, and look at its images"
        )


def check_decoder(preset: Preset, model: Pipeline) -> ModelConfig:
    """Before the data are read: the config that the model will have; `UserInputError` for an
    imported generator, a model without an encoder, squares that no discriminator sees, or
    patience.
    """
    check_patience(preset)
    config = with_sharp_decoder(model, preset)
    assert isinstance(config.generator, GeneratorConfig)
    _seen_side(config.generator, preset.decoder)
    model.encoder  # noqa: B018  one line now if there is none
    return config


def _begin(config: GeneratorConfig, generator: HierarchicalGenerator) -> ImageDecoder:
    """A sharp decoder that draws what the one that there is draws, or the likelihood's, where it
    is as wide and deep or more, and upsamples alike: further channels and cells begin without a
    say in the image.
    """
    fresh, source = sharp_decoder(config), generator.sharp or generator.decoder
    known, own = source.state_dict(), fresh.state_dict()
    # A refinement that is new says nothing by itself: its head is zero.
    parts = ("stages.", "fine.") if source.fine is not None else ("stages.",)
    last = {k for k in own if k.startswith(parts) and ".expand." in k}
    fresh.load_state_dict({k: _grown(v, known.get(k), k in last) for k, v in own.items()})
    return fresh


def _grown(new: Tensor, old: Tensor | None, last: bool) -> Tensor:
    """A weight or bias that does with the old channels what `old` does; the untrained `new` where
    there is none, or it is larger.

    Arguments:
        last: Whether it is the last layer of a cell: one that has been added adds nothing to what
            runs past it.
    """
    if old is None:
        return torch.zeros_like(new) if last else new
    fits = all(n >= o for n, o in zip(new.shape, old.shape, strict=True))
    if not fits or new.shape[2:] != old.shape[2:]:
        return new
    grown = new.clone()
    grown[: len(old)] = 0.0  # nothing from new channels to old ones
    grown[tuple(map(slice, old.shape))] = old
    return grown


def new_learner(
    config: GeneratorConfig, generator: HierarchicalGenerator, plan: DecoderPlan
) -> SharpDecoder:
    """What a run begins with: the decoder that the generator has, widened and deepened to the
    stages of `config.sharp_decoder`, and an untrained discriminator.
    """
    decoder, side = _begin(config, generator), _seen_side(config, plan)
    return SharpDecoder(decoder, side, rate=plan.discriminator_rate)


def _latents_of_samples(model: Pipeline, count: int, folder: Path, progress: bool) -> Latents:
    """u of `count` samples of the model's prior, seeds 0 and on, kept in the run's folder; of one
    particle each, since the decoder learns from any that the energies could say.
    """
    path = folder / POOL
    if _is_damaged(path):
        warnings.warn(f"{path} is damaged and is made again", stacklevel=2)
        path.unlink()
    if not path.exists():
        found = []
        for start in tqdm(range(0, count, POOL_BATCH), "samples", disable=disabled(progress)):
            seeds = range(start, min(start + POOL_BATCH, count))
            drawn = model(seeds=seeds, particles=1, output_type="torch", progress=False)
            found.append(drawn.latents)
        whole = concatenate(found)
        named = {str(i): u.half().contiguous() for i, u in enumerate(whole)}
        write_atomically(path, safetensors.torch.save(named))
    named = safetensors.torch.load_file(path)
    return tuple(named[str(i)] for i in range(len(named)))


def _is_damaged(path: Path) -> bool:
    """Whether the samples are not those that the run's checkpoint names by their hash."""
    checkpoint = latest_checkpoint(path.parent) if path.exists() else None
    if checkpoint is None:
        return False
    return sha256_of(path) not in read_state(checkpoint)["identity"]["data"]


def _preview(
    generator: HierarchicalGenerator,
    encoder: Encoder,
    shown: ImageDataset,
    pool: Latents | None,
    device: torch.device,
    at_once: int,
) -> Callable[[nn.Module], Tensor]:
    """The first images of `shown`, their reconstructions by both decoders, samples by both; so
    many are decoded at a time.
    """
    with torch.no_grad():
        count = min(PREVIEW, len(shown))
        images = shown.batch(torch.arange(count)).to(device)
        noise = standard_normal(
            generator.latent_shapes, count, device, torch.Generator(device).manual_seed(0)
        )
        states = [encode(generator, encoder, images, noise).top.features]
        if pool is not None:
            u = tuple(g[:PREVIEW].to(device).float() for g in pool)
            states.append(generator.transform(u).features)

    @torch.no_grad()
    def preview(learner: nn.Module) -> Tensor:
        assert isinstance(learner, SharpDecoder)
        decoders = (generator.decode, learner.decoder)
        pairs = [
            in_pieces(lambda rows, decode=decode: decode(rows[0]), (h,), at_once)
            for h in states
            for decode in decoders
        ]
        return torch.cat([images, *pairs])

    return preview


class _Figures:
    """Of reconstructions of held-out images by a decoder: how far they are off, and how sharp."""

    def __init__(
        self,
        generator: HierarchicalGenerator,
        encoder: Encoder,
        images: ImageDataset,
        count: int,
        device: torch.device,
        at_once: int,
    ) -> None:
        self.generator, self.encoder, self.at_once = generator, encoder, at_once
        self.images, self.count, self.device = images, count, device

    def __call__(self, decoder: nn.Module) -> dict[str, float]:
        """The error |y - x| (mean absolute, 0 to 2) and the sharpness over that of the images."""

        def measure(
            x: Tensor, fraction: float, labels: None, stream: torch.Generator
        ) -> tuple[Tensor, dict[str, Tensor]]:
            noise = standard_normal(self.generator.latent_shapes, len(x), self.device, stream)
            y = decoder(encode(self.generator, self.encoder, x, noise).top.features)
            error = (y - x).abs().mean()
            return error, {"sharpness": sharpness(y) / sharpness(x)}

        names = {"sharpness": "heldout_sharpness"}
        found = heldout_figures(measure, self.images, self.count, self.device, names, self.at_once)
        found["heldout_pixels"] = found.pop("heldout_loss")
        return found


@usual_defaults()
def train_decoder(
    preset: Preset,
    model: Pipeline,
    images: ImageDataset,
    folder: str | Path,
    *,
    resume: bool = False,
    accelerator: Any = None,
    show_progress: bool = True,
) -> RunResult:
    """Train a sharp image decoder for `model` in `folder`; ends with a model in `folder/model`
    that has both decoders, with T, encoder and prior as they were.

    Arguments:
        preset: The decoder's plan and the run's settings.
        model: Generator and encoder, and a prior whose samples are decoded too, if it has one.
        images: All rows; those that the settings' `validation` says are kept apart.
        resume: Go on from the folder's newest whole checkpoint.
        accelerator: accelerate's engine; made if None.

    Raises:
        UserInputError: An imported generator, or a model without an encoder.
        TrainingDivergedError: As `Watch` and the training loop raise it.
    """
    folder, accelerator = Path(folder), accelerator or make_accelerator()
    config, settings = check_decoder(preset, model), agreed(preset.decoder_settings, accelerator)
    preset, ended = replace(preset, decoder_settings=settings), check_model_place(folder)
    check_start(folder, resume)
    sets = images.split(settings.validation)
    same_rows(model.name, model.config.training, sets[0])
    make_run_folder(folder)

    def begin() -> None:
        lock.enter_context(locked(folder))
        # Without a checkpoint, what lies there is an abandoned start's, maybe of another model.
        if latest_checkpoint(folder) is None:
            (folder / POOL).unlink(missing_ok=True)
            model.save_pretrained(folder / "generator", overwrite=True)

    with ExitStack() as lock:
        by_first(accelerator, begin)
        task = _task(preset, model, config, sets, folder, accelerator, show_progress)
        how = {"resume": resume, "accelerator": accelerator, "show_progress": show_progress}
        result = train(task, sets[0], settings, folder, **how)
        if not ended:
            by_first(accelerator, lambda: _write(result, model, config, folder / "model"))
        return result


def _write(result: RunResult, model: Pipeline, config: ModelConfig, folder: Path) -> None:
    """Write the model with what was learned."""
    learner = cast("SharpDecoder", result.learner)
    config = replace(config, training=(*config.training, result.record))
    sharpened(model, config, learner.decoder).save_pretrained(folder, overwrite=True)


def sharpened(model: Pipeline, config: ModelConfig, decoder: nn.Module) -> Pipeline:
    """`model` with `decoder` as its sharp one."""
    assert isinstance(config.generator, GeneratorConfig)
    generator = HierarchicalGenerator(config.generator)
    known = {k: v for k, v in model.generator.state_dict().items() if not k.startswith("sharp.")}
    sharp = {f"sharp.{k}": v for k, v in decoder.state_dict().items()}
    generator.load_state_dict(known | sharp)
    calibration = calibration_if_any(model.model)  # scores know nothing of a sharp decoder
    return Pipeline(config, generator, model.prior, model.encoder, calibration=calibration)


def _task(
    preset: Preset,
    model: Pipeline,
    config: ModelConfig,
    sets: tuple[ImageDataset, ImageDataset],
    folder: Path,
    accelerator: Any,
    show_progress: bool,
) -> Task:
    """What is learned, from training rows and those held out."""
    settings, plan, device = preset.decoder_settings, preset.decoder, accelerator.device
    training, validation = sets
    torch.manual_seed(settings.seed)
    model.to(device)  # with the prior, whose samples are drawn there
    generator, encoder = model.generator, model.encoder
    assert isinstance(generator, HierarchicalGenerator) and isinstance(encoder, Encoder)
    assert isinstance(config.generator, GeneratorConfig)
    prior = [] if model.prior is None else [model.prior]
    digest = content_digest(generator, encoder, *prior)
    before, after = f"{training.identity} decoder {digest}", str(plan.to_dict())
    _check_beginning(folder, before, after)  # before samples are drawn
    pool = _pool(model, plan, folder, accelerator, show_progress)
    learner = new_learner(config.generator, generator, plan)
    objective = DecoderObjective(generator, encoder, learner, plan, pool)
    channels_last(objective.to(device))
    options = {"device": device, "at_once": settings.at_once(BATCH)}
    start = _Figures(generator, encoder, training, FIRST_IMAGES, **options)(learner.decoder)
    figures = _Figures(generator, encoder, validation, settings.heldout, **options)
    shown = validation if len(validation) else training
    return Task(
        "decoder",
        objective,
        learner,
        config,
        _preview(generator, encoder, shown, pool, device, settings.at_once(PREVIEW)),
        " ".join([before, *_digest(folder, pool), after]),
        evaluate=(lambda m: figures(cast("Any", m).decoder)) if len(validation) else None,
        watch=Watch(start["heldout_pixels"]),
    )


def _check_beginning(folder: Path, before: str, after: str) -> None:
    """`UserInputError` if a run that is gone on with is of another kind, or its identity differs
    in what stands there before and after the samples' hash.
    """
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return
    found = read_state(checkpoint)["identity"]
    own = found["data"].startswith(before + " ") and found["data"].endswith(" " + after)
    wanted = found | {"kind": "decoder"} | ({} if own else {"data": before})
    check_identity(folder, found, wanted, {})


def _pool(
    model: Pipeline, plan: DecoderPlan, folder: Path, accelerator: Any, show_progress: bool
) -> Latents | None:
    """Latents of samples; None without any. The first process makes them, the others wait."""
    if model.prior is None or plan.samples == 0:
        return None

    def pool() -> Latents:
        return _latents_of_samples(model, plan.samples, folder, show_progress)

    found = by_first(accelerator, pool)
    return pool() if found is None else found


def _digest(folder: Path, pool: Latents | None) -> Sequence[str]:
    return [] if pool is None else [sha256_of(folder / POOL)]


def _seen_side(config: GeneratorConfig, plan: DecoderPlan) -> int:
    """Side of what the discriminator sees, in pixels; `UserInputError` if it can see no such
    side, or the plan's blur is too wide for it.
    """
    positions = config.scales[-1].resolution
    scale = config.image_size // positions
    side = scale * min(plan.square or positions, positions)
    if side < 16 or not math.log2(side / 8).is_integer():
        raise UserInputError(
            f"decoder.square is {plan.square}: squares of {side} pixels; the discriminator sees "
            "16, 32, 64, ... pixels on a side"
        )
    if 3 * plan.blur > side - 1:
        raise UserInputError(
            f"decoder.blur is {plan.blur:g} pixels; on {side} pixels it can be 0 to "
            f"{(side - 1) / 3:.3g}"
        )
    return side
