"""All stages of a recipe within a number of minutes, in sittings if need be.

    RUN/run.json              what was asked for
    RUN/clock.json            seconds used so far, in all sittings
    RUN/no-graphs.json        stages whose steps could not be captured, if any
    RUN/log.jsonl             a line each time something is written
    RUN/stages/1-generator-64/checkpoint-*, model/      what --resume goes on from
    RUN/pieces/               the model so far (`pieces.py`)

A stage's end is a moment of the clock (`stage.py` has its steps).
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hebm_sample.errors import UserInputError
from hebm_sample.hub.weights import content_digest
from hebm_sample.io.files import mark_run_folder, parse_json, write_atomically
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.preset import Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.checkpoint import latest_checkpoint, read_state
from hebm_sample.training.recipe import Stage, stages

from .packing import Packed, unpack
from .parts import check_objective
from .stage import PARTS, StageRun
from .steps import CaptureError

__all__ = ["Asked", "Session", "default_batch", "ends"]

MOST_IMAGES = 256.0  # a step: more of them want learning rates that nobody has tried


@dataclass(frozen=True)
class Asked:
    """What is asked of a run.

    Arguments:
        minutes: Of all sittings.
        shares: Of generator, energies and decoder.
        grown: Share of the images that a model grows to, of all time.
        steps: Of those three, in the place of time; None for time.
        batch: Images per step; None for what the device's memory suggests.
        seed: Of weights, order and noise.
        bf16: Networks in bfloat16.
        graphs: Capture steps as CUDA graphs, where there is CUDA.
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
    graphs: bool = True
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
    """Images per step: the preset's on a CPU; on a GPU a power of two up to `MOST_IMAGES` for
    which about half of the memory is enough, at 10 kB per pixel.
    """
    if device.type != "cuda":
        return preset.batch_size
    room = torch.cuda.get_device_properties(device).total_memory / 2
    return 2 ** int(math.log2(min(MOST_IMAGES, max(16.0, room / (10_000 * size**2)))))


def _read(path: Path) -> dict[str, Any] | None:
    return parse_json(path.read_bytes()) if path.exists() else None


def _content(model: Pipeline) -> str:
    parts = (model.generator, model.encoder, model.prior)
    return content_digest(*(part for part in parts if part is not None))


class Session:
    """One sitting of a run.

    Arguments:
        preset: What is trained.
        packed: Folder and manifest of the images.
        out: The run's folder.
        resume: Go on with what is there.
        start: A model and the number of the stage to begin with, from pieces of another run.
        began: When the sitting did, of `time.monotonic`, and the seconds used before it; now, and
            those of the clock, if None.
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
        began: tuple[float, float] | None = None,
        tell: Callable[[str], object] = print,
    ) -> None:
        check_objective(preset)
        self.preset, self.packed, self.out, self.asked = preset, packed, out, asked
        self.device, self.start, self.tell = device, start, tell
        self.stages = stages(preset, out / "stages")
        self._open(resume)
        self.ends = ends(self.stages, asked, start[1] if start else 0)
        self.graphless: dict[str, str] = _read(out / "no-graphs.json") or {}
        self.began, self.used = began or (time.monotonic(), self._clock())
        self.written = self.began
        self.stopped = False
        self.images: dict[int, Packed] = {}

    def _open(self, resume: bool) -> None:
        """Make the run's folder, or check that it is this run's."""
        path = self.out / "run.json"
        first = self.start[1] if self.start else 0
        images = {k: v["identity"] for k, v in self.packed[1]["sizes"].items()}
        want = {"preset": self.preset.name, "images": images, "first": first}
        # All that the recipe says, whatever --set made of it, and what it began with.
        said = repr([(s.part, s.size, s.preset, s.settings) for s in self.stages])
        want["recipe"] = hashlib.sha256(said.encode()).hexdigest()
        want["start"] = _content(self.start[0]) if self.start else ""
        want |= self.asked.identity()
        if path.exists():
            found = parse_json(path.read_bytes())
            other = [k for k in want if found.get(k, want[k]) != want[k]]
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
        known = _read(self.out / "clock.json")
        return known["used"] if known else 0.0

    def captures(self, stage: Stage) -> bool:
        """Whether to try and capture the steps of a stage."""
        wanted = self.asked.graphs and stage.folder.name not in self.graphless
        return wanted and self.device.type == "cuda"

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
        """Train what is left; whether all is done.

        Raises:
            CaptureError: Steps could not be captured, which is noted: another process should go on
                from the last checkpoint.
        """
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
            except CaptureError as error:
                self.graphless[stage.folder.name] = str(error)
                path = self.out / "no-graphs.json"
                write_atomically(path, json.dumps(self.graphless, indent=1).encode())
                self._keep_clock()
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
        self._keep_clock()

    def _keep_clock(self) -> None:
        write_atomically(self.out / "clock.json", json.dumps({"used": self.now}).encode())
