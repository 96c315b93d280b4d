"""A model on a lent GPU, in a given number of minutes, none of which are spent on finding out how.

    python tools/train_on_gpu.py pack --data DATA --preset celeba64 --out packed
    python tools/train_on_gpu.py train --packed packed --preset celeba64 --minutes 14 --out run
    python tools/train_on_gpu.py collect run --out back      # at any moment, to be fetched
    python tools/train_on_gpu.py join back --out model
    hebm-sample --dataset model

    python tools/train_on_gpu.py --rehearse                  # all of it, toy size, on the CPU

It does what `hebm-train recipe` does, with images, order, noise and steps on the device
(`gpu/steps.py`), and with time in the place of steps (`gpu/session.py`). docs/many-gpus.md has the
lines to type and the arithmetic of sizes.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
import torch
from gpu import pieces
from gpu.packing import pack as pack_images
from gpu.packing import read_manifest
from gpu.session import Asked, Session
from gpu.steps import CaptureError
from PIL import Image

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.errors import UserInputError
from hebm_sample.pipeline.device import pick_device
from hebm_sample.presets.models import find_preset
from hebm_sample.training.overrides import changed

PATH = click.Path(path_type=Path)
BEGAN = "TRAIN_ON_GPU_BEGAN"  # of a sitting that goes on in another process
KINDS = click.Choice(["generator", "prior", "decoder"])


def _numbers(kind: type, minimum: float) -> Callable[..., Any]:
    def read(_: Any, __: Any, text: str | None) -> tuple[Any, ...] | None:
        if text is None:
            return None
        try:
            found = tuple(kind(part) for part in text.split(","))
        except ValueError:
            found = ()
        if len(found) != 3 or min(found) < minimum:
            raise click.BadParameter(
                f"{text!r}; give three numbers, of generator, energies and decoder"
            )
        return found

    return read


def _limits(_: Any, __: Any, texts: tuple[str, ...]) -> dict[int, int]:
    try:
        pairs = (text.split("=") for text in texts)
        return {int(size): int(count) for size, count in pairs}
    except ValueError:
        raise click.BadParameter(
            f"{', '.join(texts)}; write SIDE=ROWS, such as 256=3000"
        ) from None


class Group(OneLineErrors, click.Group):
    """Commands whose errors are one line."""


def _rehearse(ctx: click.Context, _: Any, asked: bool) -> None:
    if asked:
        with tempfile.TemporaryDirectory() as folder:
            rehearse(Path(folder))
        ctx.exit()


@click.group(cls=Group)
@click.option(
    "--rehearse",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_rehearse,
    help="All of it at toy size on the CPU, in less than a minute.",
)
def main() -> None:
    """Train a model on a GPU that is there for some minutes."""


@main.command(cls=OneLineErrors)
@click.option("--data", required=True, metavar="SOURCE", help="As of hebm-train.")
@click.option("--preset", required=True, metavar="NAME")
@click.option("--out", required=True, type=PATH, metavar="DIR")
@click.option(
    "--piece", type=click.FloatRange(0.1), default=50.0, show_default=True, metavar="MIB"
)
@click.option(
    "--kind",
    type=click.Choice(["png", "jpeg", "webp"]),
    help="Of the images' files.  [default: png if all fit one piece, else jpeg]",
)
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    callback=_limits,
    metavar="SIDE=ROWS",
    help="At most so many training images of a size, evenly spread; repeatable.",
)
@click.option("--quiet", is_flag=True)
def pack(data: str, preset: str, out: Path, quiet: bool, **options: Any) -> None:
    """Write the training images as files of limited size, with labels and held-out rows."""
    found = pack_images(data, find_preset(preset), out, progress=not quiet, **options)
    for size, about in found["sizes"].items():
        rows = [r for r in about["files"] if r["file"].startswith("train-")]
        count, total = sum(r["images"] for r in rows), sum(r["bytes"] for r in about["files"])
        click.echo(
            f"{size}x{size}: {count:,} training images, {total / 2**20:.1f} MiB in "
            f"{len(about['files'])} files, {about['kind']}"
        )


@main.command(cls=OneLineErrors)
@click.option("--packed", required=True, type=PATH, metavar="DIR", help="What pack wrote.")
@click.option("--preset", required=True, metavar="NAME")
@click.option("--minutes", required=True, type=click.FloatRange(0.01), help="Of all sittings.")
@click.option("--out", required=True, type=PATH, metavar="DIR", help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--stop-after", type=click.FloatRange(0.01), metavar="MINUTES", help="Of a sitting.")
@click.option("--start", type=PATH, metavar="PIECES", help="Go on from pieces of a lost run.")
@click.option(
    "--shares", default="0.4,0.45,0.15", show_default=True, callback=_numbers(float, 0.01)
)
@click.option("--grown", type=click.FloatRange(0.01, 0.99), default=0.4, show_default=True)
@click.option("--steps", metavar="N,N,N", callback=_numbers(int, 1), help="In the place of time.")
@click.option("--batch", type=click.IntRange(1), help="[default: by the device's memory]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--every", type=click.FloatRange(0.0), default=60.0, show_default=True, metavar="S")
@click.option(
    "--piece", type=click.FloatRange(0.1), default=15.0, show_default=True, metavar="MIB"
)
@click.option("--float32", is_flag=True, help="No bfloat16.")
@click.option("--no-graphs", is_flag=True, help="Launch all steps kernel by kernel.")
@click.option(
    "--set",
    "changes",
    type=(KINDS, str),
    multiple=True,
    metavar="PART NAME=VALUE",
    help="As --set of hebm-train PART; repeatable. Give it to every sitting.",
)
@click.option("--device", default="auto", show_default=True)
def train(packed: Path, preset: str, out: Path, **options: Any) -> None:
    """Train generator, energies and sharp decoder one after another; writes DIR/model at its end,
    and DIR/pieces all along.

    SIGTERM and --stop-after end a sitting; --resume goes on from it.
    """
    found = find_preset(preset)
    for kind, change in options.pop("changes"):
        found = changed(found, kind, [change])
    start, resume = options.pop("start"), options.pop("resume")
    device = pick_device(options.pop("device"))
    _settle(device)
    bf16, graphs = not options.pop("float32"), not options.pop("no_graphs")
    asked = Asked(bf16=bf16, graphs=graphs, **options)
    session = Session(
        found,
        (packed, read_manifest(packed, found)),
        out,
        asked,
        device,
        resume=resume,
        start=_begun(start) if start else None,
        began=_sitting(),
        tell=lambda line: click.echo(line, err=True),
    )
    with _terminated(session):
        try:
            done = session.run()
        except CaptureError as error:
            _begin_again(session, error)
    if done:
        click.echo(f"model in {out / 'model'} after {session.now:.0f} s; hebm-sample --dataset it")
    else:
        click.echo(f"stopped after {session.now:.0f} s; go on with the same line and --resume")


def _sitting() -> tuple[float, float] | None:
    """When this sitting began and what was used before it, if another process began it."""
    if BEGAN not in os.environ:
        return None
    began, used = os.environ[BEGAN].split()
    return float(began), float(used)


def _begin_again(session: Session, error: CaptureError) -> NoReturn:
    """Go on in a fresh process: in this one CUDA may be of no more use."""
    click.echo(f"{error}; going on without graphs there", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    again = [] if "--resume" in sys.argv else ["--resume"]
    os.environ[BEGAN] = f"{session.began} {session.used}"
    os.execv(sys.executable, [sys.executable, *sys.argv, *again])


def _settle(device: torch.device) -> None:
    """What makes a GPU fast and holds for the whole process."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def _begun(folder: Path) -> tuple[Any, int]:
    """A model from pieces, and the number of the stage that goes on from it."""
    model, found = pieces.join(folder)
    about = found["about"]
    if about["whole"]:
        raise UserInputError(
            f"{folder} holds a model that is trained to its end: nothing is left to train; make a "
            "folder of it with join"
        )
    return model, about["stage"] + about["done"]


@contextmanager
def _terminated(session: Session) -> Iterator[None]:
    """A first SIGTERM ends the sitting after the step at hand."""

    def stop(*_: Any) -> None:
        session.stopped = True

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@main.command(cls=OneLineErrors)
@click.argument("run", type=PATH)
@click.option("--out", required=True, type=PATH, metavar="DIR")
def collect(run: Path, out: Path) -> None:
    """Copy the newest whole version of RUN's model, to be fetched."""
    for path in pieces.collect(run, out):
        click.echo(f"{path.stat().st_size:>12,} {path}")


@main.command(cls=OneLineErrors)
@click.argument("folder", type=PATH)
@click.option("--out", required=True, type=PATH, metavar="DIR")
@click.option("--overwrite", is_flag=True, help="Replace the model that is there.")
def join(folder: Path, out: Path, overwrite: bool) -> None:
    """Make a model folder of the pieces in FOLDER."""
    model, found = pieces.join(folder)
    model.save_pretrained(out, overwrite=overwrite)
    about = found["about"]
    click.echo(f"{about['name']}, step {about['step']} of {about['total']}: model in {out}")
    for record in model.config.training:
        click.echo(f"  {record}")


def rehearse(folder: Path) -> None:
    """Pack, train in two sittings, collect, join and sample, at toy size; each by its command."""
    began = time.monotonic()
    _discs(folder / "images")
    at = {k: str(folder / k) for k in ("images", "packed", "run", "back", "model")}
    train_line = ["train", "--packed", at["packed"], "--preset", "tiny", "--minutes", "1"]
    train_line += ["--out", at["run"], "--steps", "12,12,6", "--every", "0.5", "--device", "cpu"]
    lines = [
        ["pack", "--data", at["images"], "--preset", "tiny", "--out", at["packed"], "--quiet"],
        [*train_line, "--stop-after", "0.01"],
        [*train_line, "--resume"],
        ["collect", at["run"], "--out", at["back"]],
        ["join", at["back"], "--out", at["model"]],
    ]
    for line in lines:
        click.echo(f"$ {Path(sys.argv[0]).name} {' '.join(line)}".replace(str(folder), "."))
        main.main(line, standalone_mode=False)
    from hebm_sample.pipeline.pipeline import Pipeline

    samples = Pipeline.from_pretrained(at["model"], device="cpu")(4)
    if len(samples.images) != 4:
        raise UserInputError("the model that was made does not sample")
    click.echo(f"4 samples; {time.monotonic() - began:.0f} s in all")


def _discs(folder: Path, count: int = 60) -> None:
    """Coloured discs of 16x16 pixels."""
    folder.mkdir()
    random, (y, x) = np.random.default_rng(0), np.mgrid[:16, :16]
    for i in range(count):
        colour, (cx, cy) = random.integers(0, 256, 3), random.integers(4, 12, 2)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < random.integers(9, 25)
        pixels = np.where(inside[..., None], colour, 255 - colour).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")


if __name__ == "__main__":
    main()
