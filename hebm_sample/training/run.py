"""One run of training in one folder: what is learned, a step of it, its checkpoints.

    images(seed, step) -> objective -> AdamW -> moving average

Order, mirroring and noise are functions of (seed, step) and of a row's place in the whole batch:
resuming from a checkpoint (weights, average, optimiser, counters) goes on exactly as if nothing
had happened, and several processes learn what one does (`training/optim.py`).
"""

import datetime
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hebm_sample.config import ModelConfig, TrainingRecord
from hebm_sample.data.dataset import ImageDataset, StepSampler, zoomed
from hebm_sample.errors import UserInputError
from hebm_sample.io.written import check_run_folder, mark_run_folder
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.checkpoint import (
    check_identity,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from hebm_sample.training.devices import (
    agreed,
    by_first,
    compile_parts,
    computing,
    number_of_first,
    parts_of,
    said_by_first,
    time_a_step,
)
from hebm_sample.training.log import Means
from hebm_sample.training.optim import (
    NanGuard,
    Part,
    Rows,
    Threads,
    averaged,
    group_rate,
    make_optimizer,
    step_seed,
    train_step,
)
from hebm_sample.training.record import base_of, check_base, record_of

__all__ = ["BEST", "Run", "RunResult", "Task", "make_run_folder"]

BEST = "best"  # folder of the averaged weights that were best on held-out images

# Of a time budget; checkpoints, grids and the export get the rest.
BUDGET_SHARE = 0.93

# What may differ where a run is resumed, and what its identity names only if it is used.
FREE = (
    "steps",
    "time_budget",
    "checkpoint_every",
    "sample_every",
    "compile",
    "activation_checkpointing",
    "patience",
)
NAMED_IF_USED = ("accumulate", "dtype")


class Watcher(Protocol):
    """Looks at the means of a log line, and remembers what it compares them with."""

    least: float

    def __call__(self, means: dict[str, Any]) -> None:
        """Raises `TrainingDivergedError`."""
        ...


@dataclass
class Task:
    """What is learned.

    Arguments:
        kind: "generator", "prior", "decoder" or "ddpm".
        objective: (images, fraction done) to (loss, statistics).
        learner: The part of it that learns, is averaged and is saved.
        config: The model's description, part of what must agree on resuming.
        preview: The averaged learner to images (N, 3, S, S) for the grid that is written now and
            then.
        identity: Of what else must agree on resuming: the data, and by their content the frozen
            networks.
        columns: The label columns that the objective is given, in its order.
        prepare: Rows and flips to what the objective is given in the place of images.
        evaluate: The averaged learner to its figures on held-out images, with the same noise
            whenever it is called; the lowest `heldout_loss` is the best.
        init: Digest of the weights that the run starts from, "" where it starts from none.
        watch: Given the means of a log line's statistics before anything is saved; raises
            `TrainingDivergedError` where they say that no good can come of going on. What it
            compares with is its `least`, which checkpoints hold.
        former: `identity` and `init` as checkpoints of earlier releases hold them, which are gone
            on from, too.
    """

    kind: str
    objective: nn.Module
    learner: nn.Module
    config: ModelConfig
    preview: Callable[[nn.Module], Tensor]
    identity: str
    columns: tuple[str, ...] = ()
    prepare: Callable[[Tensor, Tensor | None], Any] | None = None
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    init: str = ""
    watch: Watcher | None = None
    former: tuple[str, str] | None = None


@dataclass(frozen=True)
class RunResult:
    """The averaged learner, at the end or where it was best on held-out images; the steps done,
    those skipped, the seconds it took; the best step and its figures, if any were measured; and
    the state that a checkpoint of it would hold.
    """

    learner: nn.Module
    steps: int
    skipped: int
    seconds: float
    best: dict[str, Any] | None
    state: dict[str, Any]

    @property
    def record(self) -> TrainingRecord:
        """What the run was, for the model's config."""
        return record_of(self.state)


def make_run_folder(folder: Path) -> None:
    """Make the folder and mark it as a run's, or raise `UserInputError`; a folder that holds
    somebody else's files is refused (`io/written.py`).
    """
    check_run_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark_run_folder(folder)
    except OSError as error:
        raise UserInputError(
            f"the run folder {folder} cannot be made: {error.strerror}"
        ) from error


class Run:
    """One training run in one folder. `train` is the way in."""

    def __init__(
        self,
        task: Task,
        images: ImageDataset,
        settings: TrainSettings,
        folder: Path,
        accelerator: Any,
    ) -> None:
        settings = agreed(settings, accelerator)
        self.task, self.settings, self.images = task, settings, images
        self.folder, self.accelerator = folder, accelerator
        self.ema = averaged(task.learner, settings.ema_decay, settings.ema_length).to(
            accelerator.device
        )
        optimizer = make_optimizer(task.learner, settings)
        self.objective, self.optimizer = task.objective, accelerator.prepare(optimizer)
        self.parameters = [p for p in task.learner.parameters() if p.requires_grad]
        self.compiles = settings.compile and compile_parts(task.objective)
        self.threads = Threads()
        self.samplers: list[StepSampler] = []
        self.cut(self._parts())
        self.guard = NanGuard(settings.max_skipped)
        self.total, self.budget = settings.steps or 0, settings.time_budget
        # A short budget is cut into at least six checkpoints, so that little of it can be lost.
        self.checkpoint_every = min(settings.checkpoint_every, (settings.time_budget or 1e9) / 6)
        self.step = 0
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None
        self.base = base_of(folder)
        self.compiled = [[0, self.compiles]]  # from which step on, and whether
        self.started = datetime.date.today().isoformat()

    def _parts(self) -> int:
        own = parts_of(self.settings, self.accelerator.device)
        return number_of_first(self.accelerator, own)

    def cut(self, parts: int) -> None:
        """Cut batches into parts, each with rows and noise of its own."""
        self.parts = parts
        self.threads = Threads(parts)
        world, first = (
            parts * self.accelerator.num_processes,
            parts * self.accelerator.process_index,
        )
        self.samplers = [
            StepSampler(
                len(self.images),
                self.settings.batch_size // parts,
                self.settings.seed,
                rank=first + k,
                world=world,
            )
            for k in range(parts)
        ]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds besides the optimiser."""
        return {"learner": self.task.learner, "ema": self.ema}

    def identity(self) -> dict[str, Any]:
        """What must agree between a checkpoint and the run that resumes it."""
        settings = self.settings.to_dict()
        for name in FREE:
            settings.pop(name)
        for name in NAMED_IF_USED:
            if settings[name] == getattr(TrainSettings, name):
                settings.pop(name)
        return {
            "kind": self.task.kind,
            "config": self.task.config.to_dict(),
            "settings": settings,
            "data": self.task.identity,
            "processes": self.accelerator.num_processes,
        }

    def part(self, step: int, sampler: StepSampler) -> Part:
        """A part's images at a step, their labels, and its noise, on this process's device."""
        flips = sampler.flips(step) if self.settings.flip else None
        rows, device = sampler.indices(step), self.accelerator.device
        labels = self.images.label_rows(rows, self.task.columns) if self.task.columns else None
        images = self.task.prepare(rows, flips) if self.task.prepare else None
        if images is None:
            images = self.images.batch(rows, flips).to(device)
            if self.settings.zoom < 1:
                images = zoomed(images, sampler.squares(step, self.settings.zoom))
        stream = self._stream(step, sampler)
        return Part(images, None if labels is None else labels.to(device), stream)

    def _stream(self, step: int, sampler: StepSampler) -> torch.Generator | Rows:
        """What a part of this process draws from: some rows of what the part of all processes
        draws, or a stream of its own where the objective's draws are not by row.
        """
        size, processes = sampler.batch_size, self.accelerator.num_processes
        divisible = getattr(self.objective, "divisible", False)
        part, place = divmod(sampler.rank, processes) if divisible else (sampler.rank, 0)
        seed = step_seed(self.settings.seed, step, part)
        stream = torch.Generator(self.accelerator.device).manual_seed(seed)
        if not divisible or processes * self.settings.accumulate == 1:
            return stream
        return Rows(stream, place * size, processes * size)

    def one_step(self, step: int) -> tuple[bool, dict[str, Any]]:
        """Draw and learn, without the average and the guard."""
        for group in self.optimizer.param_groups:
            group["lr"] = group_rate(self.settings, group, step, max(self.total, 1))
        several = self.accelerator.num_processes > 1
        return train_step(
            self.objective,
            [self.part(step, sampler) for sampler in self.samplers],
            step / max(self.total, 1),
            self.optimizer,
            self.parameters,
            self.settings.gradient_clip,
            threads=self.threads,
            reduce=partial(self.accelerator.reduce, reduction="mean") if several else None,
            accumulate=self.settings.accumulate,
            context=computing(self.objective, self.settings, self.accelerator.device),
        )

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or held-out figures have not been better for too long."""
        patience, best = self.settings.patience, self.best
        turned = patience > 0 and best is not None and self.step - best["step"] >= patience
        return self.step >= self.total or turned

    def advance(self, means: Means) -> None:
        """One step, with the average and the guard; its statistics are added to `means`."""
        finite, stats = self.one_step(self.step)
        self.guard.record(finite, self.step)
        if finite:
            self.ema.update_parameters(self.task.learner)
            means.add(stats)
        self.step += 1

    def plan_steps(self) -> None:
        """Turn a time budget into a number of steps, once; the trial steps leave no trace."""
        if self.total:
            return
        budget = self.settings.time_budget
        if budget is None:
            raise UserInputError(
                "neither steps nor a time budget is set; give --max-steps or --time-budget"
            )
        before = {k: v.clone() for k, v in self.task.learner.state_dict().items()}
        clean = self.optimizer.state_dict()
        clean = {"state": {}, "param_groups": clean["param_groups"]}

        def rewind() -> None:
            self.task.learner.load_state_dict(before)
            self.optimizer.load_state_dict(clean)

        wait = torch.cuda.synchronize if self.accelerator.device.type == "cuda" else lambda: None
        seconds = time_a_step(self.one_step, wait, rewind)
        steps = torch.tensor(
            max(1, int(BUDGET_SHARE * budget / seconds)), device=self.accelerator.device
        )
        self.total = int(self.accelerator.reduce(steps.float(), "mean"))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors, as JSON values."""
        return {
            "step": self.step,
            "total": self.total,
            "finished": self.ended,
            "parts": self.parts,
            "seconds": self.seconds,
            "compiled": self.compiled,
            "started": self.started,
            "ended": datetime.date.today().isoformat(),
            "time_budget": self.budget,
            "init": self.task.init,
            "base": self.base,
            "best": self.best,
            "least": None if self.task.watch is None else self.task.watch.least,
            "skipped": self.guard.total,
            "skipped_in_a_row": self.guard.in_a_row,
            "identity": self.identity(),
        }

    def save(self) -> None:
        """Write a checkpoint from the first process."""
        by_first(
            self.accelerator,
            lambda: save_checkpoint(
                self.folder,
                self.step,
                modules=self.modules,
                optimizer=self.optimizer,
                state=self.state(),
            ),
        )

    def evaluate(self) -> dict[str, float]:
        """The averaged weights' figures on held-out images; the best weights are kept in
        `FOLDER/best`.
        """
        if self.task.evaluate is None:
            return {}
        figures = self.task.evaluate(self.ema.module)
        loss = figures.get("heldout_loss", math.nan)  # where the best is not to be chosen
        better = self.best is None or loss < self.best["heldout_loss"]
        # Another process's figure may differ in its last bit.
        if said_by_first(self.accelerator, math.isfinite(loss) and better):
            self.best = {"step": self.step, **figures}
            by_first(self.accelerator, self._save_best)
        return figures

    def _save_best(self) -> None:
        state = (self.best or {}) | {"identity": self.identity()}
        save_checkpoint(
            self.folder / BEST, self.step, modules={"ema": self.ema}, state=state, keep=1
        )

    def chosen(self) -> nn.Module:
        """The averaged learner where it was best, or at the end if nothing was measured.

        Where the best weights are damaged those at the end are taken, with a line, and the run
        has no best step any more: what is written of it says which weights these are.
        """
        path = latest_checkpoint(self.folder / BEST) if self.best else None
        if path is not None:
            # A run that was killed, and goes on with other rounding, can leave a later one.
            self.best = {k: v for k, v in read_state(path).items() if k != "identity"}
            load_checkpoint(path, modules={"ema": self.ema}, optimizer=None)
        elif self.best:
            warnings.warn(
                f"{self.folder / BEST} holds no whole checkpoint: the last weights are "
                f"taken in place of those of step {self.best['step']}, the best",
                stacklevel=2,
            )
            self.best = None
        return self.ema.module

    def restore(self) -> None:
        """Take up the newest whole checkpoint; `UserInputError` if there is none or it is another
        run's.
        """
        path = latest_checkpoint(self.folder)
        if path is None:
            raise UserInputError(
                f"nothing to resume in {self.folder}: it holds no whole checkpoint; "
                "start without --resume"
            )
        state = read_state(path)
        defaults = TrainSettings(steps=1).to_dict()
        settings = {name: value for name, value in defaults.items() if name not in FREE}
        found, (former, init) = state["identity"], self.task.former or ("", self.task.init)
        if found["data"] and found["data"] == former:
            found["data"] = self.task.identity
        check_identity(self.folder, found, self.identity(), settings)
        if state.get("init", init) not in (self.task.init, init):
            start = "another model (--init)" if state["init"] else "no model, without --init"
            raise UserInputError(
                f"the run in {self.folder} started from {start}; resume with the same options"
            )
        check_base(self.folder, state)
        load_checkpoint(path, modules=self.modules, optimizer=self.optimizer)
        self.step, self.total, self.seconds = state["step"], state["total"], state["seconds"]
        self.budget = state.get("time_budget")
        self.cut(state.get("parts", 1))
        self.best, self.started = state.get("best"), state.get("started", self.started)
        if state["finished"] and not self.ended:
            raise UserInputError(
                f"the run in {self.folder} ended at step {self.step}, when held-out figures had "
                "not been better for too long; it is not gone on with: leave patience as it was"
            )
        self.compiled = state.get("compiled", [])  # of earlier releases' runs nobody knows
        if self.compiled and self.compiled[-1][1] != self.compiles:
            self.compiled.append([self.step, self.compiles])
        if self.task.watch is not None and (least := state.get("least")) is not None:
            self.task.watch.least = least
        self.guard = NanGuard(
            self.settings.max_skipped, state["skipped"], state["skipped_in_a_row"]
        )

    def preview(self) -> Tensor:
        """Images of the averaged learner, with the random stream left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return self.task.preview(self.ema.module)
