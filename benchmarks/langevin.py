r"""How fast a Langevin step is, beside the formulas written down plainly and the machine's limit.

    reference    one step straight from the formulas: T with its last block, one net after another,
                 the level embedded anew, two autograd calls (F; the Gaussian terms), one update a
                 tensor, PyTorch's default memory layout
    ours         `langevin_step` on `ChainEnergy`, as `Pipeline` runs it: on several cores parts of
                 the batch side by side
    plain        the reference in a process of its own that leaves freed memory to the system, as
                 any loop without `pipeline/runtime/malloc.py` does; before and after the others,
                 the mean of the two
    whole        ours without parts: torch shares each operation out among the cores
    compiled     ours with --compile
    bfloat16     ours with --bfloat16: networks in bfloat16, u in float32
    share        FLOPs of our step / seconds / the convolution peak of the same run

They take turns, a level's steps each, and medians are compared, so that ratios hold on a busy
machine too. That reference and ours agree is asserted, bfloat16's to its precision; nothing else
is.
"""

import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hebm_sample import Pipeline, __version__
from hebm_sample.latents import Latents, concatenate
from hebm_sample.pipeline.runtime.frozen_energy import ChainEnergy, CompiledTerms
from hebm_sample.pipeline.runtime.process import tune_process
from hebm_sample.pipeline.runtime.threads import Stop, in_threads, part_bounds
from hebm_sample.prior.density import conditional_at, net_level
from hebm_sample.sampling.langevin import langevin_step
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.sample import gradients_per_level
from hebm_sample.sampling.step_size import transition

MATMUL_SIDES = (512, 1024)
CONVOLUTIONS = ((64, 8), (64, 16), (128, 8), (128, 16), (256, 8), (256, 16))  # channels, side
LEVEL = 2  # where steps are timed; every level costs the same
STEPS = 8  # in a row, as many as a level has by default
Step = Callable[[], object]


# ---- the reference


class Reference:
    """The networks of a pipeline as a plain loop has them, and that loop.

    Arguments:
        pipe: With the "recovery" sampler, the "corrected" kernel and log SNR.
    """

    def __init__(self, pipe: Any) -> None:
        plain = [copy.deepcopy(m).requires_grad_(False) for m in (pipe.generator, pipe.prior)]
        self.generator, self.prior = (m.to(memory_format=torch.contiguous_format) for m in plain)
        self.schedule, self.config = pipe.model.schedule, pipe.config.sampling

    def slope(self, u: Latents, t: int) -> Latents:
        """grad F(u, t)."""
        leaves = tuple(g.detach().requires_grad_() for g in u)
        level = torch.full((len(u[0]),), float(net_level(self.schedule, t, "log_snr")))
        with torch.enable_grad():
            terms = self.prior(self.generator.transform(leaves), level.to(leaves[0].device))
            return torch.autograd.grad(terms.sum(), leaves)

    def gaussian_slope(self, u: Latents, u_next: Latents, t: int) -> Latents:
        """Gradient of -|u|^2 / 2 - r |u_next - a u|^2 / (2 sigma^2)."""
        table = self.schedule
        a, sigma, r = (float(x[t + 1]) for x in (table.a, table.sigma, table.recovery))
        leaves = tuple(g.detach().requires_grad_() for g in u)
        with torch.enable_grad():
            value = sum(
                -g.square().sum() / 2 - r * (n - a * g).square().sum() / (2 * sigma**2)
                for g, n in zip(leaves, u_next, strict=True)
            )
            return torch.autograd.grad(value, leaves)

    def variances(self, t: int) -> tuple[float, float]:
        """Step size s and the corrected kernel's reference variance C."""
        chain = transition(self.schedule, t, self.config)
        return float(chain.step_size), float(chain.reference_variance)

    def step(self, u: Latents, u_next: Latents, t: int, noise: Latents) -> Latents:
        """u + (s/2) grad log p(u | u_next) + sqrt(v) eps."""
        s, c = self.variances(t)
        v = s * (1 - s / (4 * c))
        slopes, pulls = self.slope(u, t), self.gaussian_slope(u, u_next, t)
        return tuple(
            g + s / 2 * (d + e) + v**0.5 * eps
            for g, d, e, eps in zip(u, slopes, pulls, noise, strict=True)
        )

    def flow(self, u: Latents, t: int, sigma_to: float) -> Latents:
        """One step of the probability flow from level t down to `sigma_to`."""
        theta, theta_to = (torch.tensor(x).double().asin() for x in (self.levels[t], sigma_to))
        weight = float(theta.tan() * (theta - theta_to).sin())
        return tuple(g + weight * d for g, d in zip(u, self.slope(u, t), strict=True))

    @property
    def levels(self) -> tuple[float, ...]:
        """cum_sigma of t = 0 ... T."""
        return self.schedule.levels

    def down(self, u: Latents, t: int, noise: NoiseStreams) -> Latents:
        """From level t to where the chain below starts; from level 0 to no noise."""
        if t == 0 or self.config.start == "flow":
            return self.flow(u, t, self.levels[t - 1] if t else 0.0)
        a, sigma = float(self.schedule.a[t]), float(self.schedule.sigma[t])
        rows = zip(u, self.slope(u, t), noise.normal(), strict=True)
        return tuple(a * g + sigma**2 / a * d + sigma * eps for g, d, eps in rows)

    def chain(
        self, u: Latents, u_next: Latents, t: int, steps: int, noise: NoiseStreams
    ) -> Latents:
        """Steps at level t: `step`, with momentum where the config has any."""
        s, c = self.variances(t)
        spread, rho, before = (s * (1 - s / (4 * c))) ** 0.5, self.config.momentum, None
        p = noise.normal() if steps else ()
        for _ in range(steps):
            slopes = zip(self.slope(u, t), self.gaussian_slope(u, u_next, t), strict=True)
            slope = tuple(d + e for d, e in slopes)
            if before is not None:
                pushed = zip(p, before, slope, noise.normal(), strict=True)
                p = tuple(
                    rho * (g + s / (2 * spread) * (old + new)) + (1 - rho**2) ** 0.5 * eps
                    for g, old, new, eps in pushed
                )
            u = tuple(g + s / 2 * d + spread * q for g, d, q in zip(u, slope, p, strict=True))
            before = slope
        return u

    def sample(self, seeds: list[int]) -> Latents:
        """u_0 of the seeds: T levels of chains, each with a step down at its end."""
        noise = NoiseStreams(seeds, self.generator.latent_shapes)
        u = u_next = noise.normal()
        budget = gradients_per_level(self.config.steps, self.schedule.num_levels)
        for t in reversed(range(self.schedule.num_levels)):
            u = self.chain(u, u_next, t, budget[t] - 1, noise)
            u_next, u = u, self.down(u, t, noise)
        return u


# ---- measuring


class Clock:
    """Seconds of a call: of the wall, or of this thread's time on the CPU."""

    def __init__(self, kind: str, device: torch.device) -> None:
        self.read = time.perf_counter if kind == "wall" else time.thread_time
        self.device = device

    def __call__(self, call: Step) -> float:
        """With the device's queue emptied before and after."""
        self._wait()
        start = self.read()
        call()
        self._wait()
        return self.read() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def medians(self, calls: dict[str, Step], repeats: int) -> dict[str, float]:
        """Of calls that take turns, after one round to warm up."""
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(repeats + 1):
            for name, call in calls.items():
                spent = self(call)
                if turn:
                    seconds[name].append(spent)
        return {name: statistics.median(spent) for name, spent in seconds.items()}


def peaks(clock: Clock, repeats: int) -> dict[str, float]:
    """Highest GFLOP/s of a float32 matrix product and of a 3x3 convolution, batch 16."""
    best = {"matmul": 0.0, "convolution": 0.0}

    def note(kind: str, flops: int, call: Step) -> None:
        clock(call)
        fastest = min(clock(call) for _ in range(repeats))
        best[kind] = max(best[kind], flops / fastest / 1e9)

    for n in MATMUL_SIDES:
        a = torch.randn(n, n, device=clock.device)
        note("matmul", 2 * n**3, lambda a=a: a @ a)
    for channels, side in CONVOLUTIONS:
        x = torch.randn(16, channels, side, side, device=clock.device)
        w = torch.randn(channels, channels, 3, 3, device=clock.device)
        x, w = (y.to(memory_format=torch.channels_last) for y in (x, w))
        flops = 2 * x.numel() * channels * 9
        note("convolution", flops, lambda x=x, w=w: F.conv2d(x, w, padding=1))
    return best


def flops_of(energy: Callable[[Latents, Tensor], Tensor], u: Latents, level: Tensor) -> int:
    """Of F and its gradient in u."""
    leaves = tuple(g.detach().requires_grad_() for g in u)
    # The counter's hooks cannot sit on leaves.
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        terms = energy(tuple(1 * g for g in leaves), level)
        torch.autograd.grad(terms.sum(), leaves)
    return counter.get_total_flops()


def parts(pipe: Any, energy: ChainEnergy, u: Latents) -> dict[str, Step]:
    """The pieces of our step, each as a call of its own."""
    leaves = tuple(g.detach().requires_grad_() for g in u)
    level = torch.full((len(u[0]),), 0.5, device=pipe.device)
    known = energy.prior.at(level)
    with torch.enable_grad():
        top = energy.generator.transform(leaves)
        # h_1 is a constant, and h_{L+1} is not read.
        inner = (*top.z, *top.h[1:])
        fresh = copy.copy(top)._replace(
            **{k: tuple(x.detach().requires_grad_() for x in getattr(top, k)) for k in "zuh"}
        )
        total = energy.prior(fresh, known).sum()
    ones = [torch.ones_like(x) for x in inner]
    read = (*fresh.z, *fresh.u, *fresh.h[1:])
    still = conditional_at(
        lambda u, level: torch.zeros(len(level), 1, device=pipe.device),
        pipe.model.schedule,
        LEVEL,
        u,
    )
    noise = NoiseStreams(range(len(u[0])), pipe.generator.latent_shapes, device=pipe.device)

    def with_grad(call: Step) -> Step:
        return torch.enable_grad()(call)

    return {
        "map forward": with_grad(lambda: energy.generator.transform(leaves)),
        "map backward": lambda: torch.autograd.grad(inner, leaves, ones, retain_graph=True),
        "energies forward": with_grad(lambda: energy.prior(fresh, known)),
        "energies backward": lambda: torch.autograd.grad(total, read, retain_graph=True),
        "update": lambda: langevin_step(u, still, 0.1, u),
        "noise": noise.normal,
    }


def in_bfloat16(energy: ChainEnergy) -> Callable[[Latents, Tensor], Tensor]:
    """The same terms with the networks as `Pipeline` has them under dtype bfloat16."""

    def terms(u: Latents, level: Tensor) -> Tensor:
        with torch.autocast(u[0].device.type, dtype=torch.bfloat16):
            return energy(u, level).float()

    return terms


def steps(
    pipe: Any, batch: int, compiled: bool, half: bool
) -> tuple[dict[str, Step], dict[str, Any]]:
    """The steps to compare at a batch size, and what else is known of them."""
    reference = Reference(pipe)
    energy = ChainEnergy(pipe.generator, pipe.prior)
    noise = NoiseStreams(range(batch), pipe.generator.latent_shapes, device=pipe.device)
    u, u_next, eps = (noise.normal() for _ in range(3))
    s, c = reference.variances(LEVEL)

    cores = torch.get_num_threads() if pipe.device.type == "cpu" else 1

    def ours(energy: Any, cores: int = cores) -> Callable[[], Latents]:
        def walk(start: int, end: int) -> Iterator[Latents]:
            x, x_next, noise = (tuple(g[start:end] for g in row) for row in (u, u_next, eps))
            density = conditional_at(energy, pipe.model.schedule, LEVEL, x_next)
            while True:
                for _ in range(STEPS):
                    found, _ = langevin_step(x, density, s, noise, reference_variance=c)
                yield found

        walks = [walk(*bounds) for bounds in part_bounds(batch, cores)]
        together = in_threads(walks, Stop()) if len(walks) > 1 else zip(*walks, strict=True)
        return lambda: concatenate(next(together))

    calls: dict[str, Any] = {
        "reference": _repeated(reference, u, u_next, eps),
        "ours": ours(energy),
    }
    if len(part_bounds(batch, cores)) > 1:
        calls["whole"] = ours(energy, 1)
    compile_seconds = None
    if compiled:
        start = time.perf_counter()
        calls["compiled"] = ours(ChainEnergy(pipe.generator, pipe.prior, compiled=CompiledTerms()))
        calls["compiled"]()
        compile_seconds = time.perf_counter() - start
    if half:
        # A copy: what it keeps of a level is in the precision in which it was first asked.
        calls["bfloat16"] = ours(in_bfloat16(ChainEnergy(pipe.generator, pipe.prior)))
    expected = reference.step(u, u_next, LEVEL, eps)
    for name in list(calls)[1:]:
        found: Any = calls[name]()
        apart = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        allowed = 0.05 if name == "bfloat16" else 1e-4
        assert apart < allowed, f"{name} is {apart:g} away from the reference"
    level = torch.full((batch,), 0.5, device=pipe.device)
    facts = {
        "gflop": flops_of(energy, u, level) / 1e9,
        "reference_gflop": flops_of(_plain(reference), u, level) / 1e9,
        "parts": parts(pipe, energy, u),
        "compile_seconds": compile_seconds,
    }
    return calls, facts


def _repeated(reference: Reference, u: Latents, u_next: Latents, eps: Latents) -> Step:
    """As many steps of the reference as are timed together."""

    def call() -> Latents:
        for _ in range(STEPS):
            found = reference.step(u, u_next, LEVEL, eps)
        return found

    return call


def _plain(reference: Reference) -> Callable[[Latents, Tensor], Tensor]:
    return lambda u, level: reference.prior(reference.generator.transform(u), level)


def plain_process(options: list[str]) -> list[float]:
    """Seconds of a step of the reference, a number per batch size, in another process."""
    command = [sys.executable, __file__, *options, "--reference-only"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def reference_seconds(pipe: Any, batches: list[int], repeats: int, clock: Clock) -> list[float]:
    """What `plain_process` runs."""
    found = []
    for batch in batches:
        reference = Reference(pipe)
        noise = NoiseStreams(range(batch), pipe.generator.latent_shapes, device=pipe.device)
        rows = [noise.normal() for _ in range(3)]
        call = _repeated(reference, *rows)
        found.append(clock.medians({"plain": call}, repeats)["plain"] / STEPS)
    return found


def measure(
    pipe: Any,
    batches: list[int],
    repeats: int,
    clock: Clock,
    compiled: bool,
    half: bool = False,
) -> dict[str, Any]:
    """Peaks, and a row per batch size."""
    result: dict[str, Any] = {"peaks": peaks(clock, repeats), "rows": []}
    for batch in batches:
        calls, facts = steps(pipe, batch, compiled, half)
        seconds = {k: v / STEPS for k, v in clock.medians(calls, repeats).items()}
        pieces = clock.medians(facts.pop("parts"), repeats)
        result["rows"].append(
            {"batch": batch, "seconds": seconds, "parts": pieces, **facts}
            | {"over_reference": seconds["ours"] / seconds["reference"]}
            | {"share": facts["gflop"] / seconds["ours"] / result["peaks"]["convolution"]}
        )
    return result


# ---- the table


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    machine, best = result["machine"], result["peaks"]
    lines = [
        f"{machine['model']}, {machine['device']} ({machine['where']}), torch {machine['torch']}, "
        f"hebm_sample {machine['version']}, {machine['clock']} time, medians",
        f"peak GFLOP/s: matrix product {best['matmul']:.0f}, "
        f"convolution {best['convolution']:.0f}",
        "",
        f"{'batch':>5} {'step':<10}{'ms':>9}{'steps/s':>9}"
        f"{'x plain':>8}{'x ref.':>8}{'GFLOP':>8}{'share':>7}",
    ]
    for row in result["rows"]:
        for name, seconds in row["seconds"].items():
            plain = name in ("plain", "reference")
            gflop = row["reference_gflop" if plain else "gflop"]
            lines.append(
                f"{row['batch']:>5} {name:<10}{1e3 * seconds:9.2f}{1 / seconds:9.1f}"
                f"{seconds / row['seconds'].get('plain', float('nan')):8.2f}"
                f"{seconds / row['seconds']['reference']:8.2f}{gflop:8.2f}"
                f"{gflop / seconds / best['convolution']:7.2f}"
            )
    names = list(result["rows"][0]["parts"])
    lines += ["", f"{'ms of ours':<20}" + "".join(f"{r['batch']:>9}" for r in result["rows"])]
    lines += [
        f"{name:<20}" + "".join(f"{1e3 * r['parts'][name]:9.2f}" for r in result["rows"])
        for name in names
    ]
    return "\n".join(lines)


@click.command()
@click.option("--dataset", default="celeba64", show_default=True, help="Name, Hub id or folder.")
@click.option(
    "--batch", "batches", type=int, multiple=True, default=(1, 16, 64), show_default=True
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Measure torch.compile too.")
@click.option("--bfloat16", "half", is_flag=True, help="Measure networks in bfloat16 too.")
@click.option("--default-heap", is_flag=True, help="Leave freed memory to the system.")
@click.option("--reference-only", is_flag=True, hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON there too.")
def main(
    dataset: str,
    batches: tuple[int, ...],
    device: str,
    repeats: int,
    clock: str,
    compiled: bool,
    half: bool,
    default_heap: bool,
    reference_only: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Measure one Langevin step. --clock cpu counts this thread's own time, for a machine that is
    busy with other work; it needs OMP_NUM_THREADS=1 and the CPU.
    """
    pipe = Pipeline.from_pretrained(dataset, device=device)
    cuda = pipe.device.type == "cuda"
    if clock == "cpu" and (cuda or torch.get_num_threads() > 1):
        raise click.UsageError("--clock cpu needs --device cpu and OMP_NUM_THREADS=1")
    if not (default_heap or reference_only):
        tune_process()
    timer = Clock(clock, pipe.device)
    if reference_only:
        with torch.no_grad():
            click.echo(json.dumps(reference_seconds(pipe, list(batches), repeats, timer)))
        return
    options = ["--dataset", dataset, "--device", device, "--repeats", str(repeats)]
    options += ["--clock", clock, *(x for b in batches for x in ("--batch", str(b)))]
    gpu = torch.cuda.get_device_name(pipe.device) if cuda else None
    before = plain_process(options)
    with torch.no_grad():
        result = measure(pipe, list(batches), repeats, timer, compiled, half)
    after = plain_process(options)
    for row, *two in zip(result["rows"], before, after, strict=True):
        row["seconds"] = {"plain": statistics.fmean(two), **row["seconds"]}
        row["over_plain"] = row["seconds"]["ours"] / row["seconds"]["plain"]
    result["machine"] = {
        "model": pipe.name,
        "device": str(pipe.device),
        "where": gpu or f"{torch.get_num_threads()} threads of {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "version": __version__,
        "clock": clock,
    }
    text = json.dumps(result, indent=2)
    click.echo(text if as_json else table(result))
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
