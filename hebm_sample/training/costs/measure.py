"""A step counted without numbers, and made for real and timed.

Counting walks through a step of the whole micro-batch on torch's device "meta". The sharp decoder,
which cuts random squares, is counted on the device itself with a few images, and followed in
proportion.

Timing begins with a few images and goes on with more, up to the run's own batch, cut and divided
as the run would, as long as a step is short and memory is free: the last batch is what tells.
"""

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hebm_sample.pipeline.runtime.batch_size import free_bytes
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.costs.flops import Meter
from hebm_sample.training.decoding.objective import DecoderObjective
from hebm_sample.training.devices import computing, parts_of
from hebm_sample.training.energy import MleObjective, PriorObjective
from hebm_sample.training.optim import Part, Threads, averaged, make_optimizer, train_step

__all__ = ["Batch", "Costs", "measure"]

FIRST_BATCH = {"cpu": 1, "cuda": 8}
MORE = 4  # times as many images in the next batch
ENOUGH = 0.5  # seconds of a step after which no larger batch is timed
TIMED_STEPS = 3  # the first warms up
COUNTED_IMAGES = 4  # of a step that cannot be walked through without numbers
PROBE_CHAINS = (1, 3)

Batch = tuple[Tensor, Tensor | None]


class Costs(NamedTuple):
    """Of a step: FLOPs of the whole batch; most bytes of activations, of a micro-batch; seconds of
    forward and backward and of the update, of the timed batch; and its images, 0 if unknown.
    """

    flops: float
    activations: float
    seconds: float
    update: float
    timed_batch: int = 0


def measure(
    objective: nn.Module,
    learner: nn.Module,
    settings: TrainSettings,
    device: torch.device,
    noise: Callable[[int], Batch],
) -> Costs:
    """What a step of a run costs.

    Arguments:
        objective: On the device.
        learner: The part of it that learns.
        noise: So many images, and labels if the objective wants them.
    """

    def costs() -> Costs:
        flops, held = _counted(objective, settings, device, noise)
        return Costs(flops, held, *_timed(objective, learner, settings, device, noise, held))

    return _with_chain(objective, costs) if isinstance(objective, MleObjective) else costs()


def _counted(
    objective: nn.Module,
    settings: TrainSettings,
    device: torch.device,
    noise: Callable[[int], Batch],
) -> tuple[float, float]:
    """FLOPs of a batch, forward and backward, and the most bytes of activations of a micro-batch
    that are alive at once.
    """
    micro = settings.micro_batch
    if isinstance(objective, DecoderObjective):
        few = min(COUNTED_IMAGES, micro)
        flops, held = _counted_decoder(objective, noise(few)[0].to(device))
        return flops * settings.batch_size / few, held * micro / few
    shadow = copy.deepcopy(objective).to("meta")
    for p in (p for p in shadow.parameters() if p.requires_grad):
        p.grad = torch.empty_like(p)
    images, labels = (None if x is None else x.to("meta") for x in noise(micro))
    inputs = (images, 0.5) if labels is None else (images, 0.5, labels)
    with Meter(shadow) as meter:
        shadow(*inputs)[0].backward()
    return settings.accumulate * meter.flops, meter.peak_bytes


def _counted_decoder(objective: DecoderObjective, images: Tensor) -> tuple[float, float]:
    learned = list(objective.learner.parameters())
    with Meter(objective) as meter:
        objective.differentiate(Part(images), 0.5, learned)
    return meter.flops, meter.peak_bytes


def _batches(settings: TrainSettings, device: torch.device, held: float) -> Iterator[int]:
    """Sizes of batches to time, one after another, that fit into half of the free memory."""
    batch, micro = settings.batch_size, settings.micro_batch
    size = min(FIRST_BATCH.get(device.type, 1), micro)
    yield size
    while size < batch:
        size = batch if size == micro else min(MORE * size, micro)
        if held * min(size, micro) / micro > free_bytes(device) / 2:
            return
        yield size


def _timed(
    objective: nn.Module,
    learner: nn.Module,
    settings: TrainSettings,
    device: torch.device,
    noise: Callable[[int], Batch],
    held: float,
) -> tuple[float, float, int]:
    """Seconds of forward and backward, and of the update, of the largest batch that is timed; and
    its images.
    """
    seconds, update, timed = 0.0, 0.0, 0
    for size in _batches(settings, device, held):
        seconds, update = _step(objective, learner, settings, device, noise(size))
        timed = size
        if seconds > ENOUGH:
            break
    return seconds, update, timed


def _step(
    objective: nn.Module,
    learner: nn.Module,
    settings: TrainSettings,
    device: torch.device,
    batch: Batch,
) -> tuple[float, float]:
    """Seconds of forward and backward, and of the update, of the fastest step after the first."""
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer, average = make_optimizer(learner, settings), averaged(learner, 0.999)
    size = len(batch[0])
    whole = size == settings.batch_size
    count, accumulate = (parts_of(settings, device), settings.accumulate) if whole else (1, 1)
    parts = list(Part(*_given(objective, settings, batch, device)).divided(count))
    found: list[tuple[float, float]] = []
    with Threads(count) as threads:
        for _ in range(TIMED_STEPS):
            start = _clock(device)
            train_step(
                objective,
                parts,
                0.5,
                optimizer,
                parameters,
                settings.gradient_clip,
                threads=threads,
                accumulate=accumulate,
                context=computing(objective, settings, device),
            )
            average.update_parameters(learner)
            done = _clock(device)
            optimizer.step()
            average.update_parameters(learner)
            update = _clock(device) - done
            found.append((max(done - start - update, 0.0), update))
    return min(found[1:], key=sum)


def _given(
    objective: nn.Module, settings: TrainSettings, batch: Batch, device: torch.device
) -> tuple[Any, Tensor | None]:
    """What the run gives the objective: images, or their maps where they are encoded once."""
    images, labels = (None if x is None else x.to(device) for x in batch)
    if isinstance(objective, PriorObjective) and settings.encode_once and settings.zoom == 1:
        with torch.no_grad():
            return objective.encoder.features(cast("Tensor", images)), labels
    return images, labels


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _with_chain(objective: MleObjective, costs: Callable[[], Costs]) -> Costs:
    """Two short chains measured, and the line through them followed to K."""
    wanted, found = objective.chain_steps, []
    for steps in PROBE_CHAINS:
        objective.chain_steps = steps
        found.append(costs())
    objective.chain_steps = wanted
    low, high = found
    times = (wanted - PROBE_CHAINS[0]) / (PROBE_CHAINS[1] - PROBE_CHAINS[0])
    per_image = [c.seconds / c.timed_batch for c in found]
    seconds = per_image[0] + times * max(0.0, per_image[1] - per_image[0])
    return Costs(
        flops=low.flops + times * (high.flops - low.flops),
        activations=max(low.activations, high.activations),
        seconds=high.timed_batch * seconds,
        update=min(low.update, high.update),
        timed_batch=high.timed_batch,
    )
