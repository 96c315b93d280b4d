"""The training loop, the same for generator and prior.

    for step in resume point ... total:  a step (`training/run.py`), and when it is due
                                         a log line, a checkpoint, a grid

Starting several processes is the business of `accelerate`.
"""

import shutil
import time
import warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import NonFiniteSampleError
from hebm_sample.io.bars import disabled
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.images import grid, to_pil
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.checkpoint import check_start
from hebm_sample.training.devices import (
    agreed,
    averaged_over_processes,
    by_first,
    checkpointing,
    make_accelerator,
)
from hebm_sample.training.lock import locked
from hebm_sample.training.log import Means, RunLog
from hebm_sample.training.run import BEST, Run, RunResult, Task, make_run_folder

__all__ = ["BEST", "Run", "RunResult", "Task", "make_accelerator", "make_run_folder", "train"]


class _Clock:
    """Seconds of the run, and what is due by them: checkpoints and grids."""

    def __init__(self, run: Run) -> None:
        self.run, self.before = run, run.seconds
        self.started = self.saved = self.drawn = time.monotonic()

    def seconds(self) -> float:
        """Of the whole run so far, over all its starts."""
        return self.before + time.monotonic() - self.started

    def due(self) -> tuple[bool, bool]:
        """Whether a checkpoint is due, and whether a grid is."""
        run, now = self.run, time.monotonic()
        due = torch.tensor(
            [
                now - self.saved > run.checkpoint_every,
                now - self.drawn > run.settings.sample_every,
            ],
            device=run.accelerator.device,
        )
        # The clock differs between processes: what one of them asks for, all do.
        save, draw = (run.accelerator.reduce(due.float(), "sum") > 0).tolist()
        self.drawn = now if draw else self.drawn
        ends = run.ended
        return save or ends, draw or ends


def _record(run: Run, log: RunLog | None, means: Means) -> dict[str, Any]:
    """A log line of the steps since the last one; returns their mean statistics."""
    every = run.settings.evaluate_every
    before = run.step - run.settings.log_every  # the log line before, at the earliest
    passed = every and run.step // every > max(0, before) // every
    measured = passed or (every and run.step == run.total)
    figures = run.evaluate() if measured else {}
    found = averaged_over_processes(means.take(), run.accelerator)
    if run.task.watch is not None:
        run.task.watch(found)

    def write() -> None:
        assert log is not None, "the first process has one"
        log.log(
            run.step,
            **found,
            **figures,
            learning_rate=run.optimizer.param_groups[0]["lr"],
            skipped=run.guard.total,
            seconds=run.seconds,
        )

    by_first(run.accelerator, write)
    return found


def _draw(run: Run, log: RunLog | None) -> None:
    """Save a grid of the averaged learner's images."""
    assert log is not None, "the first process has one"
    try:
        images = run.preview()
    except NonFiniteSampleError as error:  # of energies that are young, and learn on
        warnings.warn(f"no grid at step {run.step}: {error}", stacklevel=2)
        return
    log.image(run.step, "grid", grid(to_pil(images), columns=8))


def _loop(run: Run, log: RunLog | None, show_progress: bool) -> None:
    """Steps until the end, with log lines, checkpoints and grids on the way."""
    means, clock = Means(), _Clock(run)
    with tqdm(
        total=run.total,
        initial=run.step,
        desc=run.task.kind,
        unit="step",
        disable=disabled(show_progress),
    ) as bar:
        while not run.ended:
            run.advance(means)
            bar.update()
            if run.step % run.settings.log_every and not run.ended:
                continue
            run.seconds = clock.seconds()
            found = _record(run, log, means)
            shown = {k: v for k, v in found.items() if k in ("loss", "bits", "drop")}
            bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()})
            save, draw = clock.due()
            if save:
                run.save()
                clock.saved = time.monotonic()
            if draw:
                by_first(run.accelerator, lambda: _draw(run, log))


@usual_defaults()
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
    agreed(settings, accelerator)  # before there is a folder
    check_start(folder, resume)

    def begin() -> None:
        make_run_folder(folder)
        lock.enter_context(locked(folder))

    with ExitStack() as lock:
        by_first(accelerator, begin)
        run = Run(task, images, settings, folder, accelerator)
        with checkpointing(task.objective, settings.activation_checkpointing):
            _run(run, resume, show_progress)
        learner = run.chosen()
        return RunResult(learner, run.step, run.guard.total, run.seconds, run.best, run.state())


def _run(run: Run, resume: bool, show_progress: bool) -> None:
    """The steps of a run whose folder is locked."""
    if resume:
        run.restore()
    else:
        # Of a run that was here, and whose checkpoints are gone or broken.
        by_first(run.accelerator, lambda: shutil.rmtree(run.folder / BEST, ignore_errors=True))
        run.plan_steps()
    # Before the first checkpoint: without tensorboard no run is left that would be in the way.
    log = by_first(run.accelerator, lambda: RunLog(run.folder, resume_step=run.step))
    run.objective.train()
    with log or nullcontext():
        if not resume:
            run.save()
        _loop(run, log, show_progress and log is not None)
