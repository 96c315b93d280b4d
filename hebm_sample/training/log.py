"""A run's log: JSON lines in `log.jsonl`, the numbers for TensorBoard too, samples as PNG.

A line is flushed when it is written. A run that goes on from step s first cuts off what was logged
after s, so the file reads as if the run had never been interrupted. Every line is valid JSON: a
number that is not finite is written as the text "nan", "inf" or "-inf".
"""

import json
import math
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image
from torch import Tensor

from hebm_sample import __version__
from hebm_sample.errors import EnvironmentFailure
from hebm_sample.io.extras import missing_extra
from hebm_sample.io.images import png_bytes

__all__ = ["LOG_NAME", "Means", "RunLog", "read_log"]

LOG_NAME = "log.jsonl"


class RunLog:
    """Appends to the log of one run.

    Arguments:
        run_dir: The run's folder; made if need be.
        tensorboard: Also write `tensorboard/`; needs the [train] extra.
        resume_step: Steps done by the checkpoint that the run goes on from: later records are
            removed.
    """

    def __init__(
        self, run_dir: str | Path, tensorboard: bool = True, resume_step: int | None = None
    ) -> None:
        self.run_dir = Path(run_dir)
        self._writer: Any = None
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            _cut(self.run_dir / LOG_NAME, resume_step)
            self._file = (self.run_dir / LOG_NAME).open("a", encoding="utf-8")
        except OSError as error:
            raise EnvironmentFailure(
                f"the log in {self.run_dir} cannot be written: {error}"
            ) from error
        if tensorboard:
            self._writer = _summary_writer(self.run_dir / "tensorboard", resume_step)

    def log(self, step: int, /, **values: Any) -> None:
        """Append one record of numbers, texts, lists of numbers, or tensors of them."""
        plain = {name: _plain(value) for name, value in values.items()}
        record = {"step": step, **{name: _valid(value) for name, value in plain.items()}}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        if self._writer is None:
            return
        for name, value in plain.items():
            items = (
                {f"{name}/{i}": v for i, v in enumerate(value)}
                if isinstance(value, list)
                else {name: value}
            )
            for tag, number in items.items():
                if isinstance(number, (int, float)) and math.isfinite(number):
                    self._writer.add_scalar(tag, number, step)

    def image(self, step: int, name: str, image: Image.Image) -> Path:
        """Save an image as `samples/NAME-STEP.png`, whole or not at all."""
        folder = self.run_dir / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}-{step:08d}.png"
        building = folder / f".{path.name}.{os.getpid()}"
        try:
            # Else a copy of it could not be told from somebody's image.
            building.write_bytes(png_bytes(image, {"version": f"hebm_sample {__version__}"}))
            os.replace(building, path)
        finally:
            building.unlink(missing_ok=True)
        return path

    def close(self) -> None:
        """Flush and close all files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> "RunLog":
        """The log itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()


class Means:
    """Of statistics since the last log line, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.count = 0

    def add(self, stats: dict[str, Tensor]) -> None:
        """Add a step's."""
        for name, value in stats.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
        self.count += 1

    def take(self) -> dict[str, Any]:
        """The means as Python numbers and lists; what follows is counted anew."""
        means = {k: (v / self.count).tolist() for k, v in self.sums.items()} if self.count else {}
        self.sums, self.count = {}, 0
        return means


def read_log(run_dir: str | Path) -> list[dict[str, Any]]:
    """The records of a run, in the order written; a line cut short by a kill is left out."""
    path = Path(run_dir) / LOG_NAME
    return [json.loads(line) for line in _whole_lines(path)] if path.exists() else []


def _whole_lines(path: Path) -> list[str]:
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(record, dict) and "step" in record:
            lines.append(line)
    return lines


def _cut(path: Path, last_step: int | None) -> None:
    """Remove records after `last_step` and lines that a kill left unfinished, by rename."""
    if not path.exists():
        return
    kept = [
        x for x in _whole_lines(path) if last_step is None or json.loads(x)["step"] <= last_step
    ]
    text = "".join(kept).encode()
    if text == path.read_bytes():
        return
    building = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with building.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(building, path)
    finally:
        building.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Tensors and NumPy values as numbers and lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _valid(value: Any) -> Any:
    if isinstance(value, list):
        return [_valid(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _summary_writer(folder: Path, resume_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing_extra("tensorboard", "train") from error
    # purge_step makes TensorBoard drop what an interrupted run had logged from that step on.
    purge = None if resume_step is None else resume_step + 1
    try:
        return SummaryWriter(str(folder), purge_step=purge)
    except UnicodeEncodeError:
        name = os.fsencode(folder).decode(errors="backslashreplace")
        warnings.warn(
            f"nothing is logged for TensorBoard, which takes no name that is not UTF-8: {name}",
            stacklevel=2,
        )
        return None
