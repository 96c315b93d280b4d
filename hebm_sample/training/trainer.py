"""The training loop, the same for generator and prior.

    for step in resume point ... total:  images(seed, step) -> objective -> AdamW -> moving
    average

Order, mirroring and noise are functions of (seed, step, process), so resuming from a checkpoint
(weights, average, optimiser, counters) goes on exactly as if nothing had happened. Several
processes and devices are the business of `accelerate`.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hebm_sample.config import ModelConfig
from hebm_sample.data.dataset import ImageDataset, StepSampler, zoomed
from hebm_sample.errors import UserInputError
from hebm_sample.io.extras import missing_extra
from hebm_sample.io.files import mark_run_folder
from hebm_sample.io.images import grid, to_pil
from hebm_sample.pipeline.device import pick_device
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from hebm_sample.training.lock import locked
from hebm_sample.training.log import RunLog
from hebm_sample.training.optim import (
    NanGuard,
    Part,
    Threads,
    averaged,
    learning_rate,
    make_optimizer,
    step_seed,
    train_step,
)

__all__ = ["BEST", "RunResult", "Task", "make_accelerator", "make_run_folder", "train"]

BEST = "best"  # folder of the averaged weights that were best on held-out images
FEWEST_ROWS = 16  # of a part that is worth a thread of its own

PROBE_STEPS = 6
BUDGET_SHARE = (
    0.93  # of a time budget goes to steps; checkpoints, grids and the export get the rest
)


@dataclass
class Task:
    """What is learned.

    Arguments:
        kind: "generator" or "prior".
        objective: (images, fraction done) to (loss, statistics).
        learner: The part of it that learns, is averaged and is saved.
        config: The model's description, part of what must agree on resuming.
        preview: The averaged learner to images (N, 3, S, S) for the grid that is written now and
            then.
        identity: Of what else must agree on resuming: the data, the frozen generator.
        columns: The label columns that the objective is given, in its order.
        prepare: Rows and flips to what the objective is given in the place of images.
        evaluate: The averaged learner to its figures on held-out images, with the same noise
            whenever it is called; the lowest `heldout_loss` is the best.
        init: Digest of the weights that the run starts from, "" where it starts from none.
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


@dataclass(frozen=True)
class RunResult:
    """The averaged learner, at the end or where it was best on held-out images; the steps done,
    those skipped, the seconds it took; and the best step and its figures, if any were measured.
    """

    learner: nn.Module
    steps: int
    skipped: int
    seconds: float
    best: dict[str, Any] | None = None


def make_accelerator(device: str = "auto") -> Any:
    """accelerate's engine.

    Raises `EnvironmentFailure` where accelerate is not installed or there is no such device, and
    `UserInputError` where its settings ask for what training does not do.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise missing_extra("accelerate", "train") from error
    pick_device(device)  # accelerate would train on the CPU where there is no such device
    accelerator = Accelerator(cpu=device == "cpu")
    if (parts := accelerator.gradient_accumulation_steps) != 1:
        raise UserInputError(
            f"accelerate is set to accumulate gradients over {parts} steps, which training does "
            "not do; set gradient_accumulation_steps to 1, and --batch-size to what fits"
        )
    return accelerator


def _time_a_step(
    run_step: Callable[[int], object], synchronize: Callable[[], None], rewind: Callable[[], None]
) -> float:
    """Seconds a step takes: the mean of the last four of six trial steps, undone afterwards."""
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


def make_run_folder(folder: Path) -> None:
    """Make the folder and mark it as a run's, or raise `UserInputError`."""
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
        self.task, self.settings, self.folder, self.accelerator = (
            task,
            settings,
            folder,
            accelerator,
        )
        self.images = images
        self.ema = averaged(task.learner, settings.ema_decay, settings.ema_length).to(
            accelerator.device
        )
        optimizer = make_optimizer(task.learner, settings)
        self.objective, self.optimizer = task.objective, accelerator.prepare(optimizer)
        self.parameters = [p for p in task.learner.parameters() if p.requires_grad]
        self.threads = Threads()
        self.samplers: list[StepSampler] = []
        self.cut(self._parts())
        self.guard = NanGuard(settings.max_skipped)
        self.total = settings.steps or 0
        # A short budget is cut into at least six checkpoints, so that little of it can be lost.
        self.checkpoint_every = min(settings.checkpoint_every, (settings.time_budget or 1e9) / 6)
        self.step = 0
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None

    def _parts(self) -> int:
        """Into how many parts a batch is best cut here: as many as a CPU has threads."""
        batch = self.settings.batch_size
        most = torch.get_num_threads() if self.accelerator.device.type == "cpu" else 1
        return max(
            n for n in range(1, most + 1) if n == 1 or batch % n == 0 <= batch // n - FEWEST_ROWS
        )

    def cut(self, parts: int) -> None:
        """Cut batches into parts. They are what processes are: rows and noise follow from
        (seed, step, rank) with a rank for every part of every process.
        """
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
        for free in ("steps", "time_budget", "checkpoint_every", "sample_every"):
            settings.pop(free)
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
        stream = torch.Generator(device).manual_seed(
            step_seed(self.settings.seed, step, sampler.rank)
        )
        return Part(images, None if labels is None else labels.to(device), stream)

    def one_step(self, step: int) -> tuple[bool, dict[str, Any]]:
        """Draw and learn; without the average and the guard."""
        for group in self.optimizer.param_groups:
            rate = learning_rate(self.settings, step, max(self.total, 1))
            group["lr"] = rate * group.get("factor", 1.0)
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
        )

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

        cuda = self.accelerator.device.type == "cuda"
        seconds = _time_a_step(
            self.one_step, torch.cuda.synchronize if cuda else lambda: None, rewind
        )
        steps = torch.tensor(
            max(1, int(BUDGET_SHARE * budget / seconds)), device=self.accelerator.device
        )
        self.total = int(self.accelerator.reduce(steps.float(), "mean"))

    def save(self) -> None:
        """Write a checkpoint from the first process."""
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "total": self.total,
                "parts": self.parts,
                "seconds": self.seconds,
                "time_budget": self.settings.time_budget,
                "init": self.task.init,
                "best": self.best,
                "skipped": self.guard.total,
                "skipped_in_a_row": self.guard.in_a_row,
                "identity": self.identity(),
            }
            save_checkpoint(
                self.folder, self.step, modules=self.modules, optimizer=self.optimizer, state=state
            )
        self.accelerator.wait_for_everyone()

    def evaluate(self) -> dict[str, float]:
        """The averaged weights' figures on held-out images; the best weights are kept in
        `FOLDER/best`.
        """
        if self.task.evaluate is None:
            return {}
        figures = self.task.evaluate(self.ema.module)
        loss = figures["heldout_loss"]
        if math.isfinite(loss) and (self.best is None or loss < self.best["heldout_loss"]):
            self.best = {"step": self.step, **figures}
            if self.accelerator.is_main_process:
                state = self.best | {"identity": self.identity()}
                save_checkpoint(
                    self.folder / BEST, self.step, modules={"ema": self.ema}, state=state, keep=1
                )
        return figures

    def chosen(self) -> nn.Module:
        """The averaged learner where it was best, or at the end if nothing was measured."""
        path = latest_checkpoint(self.folder / BEST) if self.best else None
        if path is not None:
            load_checkpoint(path, modules={"ema": self.ema}, optimizer=None)
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
        found, wanted = state["identity"], json.loads(json.dumps(self.identity()))
        # Settings that are newer than the checkpoint are those that it had without them.
        found["settings"] = TrainSettings(steps=1).to_dict() | found.get("settings", {})
        found["settings"] = {k: found["settings"].get(k) for k in wanted["settings"]}
        differing = sorted(k for k in wanted if found.get(k) != wanted[k])
        if "settings" in differing:
            old, new = found.get("settings", {}), wanted["settings"]
            which = ", ".join(sorted(k for k in {*old, *new} if old.get(k) != new.get(k)))
            differing[differing.index("settings")] = f"settings ({which})"
        if differing:
            raise UserInputError(
                f"the checkpoint in {self.folder} was made with other {', '.join(differing)}; "
                "resume with the same options, or start in another folder"
            )
        if state.get("init", self.task.init) != self.task.init:
            start = "another model (--init)" if state["init"] else "no model, without --init"
            raise UserInputError(
                f"the run in {self.folder} started from {start}; resume with the same options"
            )
        load_checkpoint(path, modules=self.modules, optimizer=self.optimizer)
        self.step, self.total, self.seconds = state["step"], state["total"], state["seconds"]
        self.cut(state.get("parts", 1))
        self.best = state.get("best")
        self.guard = NanGuard(
            self.settings.max_skipped, state["skipped"], state["skipped_in_a_row"]
        )

    def preview(self) -> Tensor:
        """Images of the averaged learner, with the random stream left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return self.task.preview(self.ema.module)


class _Window:
    """Means of the statistics since the last log line, kept on the device until they are asked
    for.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, stats: dict[str, Tensor]) -> None:
        for name, value in stats.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
        self.count += 1

    def take(self) -> dict[str, Any]:
        """The means as Python numbers and lists; starts a new window."""
        means = {k: (v / self.count).tolist() for k, v in self.sums.items()} if self.count else {}
        self.sums, self.count = {}, 0
        return means


def _loop(run: Run, log: RunLog | None, show_progress: bool) -> None:
    """Steps until the end, with log lines, checkpoints and grids on the way."""
    settings, window = run.settings, _Window()
    started, last_save, last_grid = time.monotonic(), time.monotonic(), time.monotonic()
    seconds_before = run.seconds
    bar = tqdm(
        total=run.total,
        initial=run.step,
        desc=run.task.kind,
        unit="step",
        disable=not show_progress,
    )
    while run.step < run.total:
        finite, stats = run.one_step(run.step)
        run.guard.record(finite, run.step)
        if finite:
            run.ema.update_parameters(run.task.learner)
            window.add(stats)
        run.step += 1
        bar.update()
        if run.step % settings.log_every and run.step < run.total:
            continue
        run.seconds = seconds_before + time.monotonic() - started
        every = settings.evaluate_every
        measured = every and (run.step % every == 0 or run.step == run.total)
        figures = run.evaluate() if measured else {}
        if log is not None:
            means = window.take()
            rate = run.optimizer.param_groups[0]["lr"]
            log.log(
                run.step,
                **means,
                **figures,
                learning_rate=rate,
                skipped=run.guard.total,
                seconds=run.seconds,
            )
            bar.set_postfix(
                {k: f"{v:.4g}" for k, v in means.items() if k in ("loss", "bits", "drop")}
            )
        # The clock differs between processes: the first one decides for all.
        now = time.monotonic()
        due = torch.tensor(
            [now - last_save > run.checkpoint_every, now - last_grid > settings.sample_every],
            device=run.accelerator.device,
        ).float()
        save, draw = (run.accelerator.reduce(due, "max") > 0).tolist()
        if save or run.step == run.total:
            run.save()
            last_save = time.monotonic()
        if log is not None and (draw or run.step == run.total):
            log.image(run.step, "grid", grid(to_pil(run.preview()), columns=8))
        last_grid = time.monotonic() if draw else last_grid
    bar.close()


def train(
    task: Task,
    images: ImageDataset,
    settings: TrainSettings,
    folder: str | Path,
    *,
    resume: bool = False,
    accelerator: Any = None,
    show_progress: bool = True,
) -> RunResult:
    """Train `task` on `images` in `folder`.

    Arguments:
        resume: Go on from the folder's newest whole checkpoint; without it a folder that has one
            is refused.
        accelerator: accelerate's engine; made if None.

    Returns:
        The averaged learner and counts. Raises `TrainingDivergedError` after too many non-finite
        steps in a row.
    """
    folder, accelerator = Path(folder), accelerator or make_accelerator()
    main = accelerator.is_main_process
    if not resume and latest_checkpoint(folder) is not None:
        raise UserInputError(
            f"{folder} already holds a run; go on with --resume, or choose another folder"
        )
    if main:
        make_run_folder(folder)
    accelerator.wait_for_everyone()
    with locked(folder, main):
        run = Run(task, images, settings, folder, accelerator)
        if resume:
            run.restore()
        else:
            run.plan_steps()
        # Before the first checkpoint: without tensorboard no run is left that would be in the way.
        log = RunLog(folder, resume_step=run.step) if main else None
        task.objective.train()
        with log or nullcontext():
            if not resume:
                run.save()
            _loop(run, log, show_progress and main)
        return RunResult(run.chosen(), run.step, run.guard.total, run.seconds, run.best)
