"""From pictures to a trained model: build the task, run the loop, write the folder that `Pipeline` loads."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hebm_sample.config import ModelConfig
from hebm_sample.generator.encoder import Encoder, encode
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.training.data import Pictures
from hebm_sample.training.generator import GeneratorObjective, standard_normal
from hebm_sample.training.loop import RunResult, Task, make_accelerator, train
from hebm_sample.training.presets import Preset

__all__ = ["generator_task", "train_generator"]

PREVIEW = 16


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its convolutions in channels-last memory, in which CPUs and GPUs run them fastest."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def generator_task(config: ModelConfig, validation: Pictures, identity: str, device: torch.device) -> Task:
    """Generator and encoder to learn; the grid shows held-out pictures, their reconstructions and N(0, I) samples."""
    objective = GeneratorObjective(HierarchicalGenerator(config.generator), Encoder(config.generator))
    channels_last(objective.to(device))

    @torch.no_grad()
    def preview(learner: nn.Module) -> Tensor:
        assert isinstance(learner, GeneratorObjective)
        count = min(PREVIEW, len(validation))
        images = validation.batch(torch.arange(count)).to(device)
        shapes = config.generator.latent_shapes
        posterior = encode(learner.generator, learner.encoder, images, standard_normal(shapes, count, device))
        recon = learner.generator.decode(posterior.top.features)
        prior = learner.generator(standard_normal(shapes, 2 * PREVIEW, device))
        return torch.cat([images, recon, prior])

    return Task("generator", objective, objective, config, preview, identity)


def train_generator(
    preset: Preset,
    pictures: Pictures,
    folder: str | Path,
    *,
    resume: bool = False,
    init: dict[str, nn.Module] | None = None,
    accelerator: Any = None,
    show_progress: bool = True,
) -> RunResult:
    """Train generator and encoder of `preset` in `folder`.

    Arguments:
        pictures: All rows; the settings' last `validation` rows are kept apart.
        init: "generator" and "encoder" to fine-tune from.
    """
    accelerator = accelerator or make_accelerator()
    settings = preset.generator_settings
    training, validation = pictures.split(settings.validation)
    torch.manual_seed(settings.seed)
    config = ModelConfig(name=preset.name, generator=preset.generator, sampling=preset.sampling)
    task = generator_task(config, validation, training.identity, accelerator.device)
    if init is not None:
        for name, module in init.items():
            getattr(task.learner, name).load_state_dict(module.state_dict())
    return train(
        task,
        training,
        settings,
        folder,
        resume=resume,
        accelerator=accelerator,
        show_progress=show_progress,
    )
