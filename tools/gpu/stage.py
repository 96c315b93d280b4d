"""One stage of a session: its steps, and what is written of them.

Its number of steps follows from the seconds that a step was measured to take, and is corrected as
it goes, so that the cosine of its rate ends with its time.
"""

import datetime
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hebm_sample.config import TrainingRecord
from hebm_sample.errors import TrainingDivergedError
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.preset import Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from hebm_sample.training.elbo import group_weights
from hebm_sample.training.recipe import Stage

from . import pieces
from .packing import Packed
from .parts import Job, new_job
from .steps import LENGTH, Feed, Maps, Stepper, record_graph

if TYPE_CHECKING:
    from .session import Session

__all__ = ["PARTS", "StageRun", "scaled_settings"]

PARTS = ("generator", "prior", "decoder")
UNKNOWN = 10**7  # steps, before the first are timed
FIRST = 3  # steps of a sitting that are not timed, and that are timed then
CHECK = 1.0  # seconds between looks at the clock, for which the device is waited for
LEFT = 0.98  # of a stage's time goes to steps: the rest writes
MOST_FACTOR = 2.0  # of a preset's learning rate
SCRIPT = "tools/train_on_gpu.py"


def scaled_settings(settings: TrainSettings, batch: int, seed: int) -> TrainSettings:
    """The settings at another batch: Adam's rate goes with its root, up to `MOST_FACTOR`."""
    factor = min(MOST_FACTOR, math.sqrt(batch / settings.batch_size))
    return replace(
        settings,
        batch_size=batch,
        learning_rate=settings.learning_rate * factor,
        ema_length=settings.ema_length or LENGTH,
        seed=seed,
    )


class StageRun:
    """One stage of a session."""

    def __init__(
        self,
        session: "Session",
        index: int,
        stage: Stage,
        model: Pipeline | None,
        packed: Packed,
        batch: int,
    ) -> None:
        self.session, self.index, self.stage = session, index, stage
        self.step, self.total, self.best = 0, UNKNOWN, None
        self.entered, self.seconds = session.now, 0.0
        self.today = self.started = datetime.date.today().isoformat()
        self.fixed = None
        if session.asked.steps is not None:
            self.fixed = session.asked.steps[PARTS.index(stage.part)]
        checkpoint = latest_checkpoint(stage.folder)
        self.settings = scaled_settings(stage.settings, batch, session.asked.seed)
        self.job = self._job(model, packed)
        self.stepper = self._stepper(packed)
        if checkpoint is not None:
            with self.stepper.plain_rates():
                state = load_checkpoint(
                    checkpoint, modules=self.stepper.modules, optimizer=self.stepper.optimizer
                )
            self.step, self.total, self.best = state["step"], state["total"], state["best"]
            self.seconds, self.started = state["seconds"], state["started"]
        self.total = self.fixed or self.total
        self.sums: dict[str, Tensor] = {}
        self.counted = 0

    def _job(self, model: Pipeline | None, packed: Packed) -> Job:
        stage = replace(self.stage, preset=self._preset())
        return new_job(stage, model, packed, self.stage.folder, self.session.device)

    def _preset(self) -> Preset:
        return replace(self.stage.preset, **{f"{self.stage.part}_settings": self.settings})

    def _stepper(self, packed: Packed) -> Stepper:
        job, labels = self.job, None
        if self.stage.part == "prior":
            labels = packed.labels
        feed = Feed(packed.images, labels, self.settings, self._maps(packed))
        return Stepper(
            job.objective,
            job.learner,
            feed,
            self.settings,
            graph_from=job.graph_from,
            takes_tensor=job.takes_tensor,
            record=record_graph if self.session.captures(self.stage) else None,
            in_float=job.in_float,
            bf16=self.session.asked.bf16,
            tell=self.session.tell,
        )

    def _maps(self, packed: Packed) -> Maps | None:
        """The encoder's maps, where the objective takes them and there is room."""
        encoder, device = self.job.encoder, self.session.device
        if encoder is None or not self.settings.encode_once:
            return None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if 2 * Maps.size(encoder, len(packed.images)) > free:
                return None
        return Maps(encoder, packed.images, self.settings.flip)

    # The loop

    def train(self) -> bool:
        """Steps until the stage's end; whether it was reached in this sitting."""
        session, since = self.session, time.monotonic()
        next_check, before, timed = self.step + FIRST, self.step, False
        session.written = since
        while self.step < self.total:
            self._count(self.stepper.step(self.step, self.total))
            self.step += 1
            if self.step < next_check and self.step < self.total:
                continue
            self._wait()
            each = (time.monotonic() - since) / (self.step - before)
            if timed:  # the first choose kernels
                self._plan(each)
            next_check = self.step + max(FIRST, min(1000, round(CHECK / each) if timed else 0))
            timed = True
            stop = session.must_stop
            if stop or self.step >= self.total or self._due():
                self._write(each, done=self.step >= self.total)
                if stop and self.step < self.total:
                    return False
            since, before = time.monotonic(), self.step
        self._finish()
        return True

    def _wait(self) -> None:
        if self.session.device.type == "cuda":
            torch.cuda.synchronize()

    def _due(self) -> bool:
        return time.monotonic() - self.session.written > self.session.asked.every

    def _plan(self, each: float) -> None:
        """How many steps there will be, from the seconds that each takes."""
        if self.fixed is None:
            left = self.session.ends[self.index] - self.session.now
            self.total = self.step + max(0, int(LEFT * left / each))

    def _count(self, stats: dict[str, Tensor]) -> None:
        for name, value in stats.items():
            added = torch.nan_to_num(value.detach().float())
            self.sums[name] = self.sums[name] + added if name in self.sums else added.clone()
        self.counted += 1

    def _means(self) -> dict[str, Any]:
        """Of the statistics since the last time.

        Raises:
            TrainingDivergedError: No step had finite gradients, or as the job's `watch` raises it.
        """
        count, self.counted = max(1, self.counted), 0
        means = {k: (v / count).tolist() for k, v in self.sums.items()}
        self.sums = {}
        if means.get("skipped") == 1.0:
            raise TrainingDivergedError(
                f"{self.stage.folder.name}: no step since the last line had finite gradients; the "
                "pieces before are kept: start anew with a smaller --batch or another --seed"
            )
        # While the discriminator learns alone, the decoder is what it was.
        if self.job.watch is not None and count > 1:
            self.job.watch(means)
        return means

    # What is written

    def _write(self, each: float, done: bool) -> None:
        """Figures, the checkpoint, and the model in pieces."""
        session, means, stepper = self.session, self._means(), self.stepper
        with stepper.weights_of(stepper.ema):
            figures = self.job.measure() if self.job.measure else {}
        loss = figures.get("heldout_loss", math.nan)
        if math.isfinite(loss) and (self.best is None or loss < self.best["loss"]):
            self.best = {"step": self.step, "loss": loss}
            stepper.keep_best()
        self._save()
        about = {"stage": self.index, "name": self.stage.folder.name, "done": done}
        about |= {"whole": done and self.index == len(session.stages) - 1}
        about |= {"step": self.step, "total": self.total, "used": session.now}
        pieces.write(session.out / "pieces", self._model(), about, session.asked.piece)
        speed = self.settings.batch_size / each
        session.log({**about, "images_per_second": speed, **means, **figures})
        shown = {k: means.get(k, figures.get(k)) for k in ("bits", "drop", "pixels")} | figures
        text = ", ".join(f"{k} {v:.4g}" for k, v in shown.items() if isinstance(v, float))
        session.tell(
            f"{session.now:6.0f} s  {self.stage.folder.name}: step {self.step} of {self.total}, "
            f"{speed:.0f} images per second, {text}"
        )
        session.written = time.monotonic()

    def _seconds(self) -> float:
        return self.seconds + self.session.now - self.entered

    def _save(self) -> None:
        state = {"step": self.step, "total": self.total, "best": self.best}
        state |= {"batch": self.settings.batch_size}
        state |= {"seconds": self._seconds(), "started": self.started}
        with self.stepper.plain_rates():
            save_checkpoint(
                self.stage.folder,
                self.step,
                modules=self.stepper.modules,
                optimizer=self.stepper.optimizer,
                state=state,
                keep=1,
            )

    def _model(self) -> Pipeline:
        """The model so far: the best averages on held-out images, or the last."""
        record = TrainingRecord(
            self.stage.part,
            images=self.step * self.settings.batch_size,
            steps=self.step,
            seconds=round(self._seconds(), 1),
            started=self.started,
            ended=self.today,
            kept=self.best["step"] if self.best else self.step,
            image_size=self.stage.size,
            kl_weights=self._kl_weights(),
            **self._rows(),
        )
        with self.stepper.weights_of(self.stepper.best if self.best else self.stepper.ema):
            return self.job.model(record)

    def _kl_weights(self) -> tuple[float, ...]:
        """Of a generator that learns its latents."""
        described = self.stage.preset.generator
        if self.stage.part != "generator" or described.encoder_reduction > 1:
            return ()
        return tuple(group_weights(described, self.stage.preset.kl_weight))

    def _rows(self) -> dict[str, Any]:
        """Of the record: which rows were trained on, and what the run was."""
        about = self.session.packed[1]["sizes"][str(self.stage.size)]
        used = sum(r["images"] for r in about["files"] if r["file"].startswith("train-"))
        kind = "bfloat16" if self.session.asked.bf16 else "float32"
        note = f"by {SCRIPT}, batches of {self.settings.batch_size}, {kind}"
        if about["kind"] != "png":
            note += f", images packed as {about['kind']}"
        if used < about["rows"]:
            note += f", {used:,} of the rows evenly spread"
        return {"data": about["data"], "held_out": about["rule"], "note": note}

    def _finish(self) -> None:
        """The stage's model, which the next one begins with; its checkpoint has done its work."""
        if latest_checkpoint(self.stage.folder) is None or self.counted:
            self._write(1.0, done=True)
        self._model().save_pretrained(self.stage.folder / "model", overwrite=True)
