r"""Images per second of training: generator, prior by score matching, prior by the paper's maximum
likelihood.

    ours     what `hebm-train` does: parts of a batch in threads of their own, gradients of what
             learns alone, the encoder's maps of the images computed beforehand, freed memory kept,
             convolutions of score matching that are made to be differentiated twice
    bfloat16 `ours` with `--dtype bfloat16`
    compiled `ours` with `--dtype bfloat16 --compile`; compiling takes minutes and is not counted
    before   the same networks as one batch with all threads in each operation, `backward` through
             the noisy latents too, every image encoded at each step, memory given back to the
             system: how training worked until parts came
    plain    `before` in PyTorch's default memory layout, each batch decoded from JPEG files

A step is all that a run does for a batch: images, forward, backward, clipping, AdamW, averaged
weights. Networks are fresh and images made up, since neither changes the time. Each variant has a
process of its own, because memory and threads are set for a whole process; they take turns, and
medians over all turns are compared.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
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
from hebm_sample.pipeline.runtime.process import tune_process
from hebm_sample.presets.models import PRESETS
from hebm_sample.training.devices import compile_parts, computing, parts_of
from hebm_sample.training.elbo import GeneratorObjective
from hebm_sample.training.energy import MleObjective, ScoreObjective
from hebm_sample.training.optim import Part, Threads, averaged, make_optimizer, train_step

CPU = torch.device("cpu")
VARIANTS = ("before", "ours", "plain", "bfloat16", "compiled")
LOWER = {"bfloat16": {"dtype": "bfloat16"}, "compiled": {"dtype": "bfloat16", "compile": True}}
TASKS = ("generator", "score", "mle")
SOURCES = 256  # made-up images


def files(side: int) -> list[bytes]:
    """Smooth made-up images as JPEG files."""
    rng, found = np.random.default_rng(0), []
    for _ in range(SOURCES):
        small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def decoded(file: bytes, size: int) -> np.ndarray:
    """uint8 (3, S, S)."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1)


def loader(size: int, side: int, cached: bool) -> Callable[[int], Tensor]:
    """A count to so many random images (B, 3, S, S) in [-1, 1]."""
    rng, sources = np.random.default_rng(0), files(side)
    store = np.stack([decoded(file, size) for file in sources]) if cached else None

    def draw(count: int) -> Tensor:
        rows = rng.integers(0, SOURCES, count)
        images = store[rows] if store is not None else None
        if images is None:
            images = np.stack([decoded(sources[i], size) for i in rows])
        return torch.from_numpy(images).float() / 127.5 - 1

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


def step_of(task: str, preset: Any, settings: Any, variant: str, side: int) -> Callable[[], None]:
    """One training step of a variant, as a call."""
    objective, learner = objective_of(task, preset)
    ours = variant == "ours" or variant in LOWER
    draw = loader(preset.generator.image_size, side, variant != "plain")
    if ours and settings.compile:
        compile_parts(objective)
    if variant != "plain":
        objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    ema, optimizer = averaged(learner, settings.ema_decay), make_optimizer(learner, settings)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    count = parts_of(settings, torch.device("cpu")) if ours else 1
    threads, batch = Threads(count), settings.batch_size // count
    maps: dict[int, Tensor] = {}
    if ours and task != "generator":
        with torch.no_grad():
            maps = objective.encoder.features(draw(SOURCES))  # pyright: ignore
    rng = np.random.default_rng(1)

    def inputs() -> Any:
        if not maps:
            return draw(batch)
        rows = torch.from_numpy(rng.integers(0, SOURCES, batch))
        return {side: part[rows] for side, part in maps.items()}

    def step() -> None:
        if ours:
            parts = [Part(inputs()) for _ in range(count)]
            train_step(
                objective,
                parts,
                0.5,
                optimizer,
                parameters,
                1.0,
                threads=threads,
                context=computing(objective, settings, CPU),
            )
        else:
            optimizer.zero_grad(set_to_none=True)
            objective(inputs(), 0.5)[0].backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        ema.update_parameters(learner)

    return step


def settings_of(task: str, preset: Any, variant: str = "ours") -> Any:
    """Of the run that the task is a step of."""
    found = preset.generator_settings if task == "generator" else preset.prior_settings
    return replace(found, **LOWER.get(variant, {}))


def measure(task: str, preset: Any, variant: str, repeats: int, side: int) -> list[float]:
    """Seconds of each step, after two that warm up."""
    if variant == "ours" or variant in LOWER:
        tune_process(training=True)
    step, seconds = step_of(task, preset, settings_of(task, preset, variant), variant, side), []
    for turn in range(repeats + 2):
        start = time.perf_counter()
        step()
        if turn > 1:
            seconds.append(time.perf_counter() - start)
    return seconds


def compared(
    preset: str,
    tasks: tuple[str, ...],
    variants: tuple[str, ...],
    repeats: int,
    rounds: int,
    side: int,
) -> Any:
    """Median seconds per step of each variant, by task; a process a variant and round."""
    found: dict[str, Any] = {}
    for task in tasks:
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(rounds):
            for name in variants:
                click.echo(f"\r{task}: {turn + 1}/{rounds} {name:8}", nl=False, err=True)
                command = [sys.executable, __file__, "--preset", preset, "--task", task]
                command += ["--repeats", str(repeats), "--source-side", str(side), "--only", name]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                seconds[name] += json.loads(done.stdout)
        click.echo("", err=True)
        found[task] = {"batch": settings_of(task, PRESETS[preset]).batch_size} | {
            name: statistics.median(spent) for name, spent in seconds.items()
        }
    return found


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    machine = result["machine"]
    lines = [
        f"preset {machine['preset']}, {machine['threads']} threads of {machine['cores']} cores, "
        f"torch {machine['torch']}, hebm_sample {machine['version']}",
        "",
        f"{'task':<12}{'batch':>6} {'variant':<10}{'ms':>9}{'images/s':>12}{'x first':>9}",
    ]
    for task, row in result["tasks"].items():
        first = next(name for name in row if name != "batch")
        lines += [
            f"{task:<12}{row['batch']:>6} {name:<10}{1e3 * seconds:9.1f}"
            f"{row['batch'] / seconds:12.1f}{row[first] / seconds:9.2f}"
            for name, seconds in row.items()
            if name != "batch"
        ]
    return "\n".join(lines)


@click.command()
@click.option(
    "--preset", type=click.Choice(sorted(PRESETS)), default="celeba64", show_default=True
)
@click.option("--task", "tasks", type=click.Choice(TASKS), multiple=True, default=TASKS)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--source-side", type=click.IntRange(8), default=178, show_default=True)
@click.option(
    "--variant",
    "variants",
    type=click.Choice(VARIANTS),
    multiple=True,
    default=VARIANTS[:3],
    show_default=True,
    help="Speeds are compared with the first one's.",
)
@click.option("--only", type=click.Choice(VARIANTS), help="Seconds of this one, as JSON.")
@click.option("--out", type=click.Path(path_type=Path), help="Write JSON there.")
def main(
    preset: str,
    tasks: tuple[str, ...],
    variants: tuple[str, ...],
    repeats: int,
    rounds: int,
    source_side: int,
    only: str | None,
    out: Path | None,
) -> None:
    """Measure training steps."""
    if only is not None:
        click.echo(json.dumps(measure(tasks[0], PRESETS[preset], only, repeats, source_side)))
        return
    result = {
        "tasks": compared(preset, tasks, variants, repeats, rounds, source_side),
        "machine": {
            "preset": preset,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "version": __version__,
        },
    }
    click.echo(table(result))
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
