r"""Many images to a folder, killed several times and started again.

    hebm-sample --dataset cifar10 --seeds 0-999 --outdir OUT        SIGKILL, again, ... until done

In the end every seed must have its file, no image may have been drawn twice (a file's time of
writing stays what it was when it was first seen, whatever happens afterwards), and the memory of
each process, which is shown, should not grow with what it has drawn.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

COMMAND = [sys.executable, "-m", "hebm_sample.cli.sample"]
MIB = 2**20


class Sample(NamedTuple):
    """A look at a process: seconds since the whole began, files so far, resident MiB."""

    seconds: float
    files: int
    mib: float


def resident_mib(pid: int) -> float:
    """Resident memory of a process, 0 where the system does not say or it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


class Watch:
    """The folder's images, and how often each was written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.start = folder, time.perf_counter()
        self.written: dict[str, set[int]] = {}

    def look(self) -> int:
        """Notes every file's time of writing; gives their number."""
        for path in self.folder.glob("*.png"):
            self.written.setdefault(path.name, set()).add(path.stat().st_mtime_ns)
        return len(self.written)

    def samples(self, child: "subprocess.Popen[bytes]") -> Iterator[Sample]:
        """A look now and then, until the process has ended."""
        while child.poll() is None:
            mib = resident_mib(child.pid)
            yield Sample(time.perf_counter() - self.start, self.look(), mib)
            time.sleep(0.5)
        self.look()


def one_run(words: list[str], watch: Watch, stop_at: int | None, quiet: bool) -> dict[str, Any]:
    """One process, killed once there are `stop_at` images; what was seen of it."""
    before, seen = watch.look(), list[Sample]()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=log)
        for sample in watch.samples(child):
            seen.append(sample)
            if not quiet:
                click.echo(f"\r{sample.files} images, {sample.mib:.0f} MiB ", nl=False, err=True)
            if stop_at is not None and sample.files >= stop_at:
                child.send_signal(signal.SIGKILL)
        log.seek(0)
        text = log.read().decode(errors="replace")
    killed = child.returncode == -signal.SIGKILL
    if child.returncode and not killed:
        raise click.ClickException(f"the command ended with {child.returncode}: {text.strip()}")
    drawing = [s.mib for s in seen if s.files > before] or [0.0]
    third = max(1, len(drawing) // 3)
    return {
        "killed": killed,
        "images_before": before,
        "images_after": watch.look(),
        "seconds": seen[-1].seconds - seen[0].seconds if seen else 0.0,
        "mib_first_third": max(drawing[:third]),
        "mib_last_third": max(drawing[-third:]),
    }


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [
        " ".join(["hebm-sample", *result["words"]]),
        "",
        f"{'run':>3} {'ended':<9}{'images':>11}{'seconds':>9}{'s/img':>8}{'most MiB':>10}",
        f"{'':>41}{'1st third':>10}{'last':>8}",
    ]
    for i, run in enumerate(result["runs"], start=1):
        new = run["images_after"] - run["images_before"]
        span = f"{run['images_before']}-{run['images_after']}"
        lines.append(
            f"{i:>3} {'killed' if run['killed'] else 'by itself':<9}{span:>11}"
            f"{run['seconds']:9.1f}{run['seconds'] / max(1, new):8.3f}"
            f"{run['mib_first_third']:10.0f}{run['mib_last_third']:8.0f}"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"files {result['files']} of {result['asked']}, written twice {result['twice']}, "
            f"left over {result['left_over']}",
        ]
    )


@click.command()
@click.option("--dataset", default="cifar10", show_default=True, help="Name, Hub id or folder.")
@click.option("-n", "--num-images", type=click.IntRange(2), default=1000, show_default=True)
@click.option("--steps", type=int, help="Gradients; the model's by default.")
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@click.option("--kills", type=click.IntRange(0), default=3, show_default=True)
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--out", type=click.Path(path_type=Path), help="Write JSON there.")
def main(
    dataset: str,
    num_images: int,
    steps: int | None,
    batch: int,
    kills: int,
    quiet: bool,
    out: Path | None,
) -> None:
    """Kill and restart a long run; ends with 1 unless every image was drawn exactly once."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "out"
        words = ["--dataset", dataset, "--seeds", f"0-{num_images - 1}", "--outdir", str(folder)]
        words += ["--batch", str(batch), *(["--steps", str(steps)] if steps else [])]
        watch, runs = Watch(folder), list[dict[str, Any]]()
        for kill in range(1, kills + 1):
            runs.append(one_run(words, watch, num_images * kill // (kills + 1), quiet))
        runs.append(one_run(words, watch, None, quiet))
        left_over = [p.name for p in folder.iterdir() if p.suffix != ".png"]
    result = {
        "words": [w if w != str(folder) else "OUT" for w in words],
        "runs": runs,
        "asked": num_images,
        "files": len(watch.written),
        "twice": sum(len(times) > 1 for times in watch.written.values()),
        "left_over": len(left_over),
    }
    click.echo(("\n" if not quiet else "") + table(result))
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if (result["files"], result["twice"], result["left_over"]) != (num_images, 0, 0):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
