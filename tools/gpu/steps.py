"""One optimiser step with everything on the device, captured as a CUDA graph where that works.

    rows, flips of (seed, step) -> images -> objective -> gradients -> fused AdamW -> average

What `hebm_sample.training.optim` does on one process, without waiting for the device: rates and
clipping are tensors, and a step whose gradients are not finite is left out by the optimiser's own
kernel. The networks compute in bfloat16 by autocast, but for the layers that put out means, widths
and energies; weights, moments and averages are float32.

A step is some thousand small kernels, which a CPU hands over more slowly than a large GPU runs
them; a graph hands them over at once. It is used only if its gradients are those of the same step
launched kernel by kernel. `torch.compile` is not used: it cannot differentiate twice, as score
matching and R1 do, and compiling takes minutes of what there is.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hebm_sample.data.dataset import StepSampler, to_float, zoomed
from hebm_sample.generator.protocol import ImageEncoder
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.optim import (
    Part,
    average_decay,
    averaged,
    group_rate,
    step_seed,
)

__all__ = ["CaptureError", "Feed", "Maps", "Stepper", "compute_in_float", "record_graph"]

WARM_STEPS = 11  # before a capture: kernels are chosen and the optimiser's state is made
LARGEST_DIFFERENCE = 0.05  # of a replayed gradient's, as a share of the gradient
LENGTH = 0.1  # of the power-function average, where the preset has a fixed decay


def compute_in_float(modules: Sequence[nn.Module]) -> None:
    """Take layers out of autocast: their inputs become float32, and so do their outputs."""
    for module in modules:
        module.forward = _plain(module.forward)


def _plain(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return run


class CaptureError(RuntimeError):
    """A step could not be captured. What a process's generators and allocator are like afterwards
    is not promised by anybody: another process goes on, without graphs.
    """


_torch: Any = torch  # whose stubs lack what its optimisers are made of

Recorder = Callable[[Callable[[], dict[str, Tensor]]], tuple[dict[str, Tensor], Callable[[], Any]]]
"""Of a step: records it; returns what it puts out, and what does it again."""


def record_graph(
    step: Callable[[], dict[str, Tensor]],
) -> tuple[dict[str, Tensor], Callable[[], Any]]:
    """Capture a step as a CUDA graph. The random numbers of a replay are those of the stream's
    seed at that time.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        found = step()
    return found, graph.replay


class Maps:
    """The frozen encoder's maps of all images and their mirror images, in half precision on the
    device: `training/encoded.py` for a device that has room for them.

    Arguments:
        images: (N, 3, S, S) uint8, on the device.
        mirrored: Make those of mirror images too.
    """

    BATCH = 256

    def __init__(self, encoder: ImageEncoder, images: Tensor, mirrored: bool) -> None:
        self.shapes, sides = encoder.map_shapes, 2 if mirrored else 1
        like = {"dtype": torch.float16, "device": images.device}
        self.store = {
            k: torch.empty(len(images), sides, *s, **like) for k, s in self.shapes.items()
        }
        with torch.no_grad():
            for start in range(0, len(images), self.BATCH):
                some = images[start : start + self.BATCH]
                for side in range(sides):
                    found = encoder.features(to_float(some.flip(-1) if side else some))
                    for k, store in self.store.items():
                        store[start : start + len(some), side] = found[k]

    @staticmethod
    def size(encoder: ImageEncoder, count: int) -> int:
        """Bytes that they take for so many images."""
        shapes = encoder.map_shapes.values()
        return 4 * count * sum(c * h * w for c, h, w in shapes)

    def __call__(self, rows: Tensor, flips: Tensor) -> dict[int, Tensor]:
        """`ImageEncoder.features` of images `rows` (B,), mirrored where `flips` (B,) is true."""
        found = {k: store[rows, flips.long()].float() for k, store in self.store.items()}
        return {k: v.contiguous(memory_format=torch.channels_last) for k, v in found.items()}


class Feed:
    """A step's images and labels, gathered on the device by numbers that are put there before it.

    Arguments:
        images: (N, 3, S, S) uint8, on the device.
        labels: (N, symbols), or None.
        settings: Batch, seed, mirroring and zoom.
        maps: In the place of images, for objectives that take them.
    """

    def __init__(
        self, images: Tensor, labels: Tensor | None, settings: TrainSettings, maps: Maps | None
    ) -> None:
        self.images, self.labels, self.settings, self.maps = images, labels, settings, maps
        batch, device = settings.batch_size, images.device
        self.sampler = StepSampler(len(images), batch, settings.seed)
        self.rows = torch.zeros(batch, dtype=torch.long, device=device)
        self.flips = torch.zeros(batch, dtype=torch.bool, device=device)
        self.squares = torch.zeros(batch, 3, device=device)
        self.fraction = torch.zeros((), device=device)

    def put(self, step: int, fraction: float) -> None:
        """What step `step` sees."""
        self.rows.copy_(self.sampler.indices(step))
        if self.settings.flip:
            self.flips.copy_(self.sampler.flips(step))
        if self.settings.zoom < 1:
            self.squares.copy_(self.sampler.squares(step, self.settings.zoom))
        self.fraction.fill_(fraction)

    def part(self) -> Part:
        """Images, or their maps, and labels; all draws come from torch's own stream."""
        labels = None if self.labels is None else self.labels[self.rows]
        if self.maps is not None:
            return Part(self.maps(self.rows, self.flips), labels)
        x = self.images[self.rows]
        if self.settings.flip:
            x = torch.where(self.flips[:, None, None, None], x.flip(-1), x)
        x = to_float(x)
        return Part(x if self.settings.zoom == 1 else zoomed(x, self.squares), labels)


class Stepper:
    """Steps of one objective, with the moving average of what learns.

    Arguments:
        objective: As the package's training takes it: called, or with `differentiate`.
        learner: The part of it that learns.
        feed: Of its images.
        settings: Rates, clipping and the average.
        graph_from: The part of the run from which all steps are alike but for their inputs; None
            where they never are.
        record: `record_graph` where there is CUDA; None launches every step kernel by kernel.
        takes_tensor: Whether the objective takes the part of the run as a tensor.
        in_float: Layers that are left out of autocast.
        bf16: Whether to use autocast.
        tell: Told in a line what did not work.
    """

    def __init__(
        self,
        objective: nn.Module,
        learner: nn.Module,
        feed: Feed,
        settings: TrainSettings,
        *,
        graph_from: float | None,
        takes_tensor: bool,
        record: Recorder | None = None,
        in_float: Sequence[nn.Module] = (),
        bf16: bool = True,
        tell: Callable[[str], object] = print,
    ) -> None:
        self.objective, self.learner, self.feed, self.settings = objective, learner, feed, settings
        self.takes_tensor, self.bf16, self.tell = takes_tensor, bf16, tell
        self.device = feed.images.device
        self.graph_from, self.record = graph_from, record
        self.ema = averaged(learner, settings.ema_decay, settings.ema_length)
        self.best = copy.deepcopy(self.ema)
        self.averages = list(self.ema.module.parameters())
        compute_in_float(in_float)  # after the copies, which would call the original's weights
        self.parameters = [p for p in learner.parameters() if p.requires_grad]
        self.optimizer = self._new_optimizer()
        self.replay: Callable[[], Any] | None = None
        self.eager = 0  # steps that were launched one by one in this sitting
        self.known: dict[str, Tensor] = {}
        objective.train()

    def _new_optimizer(self) -> torch.optim.AdamW:
        groups = getattr(self.learner, "parameter_groups", None)
        found: list[dict[str, Any]]
        found = [{"params": self.parameters}] if groups is None else groups()
        self.rates = [torch.zeros((), device=self.device) for _ in found]
        for group, rate in zip(found, self.rates, strict=True):
            group["lr"] = rate
        return torch.optim.AdamW(
            found,
            betas=(self.settings.betas[0], self.settings.betas[1]),
            weight_decay=self.settings.weight_decay,
            fused=True,
            capturable=self.device.type == "cuda",
        )

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds besides the optimiser."""
        return {"learner": self.learner, "ema": self.ema, "best": self.best}

    @contextmanager
    def plain_rates(self) -> Iterator[None]:
        """Rates as numbers, as checkpoints hold them."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = float(rate)
        try:
            yield
        finally:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate

    def step(self, number: int, total: int) -> dict[str, Tensor]:
        """Learn from step `number` of `total`; returns its statistics, on the device."""
        fraction = number / total
        for group, tensor in zip(self.optimizer.param_groups, self.rates, strict=True):
            tensor.fill_(group_rate(self.settings, group, number, total))
        self.feed.put(number, fraction)
        seed = step_seed(self.settings.seed, number, 0)
        if self._may_capture(fraction):
            self._capture(fraction, seed)
        torch.manual_seed(seed)
        if self.replay is None:
            self.known = self._learn(fraction)
            self.eager += 1
        else:
            self.replay()
        self._average(number)
        return self.known

    def _average(self, number: int) -> None:
        length = self.settings.ema_length
        kept = average_decay(number, self.settings.ema_decay, length) if number else 0.0
        with torch.no_grad():
            _torch._foreach_lerp_(self.averages, list(self.learner.parameters()), 1 - kept)

    def _learn(self, fraction: float) -> dict[str, Tensor]:
        """Forward, backward, update; nothing here waits for the device."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            grads, stats = self._differentiate(fraction)
        norm = torch.linalg.vector_norm(torch.stack(_torch._foreach_norm(grads)))
        for p, g in zip(self.parameters, grads, strict=True):
            # The fused kernel wants the parameter's own strides, which autograd does not promise.
            same = g.stride() == p.stride() and g.dtype == p.dtype
            p.grad = g.detach() if same else torch.empty_like(p).copy_(g).detach()
        bad = ~torch.isfinite(norm)
        # What torch's own GradScaler sets: gradients are divided, or the step is left out.
        told: Any = self.optimizer
        told.grad_scale = (norm / self.settings.gradient_clip).clamp(min=1.0)
        told.found_inf = bad.float()
        self.optimizer.step()
        return {**stats, "gradient_norm": norm.detach(), "skipped": bad.float()}

    def _differentiate(self, fraction: float) -> tuple[Sequence[Tensor], dict[str, Tensor]]:
        part = self.feed.part()
        own: Any = getattr(self.objective, "differentiate", None)
        if own is not None:
            return own(part, fraction, self.parameters)
        known = self.feed.fraction if self.takes_tensor else fraction
        loss, stats = self.objective(part.images, known, part.labels, None)
        grads = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        return grads, {"loss": loss.detach(), **stats}

    # Graphs

    def _may_capture(self, fraction: float) -> bool:
        wanted = self.record is not None and self.graph_from is not None
        return wanted and self.eager >= WARM_STEPS and fraction >= (self.graph_from or 0.0)

    def _capture(self, fraction: float, seed: int) -> None:
        """Capture a step, and keep the graph if it does what the step does.

        Raises:
            CaptureError: It could not be captured.
        """
        record, self.record = self.record, None  # once
        assert record is not None
        before = self._copied()
        torch.manual_seed(seed)
        self._learn(fraction)
        wanted = self._gradients()
        self._restore(before)
        try:
            known, replay = record(lambda: self._learn(fraction))
            torch.manual_seed(seed)
            replay()
            found = self._gradients()
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0]
            raise CaptureError(f"these steps cannot be captured ({why})") from error
        self._restore(before)
        difference = float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
        if difference <= LARGEST_DIFFERENCE:
            self.known, self.replay = known, replay
        else:
            self.tell(
                f"a captured step's gradient is off by {difference:.1%}; steps are launched "
                "kernel by kernel"
            )

    def _gradients(self) -> Tensor:
        """All of them, (P,)."""
        return torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])

    def _state(self) -> list[Tensor]:
        """What a step changes, but for the average."""
        slots = [self.optimizer.state[p] for p in self.parameters]
        return [*self.parameters, *(v for s in slots for v in s.values() if isinstance(v, Tensor))]

    def _copied(self) -> list[Tensor]:
        return [value.detach().clone() for value in self._state()]

    def _restore(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for target, value in zip(self._state(), values, strict=True):
                target.copy_(value)

    @contextmanager
    def weights_of(self, averages: Any) -> Iterator[None]:
        """The learner with averaged weights, `ema` or `best`, in the place of its own."""
        own = [p.detach().clone() for p in self.learner.parameters()]
        targets = list(self.learner.parameters())
        with torch.no_grad():
            _torch._foreach_copy_(targets, list(averages.module.parameters()))
        try:
            yield
        finally:
            with torch.no_grad():
                _torch._foreach_copy_(targets, own)

    def keep_best(self) -> None:
        """Take the averages of now for the best."""
        self.best.load_state_dict(self.ema.state_dict())
