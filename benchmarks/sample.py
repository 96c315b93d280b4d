"""How long sampling takes and what the time goes into.

    start        wall time of the whole process `hebm-sample --help`
    command      wall time and peak memory of the whole process `hebm-sample`, start included
    in process   seconds per call for each sampler, beside the Gaussian prior (no chain at all):
                 gradient share = 1 - seconds(gaussian) / seconds(sampler)

Everything is measured in one run and repeated in turn, so that the ratios hold on a busy machine
too; the minimum is the figure, the median says how busy it was. Nothing is asserted.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from hebm_sample.config import SamplerName

BATCHES = (1, 16)
SAMPLERS = get_args(SamplerName)
# In bytes on macOS, in KiB elsewhere.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
COMMAND = [sys.executable, "-m", "hebm_sample.cli.sample"]


def run_process(arguments: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident MiB of one `hebm-sample`."""
    # A child's peak counts from its parent's size at the fork: nothing large may be imported here
    # before.
    with tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        child = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=stderr)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            stderr.seek(0)
            message = stderr.read().decode(errors="replace").strip()
            raise click.ClickException(f"{' '.join(arguments)} failed: {message}")
    return seconds, usage.ru_maxrss * RSS_UNIT / 2**20


def summary(seconds: list[float]) -> dict[str, float]:
    """The fastest and the middle one."""
    return {"min": min(seconds), "median": statistics.median(seconds)}


def measure_processes(
    dataset: str, num_images: int, device: str, repeats: int, help_repeats: int
) -> dict[str, Any]:
    """`--help` and a whole sampling command."""
    helps = [run_process(["--help"]) for _ in range(help_repeats)]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.png")
        words = ["--dataset", dataset, "-n", str(num_images), "--out", out, "--quiet"]
        runs = [run_process([*words, "--device", device]) for _ in range(repeats)]
    return {
        "help": {**summary([s for s, _ in helps]), "peak_mib": max(m for _, m in helps)},
        "command": {**summary([s for s, _ in runs]), "peak_mib": max(m for _, m in runs)},
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call; what it returns lies on the CPU, so no device is still at work."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def usable_samplers(pipe: Any) -> list[str]:
    """The samplers that this model's energies allow."""
    parametrization = pipe.config.prior.parametrization if pipe.config.prior else None
    return {None: [], "release": ["recovery"]}.get(parametrization, list(SAMPLERS))


def measure_samplers(dataset: str, device: str, repeats: int) -> tuple[dict[str, Any], list[Any]]:
    """Facts about the machine, and a row for each batch size and sampler."""
    import torch

    from hebm_sample import Pipeline, __version__
    from hebm_sample.pipeline.runtime.process import tune_process

    tune_process()
    pipe = Pipeline.from_pretrained(dataset, device=device)
    names = ["gaussian", *usable_samplers(pipe)]

    def call(name: str, batch: int) -> Callable[[], object]:
        how = {"prior": "gaussian"} if name == "gaussian" else {"sampler": name}
        return lambda: pipe(batch, batch_size=batch, output_type="torch", progress=False, **how)

    rows = []
    for batch in BATCHES:
        calls = {name: call(name, batch) for name in names}
        for one in calls.values():
            one()  # warm up: memory is allocated and kernels are chosen
        seconds = {name: [] for name in names}
        for _ in range(repeats):
            for name in names:
                seconds[name].append(timed(calls[name]))
        rows += [row(pipe, batch, name, seconds) for name in names]
    machine = {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(pipe.device),
        "gpu": torch.cuda.get_device_name(pipe.device) if pipe.device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "model": pipe.name,
        "resolution": pipe.config.generator.image_size,
    }
    return machine, rows


def row(pipe: Any, batch: int, name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Figures of one sampler at one batch size."""
    gradients = 0 if name == "gaussian" else pipe.sampling_config(sampler=name).gradients
    found = summary(seconds[name])
    base = min(seconds["gaussian"])
    return {
        "batch": batch,
        "sampler": name,
        "gradients": gradients,
        **found,
        "gradients_a_second": gradients / found["min"],
        "images_per_second": batch / found["min"],
        "over_gaussian": found["min"] / base,
        "gradient_share": 1 - base / found["min"] if gradients else 0.0,
    }


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    machine, processes = result["machine"], result["processes"]
    where = machine["gpu"] or f"{machine['threads']} threads of {machine['cores']} cores"
    lines = [
        f"{machine['model']} {machine['resolution']}x{machine['resolution']}, "
        f"{machine['device']} ({where}), torch {machine['torch']}, "
        f"hebm_sample {machine['version']}",
        "",
        f"{'whole process':<28}{'min s':>9}{'median s':>10}{'peak MiB':>10}",
    ]
    for key, name in (("help", "--help"), ("command", f"{result['num_images']} images")):
        p = processes[key]
        lines.append(f"{name:<28}{p['min']:9.2f}{p['median']:10.2f}{p['peak_mib']:10.0f}")
    lines += [
        "",
        f"{'batch':>5} {'sampler':<10}{'gradients':>10}{'min s':>9}{'median s':>10}"
        f"{'grad/s':>9}{'images/s':>12}{'x gaussian':>12}{'grad share':>12}",
    ]
    lines += [
        f"{r['batch']:>5} {r['sampler']:<10}{r['gradients']:>10}{r['min']:9.3f}"
        f"{r['median']:10.3f}{r['gradients_a_second']:9.1f}{r['images_per_second']:12.2f}"
        f"{r['over_gaussian']:12.2f}{r['gradient_share']:12.2f}"
        for r in result["samplers"]
    ]
    return "\n".join(lines)


@click.command()
@click.option("--dataset", default="celebahq", show_default=True, help="Name, Hub id or folder.")
@click.option(
    "-n", "--num-images", type=click.IntRange(1), default=16, show_default=True, help="Images."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Of all but --help."
)
@click.option(
    "--help-repeats", type=click.IntRange(1), default=5, show_default=True, help="Of --help."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON there too.")
def main(
    dataset: str,
    num_images: int,
    device: str,
    repeats: int,
    help_repeats: int,
    as_json: bool,
    out: Path | None,
) -> None:
    """Measure hebm-sample on this machine."""
    processes = measure_processes(dataset, num_images, device, repeats, help_repeats)
    machine, rows = measure_samplers(dataset, device, repeats)
    result = {
        "machine": machine,
        "num_images": num_images,
        "processes": processes,
        "samplers": rows,
    }
    text = json.dumps(result, indent=2)
    click.echo(text if as_json else table(result))
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
