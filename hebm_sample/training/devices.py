"""What a run computes on: accelerate's engine, number formats, micro-batches, recomputation.

    accelerate launch --mixed_precision bf16 --gradient_accumulation_steps k
                    means    --dtype bfloat16 --accumulate k

Activation checkpointing, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), keeps
the states between T's groups alone and computes what lies inside a group again on the way back.
Mixed precision keeps weights, optimiser and average in float32, "Mixed Precision Training" (arXiv
1710.03740); bfloat16 has the range of float32, so that losses need no scaling.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.generator.protocol import Generator
from hebm_sample.io.extras import missing_extra
from hebm_sample.pipeline.device import pick_device
from hebm_sample.pipeline.runtime.compiled import compiled
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.convolution.autograd import TrainingConvolutions

__all__ = [
    "agreed",
    "averaged_over_processes",
    "by_first",
    "checkpointing",
    "compile_parts",
    "computing",
    "make_accelerator",
    "parts_of",
    "said_by_first",
    "time_a_step",
]

ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
# What one process does alone, such as encoding all images, takes longer than the minutes that
# process groups wait by themselves.
LONGEST_WAIT = timedelta(hours=6)
FEWEST_ROWS = 16  # of a part that is worth a thread of its own
PROBE_STEPS = 6
MOST_TEXT = 500  # characters of another process's failure

_A = TypeVar("_A")


def make_accelerator(device: str = "auto") -> Any:
    """accelerate's engine.

    Raises `EnvironmentFailure` where accelerate is not installed or there is no such device, and
    `UserInputError` where its settings ask for what training does not do.
    """
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise missing_extra("accelerate", "train") from error
    pick_device(device)  # accelerate would train on the CPU where there is no such device
    steps = os.environ.get(ACCUMULATION, "1")
    if not (steps.isascii() and steps.isdecimal() and int(steps)):
        raise UserInputError(
            f"{ACCUMULATION} is {steps[:40]!r}; set it to a whole number from 1 on, or unset it"
        )
    waiting = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    try:
        accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[waiting])
    except ValueError as error:
        reason = " ".join(str(error).split())[:MOST_TEXT]
        raise UserInputError(
            f"accelerate does not take its settings: {reason}; see accelerate config, and the "
            "environment's ACCELERATE_ variables"
        ) from error
    if (precision := accelerator.mixed_precision) not in ("no", "bf16"):
        raise UserInputError(
            f"accelerate is set to mixed precision {precision!r}, which training does not do; set "
            "mixed_precision to no or bf16"
        )
    return accelerator


def agreed(
    settings: TrainSettings, accelerator: Any, typed: Collection[str] = ()
) -> TrainSettings:
    """The settings with what accelerate was told about number format and accumulation.

    Arguments:
        typed: Names of settings that were asked for, where their defaults are not to give way.

    Raises `UserInputError` where the two name different numbers of micro-batches or formats, or
    the batch cannot be divided into them.
    """
    count = accelerator.gradient_accumulation_steps
    open_to_change = (count,) if "accumulate" in typed else (1, count)
    if count != 1 and settings.accumulate not in open_to_change:
        raise UserInputError(
            f"accelerate is set to {count} gradient_accumulation_steps, and accumulate is "
            f"{settings.accumulate}; leave one of them out"
        )
    if count != 1:
        settings = replace(settings, accumulate=count)
    if accelerator.mixed_precision == "bf16":
        if "dtype" in typed and settings.dtype != "bfloat16":
            raise UserInputError(
                f"accelerate is set to mixed precision bf16, and dtype is {settings.dtype}; "
                "leave one of them out"
            )
        settings = replace(settings, dtype="bfloat16")
    return settings


def by_first(accelerator: Any, work: Callable[[], _A]) -> _A | None:
    """What the first process does alone, while the others, which call this too, wait; None in
    those. If it fails, all fail, and no process waits for one that has ended.

    Raises what `work` raises, and `EnvironmentFailure` in the others.
    """
    if accelerator.num_processes == 1:
        return work() if accelerator.is_main_process else None
    found, failure = None, None
    if accelerator.is_main_process:
        try:
            found = work()
        except Exception as error:  # whichever it is, the others are told
            failure = error
    if not said_by_first(accelerator, failure is not None):
        return found
    from accelerate.utils import broadcast_object_list

    text = [f"{type(failure).__name__}: {failure}"]
    broadcast_object_list(text)
    if failure is not None:
        raise failure
    reason = " ".join(text[0].split())[:MOST_TEXT]
    raise EnvironmentFailure(f"the first process could not go on ({reason})")


def said_by_first(accelerator: Any, value: bool) -> bool:
    """The first process's value, in all of them, which call this together."""
    if accelerator.num_processes == 1:
        return value
    own = float(value and accelerator.is_main_process)
    total = accelerator.reduce(torch.tensor(own, device=accelerator.device), "sum")
    return bool(total > 0)


def number_of_first(accelerator: Any, value: int) -> int:
    """The first process's number, in all of them, which call this together: threads differ
    between machines.
    """
    if accelerator.num_processes == 1:
        return value
    own = value if accelerator.is_main_process else 0
    total = accelerator.reduce(torch.tensor(float(own), device=accelerator.device), "sum")
    return int(total)


def computing(
    objective: nn.Module, settings: TrainSettings, device: torch.device
) -> Callable[[], AbstractContextManager[Any]]:
    """What the objective is called in: autocast; on CPUs, if its loss holds a gradient
    (`second_derivatives`), convolutions that are made for that; or nothing.
    """
    if settings.dtype != "float32" or settings.compile:
        # Uncached: a weight that was cast where nothing is differentiated has no gradient later.
        lower = settings.dtype != "float32"
        return lambda: torch.autocast(
            device.type, torch.bfloat16, enabled=lower, cache_enabled=False
        )
    twice = getattr(objective, "second_derivatives", False)
    # What is computed again is computed on the way back, outside of this context.
    if twice and device.type == "cpu" and not settings.activation_checkpointing:
        return TrainingConvolutions
    return nullcontext


def time_a_step(
    run_step: Callable[[int], object], synchronize: Callable[[], None], rewind: Callable[[], None]
) -> float:
    """Seconds of a step: the mean of the last four of six trial steps, undone afterwards."""
    for i in range(2):
        run_step(i)
    synchronize()
    start = time.perf_counter()
    for i in range(2, PROBE_STEPS):
        run_step(i)
    synchronize()
    seconds = (time.perf_counter() - start) / (PROBE_STEPS - 2)
    rewind()
    return seconds


def parts_of(settings: TrainSettings, device: torch.device) -> int:
    """Into how many parts a batch is best cut here: as many as a CPU has threads."""
    batch, micro = settings.batch_size, settings.accumulate
    most = torch.get_num_threads() if device.type == "cpu" else 1
    whole = [n for n in range(2, most + 1) if batch % (n * micro) == 0]
    return max([1, *(n for n in whole if batch // n >= FEWEST_ROWS)])


def compile_parts(objective: Any) -> bool:
    """Compiles the methods of an objective that hold neither draws nor branches; whether it has
    any.
    """
    names = getattr(objective, "compilable", ())
    for name in names:
        setattr(objective, name, compiled(getattr(objective, name), "train without --compile"))
    return bool(names)


@contextmanager
def checkpointing(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Every generator in `module` keeps only the states between its groups, if `wanted`."""
    generators = [m for m in module.modules() if isinstance(m, Generator)]
    for generator in generators:
        generator.checkpointing = wanted
    try:
        yield
    finally:
        for generator in generators:
            generator.checkpointing = False


def averaged_over_processes(means: dict[str, Any], accelerator: Any) -> dict[str, Any]:
    """Numbers and lists of numbers by name, as their means over all processes, which call this
    together.
    """
    if accelerator.num_processes == 1 or not means:
        return means
    rows = {name: torch.tensor(value, dtype=torch.float64) for name, value in means.items()}
    flat = torch.cat([row.flatten() for row in rows.values()])
    found: Tensor = accelerator.reduce(flat.float().to(accelerator.device), "mean").cpu()
    parts = found.split([row.numel() for row in rows.values()])
    named = zip(rows.items(), parts, strict=True)
    return {name: part.view_as(row).tolist() for (name, row), part in named}
