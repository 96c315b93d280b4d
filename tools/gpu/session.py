"""All stages of a recipe within a number of minutes, in sittings if need be.

    RUN/run.json              what was asked for
    RUN/clock.json            seconds used so far, in all sittings
    RUN/log.jsonl             a line each time something is written
    RUN/stages/1-generator-64/checkpoint-*, model/      what --resume goes on from
    RUN/pieces/               the model so far (`pieces.py`)

A stage's end is a moment of the clock; its number of steps follows from the seconds that a step
was measured to take, and is corrected as it goes, so that the cosine of its rate ends with its time.
"""

import datetime
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hebm_sample.config import TrainingRecord
from hebm_sample.errors import TrainingDivergedError, UserInputError
from hebm_sample.io.files import mark_run_folder, parse_json, write_atomically
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.preset import Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from hebm_sample.training.recipe import Stage, stages

from . import pieces
from .packing import Packed, unpack
from .parts import Job, new_job
from .steps import LENGTH, Feed, Maps, Stepper

__all__ = ["Asked", "Session", "ends"]

PARTS = ("generator", "prior", "decoder")
UNKNOWN = 10**7  # steps, before the first are timed
FIRST = 3  # steps of a sitting that are not timed, and that are timed then
CHECK = 1.0  # seconds between looks at the clock, for which the device is waited for
LEFT = 0.98  # of a stage's time goes to steps: the rest writes
MOST_FACTOR = 4.0  # of a preset's learning rate


@dataclass(frozen=True)
class Asked:
    """What is asked of a run.

    Arguments:
        minutes: Of all sittings.
        shares: Of generator, energies and decoder.
        grown: Share of the images that a model grows to, of all time.
        steps: Of those three, in the place of time; None for time.
        batch: Images a step; None for what the device's memory suggests.
        seed: Of weights, order and noise.
        bf16: Networks in bfloat16.
        every: Seconds between writes.
        piece: MiB of a file of weights.
        stop_after: Minutes of this sitting, after which it ends to be resumed; None for no limit.
    """

    minutes: float
    shares: tuple[float, float, float] = (0.4, 0.45, 0.15)
    grown: float = 0.4
    steps: tuple[int, int, int] | None = None
    batch: int | None = None
    seed: int = 0
    bf16: bool = True
    every: float = 60.0
    piece: float = 15.0
    stop_after: float | None = None

    def identity(self) -> dict[str, Any]:
        """What must agree when the run is resumed."""
        kept = ("minutes", "shares", "grown", "steps", "batch", "seed", "bf16")
        return json.loads(json.dumps({name: getattr(self, name) for name in kept}))


def ends(found: Sequence[Stage], asked: Asked, first: int = 0) -> list[float]:
    """The second at which each stage ends; 0 for those before `first`.

    Arguments:
        first: The stage that the run begins with: the time of those before is shared out.
    """
    part = dict(zip(PARTS, asked.shares, strict=True))
    sizes = sorted({stage.size for stage in found})
    weights = []
    for stage in found:
        grows = stage.size != sizes[0]
        # Both runs of a grown model train image decoders: alike, from its share of the time.
        own = part[stage.part] if not grows else 0.5 / (len(sizes) - 1)
        level = 1.0 if len(sizes) == 1 else asked.grown if grows else 1 - asked.grown
        base = sum(asked.shares) if not grows else 1.0
        weights.append(own / base * level)
    weights = [0.0] * first + weights[first:]
    total, reached, moments = sum(weights), 0.0, []
    for weight in weights:
        reached += weight
        moments.append(60 * asked.minutes * reached / total)
    return moments


def default_batch(size: int, device: torch.device, preset: TrainSettings) -> int:
    """Images a step: the preset's on a CPU; on a GPU a power of two up to 512 for which about half
    of the memory is enough, at 10 kB a pixel of the image's side squared.
    """
    if device.type != "cuda":
        return preset.batch_size
    room = torch.cuda.get_device_properties(device).total_memory / 2
    return 2 ** int(math.log2(min(512.0, max(16.0, room / (10_000 * size**2)))))


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


class Session:
    """One sitting of a run.

    Arguments:
        preset: What is trained.
        packed: Folder and manifest of the images.
        out: The run's folder.
        resume: Go on with what is there.
        start: A model and the number of the stage to begin with, from pieces of another run.
        tell: Told, in a line, what happens.
    """

    def __init__(
        self,
        preset: Preset,
        packed: tuple[Path, dict[str, Any]],
        out: Path,
        asked: Asked,
        device: torch.device,
        *,
        resume: bool = False,
        start: tuple[Pipeline, int] | None = None,
        tell: Callable[[str], object] = print,
    ) -> None:
        self.preset, self.packed, self.out, self.asked = preset, packed, out, asked
        self.device, self.start, self.tell = device, start, tell
        self.stages = stages(preset, out / "stages")
        self._open(resume)
        self.ends = ends(self.stages, asked, start[1] if start else 0)
        self.used = self._clock()
        self.began = self.written = time.monotonic()
        self.stopped = False
        self.images: dict[int, Packed] = {}

    def _open(self, resume: bool) -> None:
        """Make the run's folder, or check that it is this run's."""
        path = self.out / "run.json"
        first = self.start[1] if self.start else 0
        images = {k: v["identity"] for k, v in self.packed[1]["sizes"].items()}
        want = {"preset": self.preset.name, "images": images, "first": first}
        want |= self.asked.identity()
        if path.exists():
            found = parse_json(path.read_bytes())
            other = [k for k in want if found.get(k) != want[k]]
            if not resume or other:
                how = f"with other {', '.join(other)}" if other else "go on with --resume"
                raise UserInputError(
                    f"{self.out} holds a run, {how}; or choose another folder"
                    if not resume
                    else f"{self.out} holds a run {how}; resume with the same options"
                )
            return
        if resume:
            raise UserInputError(f"nothing to resume in {self.out}; start without --resume")
        self.out.mkdir(parents=True, exist_ok=True)
        mark_run_folder(self.out)
        write_atomically(path, (json.dumps(want, indent=1) + "\n").encode())

    def _clock(self) -> float:
        path = self.out / "clock.json"
        return parse_json(path.read_bytes())["used"] if path.exists() else 0.0

    @property
    def now(self) -> float:
        """Seconds used, in all sittings."""
        return self.used + time.monotonic() - self.began

    @property
    def must_stop(self) -> bool:
        """Whether this sitting is over."""
        limit = self.asked.stop_after
        late = limit is not None and time.monotonic() - self.began > 60 * limit
        return self.stopped or late

    def run(self) -> bool:
        """Train what is left; whether all is done."""
        model = self.start[0] if self.start else None
        first = self.start[1] if self.start else 0
        for index, stage in enumerate(self.stages):
            if index < first:
                continue
            if not stage.done and not self._stage(index, stage, model):
                return False
            model = Pipeline.from_pretrained(stage.folder / "model", device="cpu")
        assert model is not None
        model.save_pretrained(self.out / "model", overwrite=True)
        return True

    def _stage(self, index: int, stage: Stage, model: Pipeline | None) -> bool:
        """Begin a stage or go on with it; whether it is done."""
        packed = self._images(stage.size)
        batch = self.asked.batch or default_batch(stage.size, self.device, stage.settings)
        if (checkpoint := latest_checkpoint(stage.folder)) is not None:
            batch = read_state(checkpoint)["batch"]
        while True:
            try:
                with self._stream():
                    return StageRun(self, index, stage, model, packed, batch).train()
            except torch.OutOfMemoryError:
                if latest_checkpoint(stage.folder) is not None or batch < 8:
                    raise
            batch //= 2
            self.tell(f"{stage.folder.name}: no memory for {2 * batch} images, {batch} now")
            torch.cuda.empty_cache()

    def _stream(self) -> AbstractContextManager[Any]:
        """Steps that may be captured are not made on the default stream."""
        if self.device.type != "cuda":
            return nullcontext()
        torch.cuda.synchronize()
        return torch.cuda.stream(torch.cuda.Stream())

    def _images(self, size: int) -> Packed:
        if size not in self.images:
            self.images.clear()  # the smaller images are done with
            began = time.monotonic()
            self.images[size] = found = unpack(*self.packed, size, self.device)
            took = time.monotonic() - began
            self.tell(f"{len(found.images):,} images of {size}x{size} decoded in {took:.1f} s")
        return self.images[size]

    def log(self, line: dict[str, Any]) -> None:
        """A line of RUN/log.jsonl, and the clock."""
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        write_atomically(self.out / "clock.json", json.dumps({"used": self.now}).encode())


class StageRun:
    """One stage of a session."""

    def __init__(
        self,
        session: Session,
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
        )
        with self.stepper.weights_of(self.stepper.best if self.best else self.stepper.ema):
            return self.job.model(record)

    def _finish(self) -> None:
        """The stage's model, which the next one begins with; its checkpoint has done its work."""
        if latest_checkpoint(self.stage.folder) is None or self.counted:
            self._write(1.0, done=True)
        self._model().save_pretrained(self.stage.folder / "model", overwrite=True)
