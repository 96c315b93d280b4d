"""Kill a training run with SIGKILL at random moments, resume it, compare it with one left alone.

Weights, averages, optimiser and exported model must agree byte for byte, the log line for line;
what may differ is how long it took.

    python tools/kill_training.py --kills 200 --seed 0

A run is 20 steps of the preset `tiny` on 24 small images, with a checkpoint after every step and
an export at its end. Every process is a fork of this one, so that a start takes no import. A
killed run is started again with --resume (or anew, if it had not come to its first checkpoint)
until it ends; then the next run begins. It leaves with 1 if any run differs or cannot go on.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has none of its parent's threads

import accelerate  # noqa: F401  (this and the next two would else be imported in every fork)
import numpy as np
import torch
import torch._dynamo
import torch.utils.tensorboard
from PIL import Image

from hebm_sample.data.dataset import load_images
from hebm_sample.hub.manifest import read_row
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.models import Preset, find_preset
from hebm_sample.training.checkpoint import latest_checkpoint, read_state
from hebm_sample.training.log import read_log
from hebm_sample.training.train import train_generator, train_prior
from hebm_sample.training.trainer import make_accelerator

STEPS = 20
Kind = Literal["generator", "score", "mle"]


def write_images(folder: Path) -> None:
    """24 images of 16x16 random pixels."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            folder / f"{i:02}.png"
        )


def short_preset() -> Preset:
    """`tiny`, cut to STEPS steps with a checkpoint after each."""
    preset = find_preset("tiny")
    often = {"steps": STEPS, "log_every": 1, "checkpoint_every": 0.0, "sample_every": 1e9}
    return replace(
        preset,
        generator_settings=replace(preset.generator_settings, batch_size=4, **often),
        prior_settings=replace(preset.prior_settings, batch_size=4, **often),
    )


def train(home: Path, folder: Path, kind: Kind) -> None:
    """One run in this process; goes on where an earlier one stopped."""
    torch.set_num_threads(1)
    images = load_images(home / "images", size=16, cache_dir=home / "cache", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a broken checkpoint was passed over
        resume = latest_checkpoint(folder) is not None
    options = {"resume": resume, "accelerator": make_accelerator("cpu"), "show_progress": False}
    if kind == "generator":
        train_generator(short_preset(), images, folder, **options)
    else:
        model = Pipeline.from_pretrained(home / "generator-whole" / "model", device="cpu")
        train_prior(short_preset(), model, images, folder, objective=kind, **options)


def start(home: Path, folder: Path, kind: Kind) -> int:
    """Train in a fork; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with open(home / "errors.txt", "a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 2)
        train(home, folder, kind)
        status = 0
    except BaseException as error:
        print(f"{folder.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def fingerprint(folder: Path) -> dict[str, object]:
    """What must not differ between two runs."""
    path = latest_checkpoint(folder)
    assert path is not None
    state = read_state(path)
    for clock in ("seconds", "started", "ended"):
        state.pop(clock)
    found: dict[str, object] = {
        file.name: file.read_bytes() for file in path.glob("*.safetensors")
    }
    found["state"] = state
    found["log"] = [{k: v for k, v in x.items() if k != "seconds"} for x in read_log(folder)]
    files = read_row(folder / "model").files
    found["model"] = {k: row for k, row in files.items() if k.endswith(".safetensors")}
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    for record in config["training"]:  # how long it took is no two runs' in common
        del record["seconds"], record["started"], record["ended"]
    found["config"] = config
    return found


def finish(home: Path, folder: Path, kind: Kind) -> float:
    """Train without a disturbance; the seconds it took."""
    begun = time.monotonic()
    _, status = os.waitpid(start(home, folder, kind), 0)
    if status:
        sys.exit(f"{folder.name} failed: {(home / 'errors.txt').read_text(encoding='utf-8')}")
    return time.monotonic() - begun


def kill_until(home: Path, kind: Kind, kills: int, seed: int) -> dict[str, Any]:
    """Kills, the steps that the killed runs had done, and how many runs ended alike or not."""
    whole = home / f"{kind}-whole"
    seconds = finish(home, whole, kind)
    expected, draw = fingerprint(whole), random.Random(seed)
    report: dict[str, Any] = {"kind": kind, "kills": 0, "runs": 0, "differing": 0, "failed": 0}
    steps: list[int] = []
    while report["kills"] < kills:
        folder = home / f"{kind}-{report['runs']}"
        status, failures = -1, 0
        while status != 0 and failures < 3:
            pid = start(home, folder, kind)
            if report["kills"] < kills:
                time.sleep(draw.uniform(0.0, 1.1 * seconds))
                os.kill(pid, signal.SIGKILL)  # to a child that has ended, it does nothing
            _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                report["kills"] += 1
                steps.append(_steps_done(folder))
            elif status:
                failures += 1
        report["runs"] += 1
        report["failed"] += status != 0
        report["differing"] += status == 0 and fingerprint(folder) != expected
    return report | {"steps_when_killed": f"{min(steps)} to {max(steps)}"}


def _steps_done(folder: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = latest_checkpoint(folder)
    return 0 if path is None else read_state(path)["step"]


def main() -> None:
    """Print the report as a line of JSON."""
    parser = argparse.ArgumentParser(description="SIGKILL training runs at random moments.")
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    parser.add_argument(
        "--kind", choices=["generator", "score", "mle"], default="generator", help="of the runs"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-training-") as place:
        home = Path(place)
        write_images(home / "images")
        if options.kind != "generator":
            finish(home, home / "generator-whole", "generator")
        report = kill_until(home, options.kind, options.kills, options.seed)
        print(json.dumps(report))
        if report["failed"]:
            print((home / "errors.txt").read_text(encoding="utf-8"), file=sys.stderr)
    sys.exit(1 if report["differing"] or report["failed"] else 0)


if __name__ == "__main__":
    main()
