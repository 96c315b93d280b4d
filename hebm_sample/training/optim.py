"""One optimiser step with a NaN guard, an average of the weights, and draws that depend on the
step alone.

    theta <- AdamW(clip(mean over parts of grad)),    ema <- d ema + (1 - d) theta

A batch may be cut into parts that are computed at the same time, each in a thread of its own: on a
CPU that is faster than to share each operation out among all cores. A part has rows and noise of
its own, and gradients are averaged. Its randomness is a function of (seed, step, part): a resumed
run draws what the uninterrupted one would.

A part may be divided further, over processes and into micro-batches that are computed one after
another ("gradient accumulation"). Each divided row keeps the numbers that it has in the whole:

    draw(randn, (b, ...), Rows(stream, first, B)) = randn(B, ...)[first : first + b]

so that W processes with k micro-batches each learn what one process does, up to rounding.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hebm_sample.errors import TrainingDivergedError
from hebm_sample.presets.settings import TrainSettings

__all__ = [
    "NanGuard",
    "Part",
    "Rows",
    "Stream",
    "Threads",
    "average_decay",
    "averaged",
    "draw",
    "group_rate",
    "learning_rate",
    "make_optimizer",
    "power_exponent",
    "seed_step",
    "step_seed",
    "train_step",
]

_A = TypeVar("_A")
_B = TypeVar("_B")


class Rows(NamedTuple):
    """Of a stream that a larger batch draws from, what is drawn for some of its rows.

    Arguments:
        generator: The stream.
        first: The first of the rows.
        total: Rows of the larger batch.
    """

    generator: torch.Generator
    first: int
    total: int


Stream = torch.Generator | Rows | None
"""What an objective draws from; torch's global stream if None."""


def draw(
    how: Callable[..., Tensor], shape: Sequence[int], stream: Stream, device: torch.device
) -> Tensor:
    """Random numbers of `shape` (B, ...), whose rows are a batch's.

    Arguments:
        how: `torch.randn` or another that takes a shape, `generator` and `device`.
    """
    if not isinstance(stream, Rows):
        return how(tuple(shape), device=device, generator=stream)
    whole = how((stream.total, *shape[1:]), device=device, generator=stream.generator)
    return whole[stream.first : stream.first + shape[0]].clone()  # a view would keep the whole


class Part(NamedTuple):
    """What one call of the objective sees: images (B, 3, S, S), or whatever it takes in their
    place; labels (B, variables) where it asks for them; and the stream that it draws from, torch's
    global one if None.
    """

    images: Any
    labels: Tensor | None = None
    stream: Any = None

    def divided(self, count: int) -> Iterator["Part"]:
        """Micro-batches of equal sizes.

        `Rows` of a stream are those of each; from another stream they draw in turn.
        """
        if count == 1:
            yield self
            return
        maps = self.images if isinstance(self.images, dict) else {"": self.images}
        size = len(next(iter(maps.values()))) // count
        for first in range(0, count * size, size):
            rows = slice(first, first + size)
            images = {key: value[rows] for key, value in maps.items()}
            labels = None if self.labels is None else self.labels[rows]
            stream = self.stream
            if isinstance(stream, Rows):
                again = torch.Generator(stream.generator.device)
                again.set_state(stream.generator.get_state())
                stream = Rows(again, stream.first + first, stream.total)
            yield Part(images.get("", images), labels, stream)


class Threads:
    """Calls the parts of a step at the same time, each with its share of torch's threads.

    Arguments:
        parts: How many; a single one is called by the caller itself.
    """

    def __init__(self, parts: int = 1) -> None:
        self.pool: ThreadPoolExecutor | None = None
        self.began = False
        if parts > 1:
            # torch asks each new thread how many threads it may use; the answer is its own.
            share = (max(1, torch.get_num_threads() // parts),)
            self.pool = ThreadPoolExecutor(parts, "part", torch.set_num_threads, share)

    def call(self, function: Callable[[_A], _B], items: Iterable[_A]) -> list[_B]:
        """`function` of every item, in order."""
        if self.pool is None:
            return [function(item) for item in items]
        return list(self.pool.map(function, items))

    def call_first(self, function: Callable[[_A], _B], items: Sequence[_A]) -> list[_B]:
        """The same, the first item alone at the first time: what is compiled or planned for a
        shape then is not done by all threads at once.
        """
        if self.began:
            return self.call(function, items)
        self.began = True
        return [*self.call(function, items[:1]), *self.call(function, items[1:])]

    def __enter__(self) -> "Threads":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for what still runs."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)


def learning_rate(settings: TrainSettings, step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    peak = settings.learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    done = min((step - settings.warmup_steps) / max(total - settings.warmup_steps, 1), 1.0)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def group_rate(settings: TrainSettings, group: Mapping[str, Any], step: int, total: int) -> float:
    """The learning rate of an optimiser's group: the run's times the group's `factor`, without the
    cosine if it is `steady`, as of a discriminator, which must be able to follow to the end.
    """
    rate = learning_rate(settings, step, total)
    if group.get("steady") and step >= settings.warmup_steps:
        rate = settings.learning_rate
    return rate * group.get("factor", 1.0)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`; over its `parameter_groups`, each with a
    factor of the learning rate, if it has any.
    """
    groups = getattr(model, "parameter_groups", None)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # One pass over a weight and its averages in place of a dozen: a tenth of a step on a CPU.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(
        parameters if groups is None else groups(),
        fused=fused,
        lr=settings.learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
        weight_decay=settings.weight_decay,
    )


@lru_cache(maxsize=16)
def power_exponent(length: float) -> float:
    """gamma of the average whose profile, t^gamma over the steps t done, has the relative standard
    deviation `length`: length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
    (arXiv 2312.02696), equations 2 and 126.
    """
    low, high = 0.0, 1e7
    for _ in range(200):
        gamma = (low + high) / 2
        wide = (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > length**2
        low, high = (gamma, high) if wide else (low, gamma)
    return low


def average_decay(updates: int, decay: float, length: float | None = None) -> float:
    """What an average keeps of itself after so many updates; arguments as of `averaged`."""
    if length is None:
        return min(decay, (1 + updates) / (10 + updates))
    return (1 - 1 / (updates + 1)) ** (power_exponent(length) + 1)


def averaged(model: nn.Module, decay: float, length: float | None = None) -> AveragedModel:
    """A copy of `model` whose parameters and buffers follow it by a moving average.

    Arguments:
        decay: Of an exponential average. It is ramped up as min(decay, (1 + n) / (10 + n)) over
            the first updates n, so that short runs do not export their initial weights.
        length: If given, in the place of `decay`: a power-function average of this relative
            length, whose decay after update n is (1 - 1 / (n + 1))^(gamma + 1)
            (`power_exponent`): it forgets a fixed share of the run, however long that is.
    """
    ema = AveragedModel(model, use_buffers=True)

    def average(targets: list[Tensor], sources: list[Tensor], updates: Tensor) -> None:
        kept = average_decay(int(updates), decay, length)
        get_ema_multi_avg_fn(kept)(targets, sources, updates)

    ema.multi_avg_fn = average  # pyright: ignore[reportAttributeAccessIssue]
    ema.requires_grad_(False)
    return ema


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed from (seed, step, rank) through splitmix64, so that neighbours differ in all bits."""
    x = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return (x ^ (x >> 31)) % 2**63


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's global stream from (seed, step, rank)."""
    torch.manual_seed(step_seed(seed, step, rank))


class NanGuard:
    """Counts skipped steps; raises `TrainingDivergedError` when too many come in a row."""

    def __init__(self, limit: int, total: int = 0, in_a_row: int = 0) -> None:
        self.limit, self.total, self.in_a_row = limit, total, in_a_row

    def record(self, finite: bool, step: int) -> None:
        """Note whether this step's gradients were finite."""
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.total += not finite
        if self.in_a_row >= self.limit:
            raise TrainingDivergedError(
                f"{self.in_a_row} steps in a row had non-finite gradients (step {step}); the last "
                "good checkpoint is kept: go on from it in another folder, with a lower "
                "--learning-rate and --init RUN (a decoder: --generator RUN)"
            )


def train_step(
    objective: Callable[..., tuple[Tensor, dict[str, Any]]],
    parts: Sequence[Part],
    fraction: float,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    clip: float,
    *,
    threads: Threads | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    accumulate: int = 1,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[bool, dict[str, Any]]:
    """Forward, backward, clip, update unless a gradient is not finite.

    Arguments:
        objective: (images, fraction of the run done, labels, stream) to (loss, statistics). One
            with several losses has a method `differentiate` instead, (part, fraction, parameters)
            to (gradients, statistics with `loss`).
        parts: Of the batch, of equal sizes.
        threads: To call them in; one after another if None.
        reduce: A gradient (P,) to its mean over all processes, where several share the work.
        accumulate: Micro-batches of each part.
        context: What the objective is called in, such as autocast.

    Returns:
        Whether the update was made, and the objective's statistics with `loss` and
        `gradient_norm`.
    """

    def differentiate(part: Part) -> tuple[Sequence[Tensor], dict[str, Any]]:
        return _accumulated(objective, part.divided(accumulate), fraction, parameters, context)

    found = (threads or Threads()).call_first(differentiate, parts)
    _set_gradients(parameters, [grads for grads, _ in found], reduce)
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    # The gradients are every process's mean, so all decide alike; a loss is a process's own.
    finite = bool(torch.isfinite(norm))
    if finite:
        optimizer.step()
    return finite, {"gradient_norm": norm.detach(), **_mean([stats for _, stats in found])}


def _accumulated(
    objective: Any,
    parts: Iterable[Part],
    fraction: float,
    parameters: Sequence[Tensor],
    context: Callable[[], AbstractContextManager[Any]],
) -> tuple[Sequence[Tensor], dict[str, Any]]:
    """The mean over micro-batches, of which one is in memory at a time."""
    sums: list[Tensor] = []
    found: list[dict[str, Any]] = []
    for part in parts:
        grads, stats = _differentiated(objective, part, fraction, parameters, context)
        found.append(stats)
        sums = [a + b for a, b in zip(sums, grads, strict=True)] if sums else list(grads)
        del grads
    if len(found) > 1:
        sums = [total / len(found) for total in sums]
    return sums, _mean(found)


def _differentiated(
    objective: Any,
    part: Part,
    fraction: float,
    parameters: Sequence[Tensor],
    context: Callable[[], AbstractContextManager[Any]],
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Gradients and statistics of one call of the objective."""
    own = getattr(objective, "differentiate", None)
    with context():
        if own is not None:
            return own(part, fraction, parameters)
        loss, stats = objective(part.images, fraction, part.labels, part.stream)
    # Not `backward`: it would go on to the noisy latents, which are leaves as well.
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return grads, {"loss": loss.detach(), **stats}


def _set_gradients(
    parameters: Sequence[Tensor],
    grads: Sequence[Sequence[Tensor]],
    reduce: Callable[[Tensor], Tensor] | None,
) -> None:
    """Every parameter's `grad` as the mean over parts and processes."""
    for p, *own in zip(parameters, *grads, strict=True):
        mean = own[0] if len(own) == 1 else sum(own[1:], own[0]) / len(own)
        p.grad = _laid_out_as(p, cast("Tensor", mean))
    if reduce is None:
        return
    row = reduce(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    sizes = [p.numel() for p in parameters]
    for p, part in zip(parameters, row.split(sizes), strict=True):
        p.grad = _laid_out_as(p, part.view_as(p))


def _laid_out_as(weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the weight's memory layout: an update in one pass takes both in the order in
    which they lie in memory.
    """
    if gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight, requires_grad=False).copy_(gradient)


def _mean(stats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each statistic over the parts."""
    if len(stats) == 1:
        return stats[0]
    return {name: sum(s[name] for s in stats) / len(stats) for name in stats[0]}
