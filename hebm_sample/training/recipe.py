"""A model from nothing: generator, prior and sharp decoder, one run after another.

    OUT/1-generator-64 -> 2-prior-64 -> 3-decoder-64 [ -> 4-generator-256 -> 5-decoder-256 ]
    -> OUT/model [ with the crop of its data ] with its calibration -> OUT/evaluation.json

A preset that grows from another begins with all stages of that one. Each stage is a run in a
folder of its own, which goes on where it was interrupted; a stage whose model is there is done.
`OUT/recipe.json` holds what was asked for, so that another recipe is not mixed into it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hebm_sample.config import ModelConfig, require_range
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import Encoder
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.hub.manifest import MANIFEST_NAME
from hebm_sample.hub.save import check_new_model
from hebm_sample.io.files import parse_json, write_atomically
from hebm_sample.io.written import check_run_folder, is_run_folder, mark_run_folder
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.models import find_preset
from hebm_sample.presets.preset import Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.checkpoint import latest_checkpoint
from hebm_sample.training.decoding.train import train_decoder
from hebm_sample.training.devices import said_by_first
from hebm_sample.training.export import write_model
from hebm_sample.training.train import sampling_for, train_generator, train_prior

__all__ = ["Part", "Stage", "finish", "run_stage", "scaled", "smaller_model", "stages", "start"]

Part = Literal["generator", "prior", "decoder"]
PARTS: tuple[Part, ...] = ("generator", "prior", "decoder")
DESCRIPTION, MODEL = "recipe.json", "model"
_AS_IT_IS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Stage:
    """One run of a recipe.

    Arguments:
        part: What it trains.
        preset: With settings as they are run.
        folder: The run's.
        base: The run whose model it goes on from; None for the first.
    """

    part: Part
    preset: Preset
    folder: Path
    base: Path | None

    @property
    def settings(self) -> TrainSettings:
        """Of its run."""
        return getattr(self.preset, f"{self.part}_settings")

    @property
    def done(self) -> bool:
        """Whether its model is there."""
        return (self.folder / MODEL / MANIFEST_NAME).exists()

    @property
    def size(self) -> int:
        """Side of its images."""
        return self.preset.generator.image_size


def scaled(preset: Preset, scale: float) -> Preset:
    """The preset with its runs cut to a share of their steps, for a rehearsal.

    Arguments:
        scale: Of the steps and of the samples that the decoder sees, more than 0 to 1.
    """
    require_range("scale", scale, 1e-6, 1.0)

    def cut(settings: TrainSettings) -> TrainSettings:
        if settings.steps is None:
            raise UserInputError(f"preset {preset.name} has no steps, which a recipe needs")
        steps = max(1, round(settings.steps * scale))
        return replace(settings, steps=steps, heldout=max(1, round(settings.heldout * scale)))

    samples = -(-preset.decoder.samples * scale // 1)
    return replace(
        preset,
        generator_settings=cut(preset.generator_settings),
        prior_settings=cut(preset.prior_settings),
        decoder_settings=cut(preset.decoder_settings),
        decoder=replace(preset.decoder, samples=int(samples)),
    )


def _with(preset: Preset, how: Mapping[str, Any]) -> Preset:
    """The preset with these settings in all of its runs."""
    names = [f"{part}_settings" for part in PARTS]
    return replace(preset, **{name: replace(getattr(preset, name), **how) for name in names})


def stages(
    preset: Preset, out: Path, scale: float = 1.0, how: Mapping[str, Any] = _AS_IT_IS
) -> list[Stage]:
    """The runs that make a preset's model, in their order.

    Arguments:
        how: Settings of all runs that take the place of the preset's, such as `dtype`.
    """
    chain = [preset]
    while chain[0].grown_from:
        chain.insert(0, find_preset(chain[0].grown_from))
    found: list[Stage] = []
    for whole in chain:
        for part in PARTS:
            if whole.grown_from and part == "prior":
                continue  # it comes along with T and the encoder
            base = found[-1].folder if found else None
            folder = out / f"{len(found) + 1}-{part}-{whole.generator.image_size}"
            own = whole if scale == 1 else scaled(whole, scale)
            found.append(Stage(part, _with(own, how), folder, base))
    return found


def smaller_model(stage: Stage) -> Pipeline | None:
    """For a dry run: random weights of the shape that a stage's generator grows from; None where
    it grows from nothing.
    """
    if stage.part != "generator" or not stage.preset.grown_from:
        return None
    preset = find_preset(stage.preset.grown_from)
    config = ModelConfig(preset.model_name, preset.generator, sampling=preset.sampling)
    shape = preset.generator
    return Pipeline(config, HierarchicalGenerator(shape), None, Encoder(shape), device="cpu")


def start(
    out: Path, preset: Preset, scale: float, data: str, labels: Sequence[str] | None = None
) -> None:
    """Make the recipe's folder, or check that it is this recipe's.

    Arguments:
        data: The identity of the data (`ImageDataset.identity`).
        labels: Columns that become symbols, as they were asked for.

    Raises:
        UserInputError: The folder is that of another recipe, or holds files of others that a
            recipe would write over.
    """
    asked: dict[str, Any] = {"preset": preset.name, "scale": scale, "data": data}
    asked |= {"labels": list(labels)} if labels else {}
    path = out / DESCRIPTION
    known = _known(path)
    if known is None:
        check_run_folder(out)
    check_new_model(out / MODEL, overwrite=True)
    for stage in stages(preset, out, scale):
        check_run_folder(stage.folder)
    if known is not None:
        differing = [k for k in (*asked, *known.keys() - asked) if known.get(k) != asked.get(k)]
        if differing:
            were = ", ".join(f"{k} {known.get(k)!r}" for k in differing)
            raise UserInputError(
                f"{out} holds a recipe with other {', '.join(differing)} ({were}); go on with the "
                "same, or choose another folder"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    mark_run_folder(out)
    write_atomically(path, (json.dumps(asked, indent=2) + "\n").encode())


def _known(path: Path) -> dict[str, Any] | None:
    """What a recipe's folder was begun with; None where there is none, or no recipe's.

    Raises:
        UserInputError: It is damaged: any recipe would fit.
    """
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and {"preset", "scale", "data"} <= set(found):
        return found
    if path.exists() and is_run_folder(path.parent):
        raise UserInputError(
            f"{path} does not say what the recipe there was begun with; put it there again, or "
            "choose another folder"
        )
    return None


def finish(out: Path, model: Pipeline, preset: Preset) -> None:
    """Write the last stage's model to `OUT/model`, with the preset's sampler, whatever it was when
    the first stage began; where it is already, its settings, card, calibration and crop stay as
    they are.

    Raises:
        UserInputError: Another model is there.
    """
    place = out / MODEL
    if not (place / MANIFEST_NAME).exists():
        config = replace(model.config, sampling=sampling_for(preset))
        shown = Pipeline(config, model.generator, model.prior, model.encoder, device="cpu")
        write_model(place, shown, overwrite=True)
    elif Pipeline.from_pretrained(place, device="cpu").weights_hash != model.weights_hash:
        raise UserInputError(
            f"{place} holds another model than the one that the last stage has made in {out}; "
            "move it away and give the same line again"
        )


def run_stage(
    stage: Stage,
    images: ImageDataset,
    *,
    make_accelerator: Callable[[], Any],
    show_progress: bool = True,
) -> Pipeline:
    """Begin a stage, go on with it, or take what it has made; returns its model on the CPU.

    Arguments:
        images: All rows, of the stage's size.
        make_accelerator: accelerate's engine for its run.
    """
    accelerator = make_accelerator()
    # The first process's word: it may have ended the stage before another looks.
    if not said_by_first(accelerator, stage.done):
        how = {
            "resume": latest_checkpoint(stage.folder) is not None,
            "accelerator": accelerator,
            "show_progress": show_progress,
        }
        model = None if stage.base is None else _model(stage.base)
        if stage.part == "generator":
            train_generator(stage.preset, images, stage.folder, init=model, **how)
        elif stage.part == "prior":
            assert model is not None, "a prior has a generator"
            how |= {"objective": stage.preset.objective}
            train_prior(stage.preset, model, images, stage.folder, **how)
        else:
            assert model is not None, "a decoder has a generator"
            train_decoder(stage.preset, model, images, stage.folder, **how)
        accelerator.wait_for_everyone()  # until the first has written the model
    return _model(stage.folder)


def _model(run: Path) -> Pipeline:
    return Pipeline.from_pretrained(run / MODEL, device="cpu")
