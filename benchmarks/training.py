r"""Pictures a second of training: generator, prior by score matching, prior by the paper's maximum
likelihood.

    ours     convolutions channels last, pictures from the cache of decoded bytes
    plain    the same steps in PyTorch's default memory layout, each batch decoded from JPEG files
    decoding, layout    ours with one of the two as in plain

A step is all that a run does for a batch: pictures, forward, backward, clipping, AdamW, averaged
weights. Networks are fresh and pictures made up, since neither changes the time. Variants take
turns, medians are compared.
"""

import io
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hebm_sample import __version__
from hebm_sample.config import ModelConfig
from hebm_sample.generator.encoder import Encoder
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.hub.load import new_prior
from hebm_sample.pipeline.runtime.malloc import keep_freed_memory
from hebm_sample.presets.models import PRESETS
from hebm_sample.training.elbo import GeneratorObjective
from hebm_sample.training.energy import MleObjective, ScoreObjective
from hebm_sample.training.optim import Part, averaged, make_optimizer, train_step

# name: channels last, decoded beforehand
VARIANTS = {
    "ours": (True, True),
    "layout": (False, True),
    "decoding": (True, False),
    "plain": (False, False),
}
TASKS = ("generator", "score", "mle")
Batch = Callable[[], Tensor]


def files(count: int, side: int) -> list[bytes]:
    """Smooth made-up pictures as JPEG files."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def decoded(file: bytes, size: int) -> np.ndarray:
    """uint8 (3, S, S)."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1)


def batches(sources: list[bytes], size: int, batch: int, cached: bool) -> Batch:
    """Random pictures (B, 3, S, S) in [-1, 1]."""
    rng = np.random.default_rng(0)
    store = np.stack([decoded(file, size) for file in sources]) if cached else None

    def draw() -> Tensor:
        rows = rng.integers(0, len(sources), batch)
        if store is not None:
            pictures = store[rows]
        else:
            pictures = np.stack([decoded(sources[i], size) for i in rows])
        return torch.from_numpy(pictures).float() / 127.5 - 1

    return draw


def objective_of(task: str, preset: Any) -> tuple[nn.Module, nn.Module]:
    """A fresh objective, and the part of it that learns."""
    torch.manual_seed(0)
    config = ModelConfig(preset.model_name, preset.generator, preset.prior)
    generator, encoder = HierarchicalGenerator(config.generator), Encoder(config.generator)
    if task == "generator":
        both = GeneratorObjective(generator, encoder, preset.kl_weight)
        return both, both
    generator.requires_grad_(False)
    encoder.requires_grad_(False)
    energy = new_prior(config)
    if task == "score":
        return ScoreObjective(generator, encoder, energy), energy
    return MleObjective(generator, encoder, energy, chain_steps=preset.chain_steps), energy


def step_of(task: str, preset: Any, settings: Any, draw: Batch, last: bool) -> Callable[[], None]:
    """One training step of a variant, as a call."""
    objective, learner = objective_of(task, preset)
    if last:
        objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    ema, optimizer = averaged(learner, settings.ema_decay), make_optimizer(learner, settings)
    parameters = [p for p in learner.parameters() if p.requires_grad]

    def step() -> None:
        clip = settings.gradient_clip
        train_step(objective, [Part(draw())], 0.5, optimizer, parameters, clip)
        ema.update_parameters(learner)

    return step


def measure(preset: Any, tasks: list[str], repeats: int, side: int, clock: Any) -> dict[str, Any]:
    """Median seconds a step of each variant, by task."""
    found: dict[str, Any] = {}
    size, sources = preset.generator.image_size, files(256, side)
    for task in tasks:
        settings = preset.generator_settings if task == "generator" else preset.prior_settings
        draws = {
            cached: batches(sources, size, settings.batch_size, cached) for cached in (True, False)
        }
        calls = {
            name: step_of(task, preset, settings, draws[cached], last)
            for name, (last, cached) in VARIANTS.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(repeats + 1):
            click.echo(f"\r{task}: {turn}/{repeats} ", nl=turn == repeats, err=True)
            for name, call in calls.items():
                start = clock()
                call()
                if turn:
                    seconds[name].append(clock() - start)
        found[task] = {"batch": settings.batch_size} | {
            name: statistics.median(spent) for name, spent in seconds.items()
        }
    return found


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    machine = result["machine"]
    lines = [
        f"preset {machine['preset']}, {machine['threads']} threads of {machine['cores']} cores, "
        f"torch {machine['torch']}, hebm_sample {machine['version']}, {machine['clock']} time, "
        f"freed memory {'kept' if machine['kept'] else 'as the system has it'}",
        "",
        f"{'task':<12}{'batch':>6} {'variant':<10}{'ms':>9}{'pictures/s':>12}{'x plain':>9}",
    ]
    for task, row in result["tasks"].items():
        for name in VARIANTS:
            lines.append(
                f"{task:<12}{row['batch']:>6} {name:<10}{1e3 * row[name]:9.1f}"
                f"{row['batch'] / row[name]:12.1f}{row[name] / row['plain']:9.2f}"
            )
    return "\n".join(lines)


@click.command()
@click.option(
    "--preset", type=click.Choice(sorted(PRESETS)), default="celeba64", show_default=True
)
@click.option("--task", "tasks", type=click.Choice(TASKS), multiple=True, default=TASKS)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--source-side", type=click.IntRange(8), default=178, show_default=True)
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True)
@click.option("--default-heap", is_flag=True, help="Leave freed memory to the system.")
@click.option("--out", type=click.Path(path_type=Path), help="Write JSON there.")
def main(
    preset: str,
    tasks: tuple[str, ...],
    repeats: int,
    source_side: int,
    clock: str,
    default_heap: bool,
    out: Path | None,
) -> None:
    """Measure training steps. --clock cpu needs OMP_NUM_THREADS=1."""
    if clock == "cpu" and torch.get_num_threads() > 1:
        raise click.UsageError("--clock cpu needs OMP_NUM_THREADS=1")
    kept = not default_heap and keep_freed_memory()
    read = time.perf_counter if clock == "wall" else time.thread_time
    result = {
        "tasks": measure(PRESETS[preset], list(tasks), repeats, source_side, read),
        "machine": {
            "preset": preset,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "version": __version__,
            "clock": clock,
            "kept": kept,
        },
    }
    click.echo(table(result))
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
