r"""Plots of the tutorial and of `model.md`: prior hole, levels and chains in two dimensions.

q(u) is a mixture of Gaussians on a ring, every other one faint, of mean 0 and variance 1 in each
coordinate, as N(0, I) has. Diffused it stays a mixture, so that F(u, t) = log p_t(u) + |u|^2 / 2
is known exactly, and the package's own sampler runs on it.

    python docs/figures/plane.py            # into docs/images/tutorial; needs the extra `eval`
"""

import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from hebm_sample.config import LangevinConfig
from hebm_sample.prior.density import ConditionalEBM, conditional_at
from hebm_sample.prior.schedule import DiffusionSchedule, log_snr_of
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.sample import sample_prior

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

OUT = Path(__file__).resolve().parents[1] / "images" / "tutorial"
LEVELS = (0.08, 0.2, 0.4, 0.6, 0.77, 0.92, 1.0)
MODES, WIDTH = 8, 0.1
WEIGHTS = torch.tensor([0.22, 0.03]).repeat(MODES // 2)  # faint ones: 0.12 of the whole
SIDE, POINTS = 3.2, 161
SHAPES = ((2, 1, 1),)


def centres() -> Tensor:
    """(MODES, 2), so that each coordinate of the mixture has variance 1."""
    angle = 2 * math.pi * torch.arange(MODES) / MODES
    radius = math.sqrt(2 * (1 - WIDTH**2))
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


def log_density(u: Tensor, cum_sigma: Tensor) -> Tensor:
    """log p_t of (N, 2) at noise cum_sigma (N,)."""
    cum_a = (1 - cum_sigma**2).sqrt()
    variance = (cum_a * WIDTH) ** 2 + cum_sigma**2
    square = (u[:, None] - cum_a[:, None, None] * centres()).square().sum(2)
    logits = WEIGHTS.log() - square / (2 * variance[:, None])
    return logits.logsumexp(1) - torch.log(2 * math.pi * variance)


def energy(latents: tuple[Tensor, ...], level: Tensor) -> Tensor:
    """F = log p_t + |u|^2 / 2 as the sampler asks for it: (B, 1) of latents and log SNR (B,)."""
    u = latents[0].flatten(1)
    return (log_density(u, torch.sigmoid(-level).sqrt()) + u.square().sum(1) / 2)[:, None]


def grid() -> tuple[Tensor, Tensor]:
    """Coordinates of the plane, (POINTS,), and its points, (POINTS^2, 2)."""
    axis = torch.linspace(-SIDE, SIDE, POINTS)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    return axis, torch.stack([x.flatten(), y.flatten()], dim=1)


def panels(columns: int, rows: int = 1) -> tuple[plt.Figure, list[plt.Axes]]:
    """Square plots without ticks."""
    size = (2.6 * columns, 2.8 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=80)
    for axis in axes.flat:
        axis.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), aspect="equal", xticks=[], yticks=[])
    return figure, list(axes.flat)


def shade(axis: plt.Axes, values: Tensor, title: str) -> None:
    """A density on the plane, dark where it is large."""
    side, _ = grid()
    axis.contourf(side, side, values.exp().reshape(POINTS, POINTS), 12, cmap="Blues")
    axis.set_title(title, fontsize=9)


def save(figure: plt.Figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(OUT / name, metadata={"Software": None})
    plt.close(figure)


def draw(count: int, levels: tuple[float, ...] = LEVELS, **settings: object) -> list[Tensor]:
    """u after each level of the package's sampler, (count, 2) each."""
    noise = NoiseStreams(range(count), SHAPES)
    config = replace(LangevinConfig(step_scale=1.0), **settings)
    states = sample_prior(energy, DiffusionSchedule(levels), noise, config)
    return [state.u[0].flatten(1) for state in states]


def faint(u: Tensor) -> Tensor:
    """Which of (N, 2) lie nearest to a faint mode."""
    return WEIGHTS[torch.cdist(u, centres()).argmin(1)] < 0.1


def prior_hole() -> None:
    figure, (left, middle, right) = panels(3)
    stream = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(WEIGHTS, 600, replacement=True, generator=stream)
    q = centres()[chosen] + WIDTH * torch.randn(600, 2, generator=stream)
    for axis, u, title in (
        (left, q, "q(u): what the encoder uses"),
        (middle, torch.randn(600, 2, generator=stream), "N(0, I): what it is sampled from"),
    ):
        axis.plot(*u.T, ".", markersize=2)
        axis.set_title(title, fontsize=9)
    side, points = grid()
    lowest = torch.full((len(points),), log_snr_of(LEVELS[0]))
    shown = energy((points[:, :, None, None],), lowest).reshape(POINTS, POINTS).clamp(min=-8)
    right.contourf(side, side, shown, 20, cmap="RdBu")
    right.set_title("F: blue is likelier than N(0, I)", fontsize=9)
    save(figure, "prior-hole.png")


def levels() -> None:
    figure, axes = panels(3, 2)
    _, points = grid()
    for axis, (t, cum_sigma) in zip(axes, enumerate(LEVELS[:-1]), strict=True):
        values = log_density(points, torch.full((len(points),), cum_sigma))
        shade(axis, values, f"p(u_{t}), cum_sigma {cum_sigma}")
    save(figure, "levels.png")


def chains() -> None:
    figure, axes = panels(4)
    _, points = grid()
    schedule, t = DiffusionSchedule(LEVELS), 2
    u_next = torch.tensor([[1.0, 0.55]])
    marginal = log_density(points, torch.full((len(points),), LEVELS[t]))
    shade(axes[0], marginal, f"p(u_{t}): many modes")
    given = u_next.expand(len(points), -1)[:, :, None, None]
    density = conditional_at(energy, schedule, t, (given,))
    assert isinstance(density, ConditionalEBM)
    values = density((points[:, :, None, None],))
    shade(axes[1], values - values.max(), f"p(u_{t} | u_{t + 1}): nearly one")
    axes[1].plot(*u_next.T, "r+", markersize=10)
    for axis, path, title in (
        (axes[2], (LEVELS[0], 1.0), "one level"),
        (axes[3], LEVELS, "six levels"),
    ):
        u = draw(1000, path)[-1]
        share = float(faint(u).float().mean())
        print(f"{title}: {share:.2f} of 1000 chains in the faint modes, which weigh 0.12")
        shade(axis, log_density(points, torch.full((len(points),), LEVELS[0])), title)
        axis.plot(*u[:400].T, "k.", markersize=2)
        axis.set_title(f"48 gradients, {title}: {share:.2f} faint", fontsize=9)
    save(figure, "chains.png")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    prior_hole()
    levels()
    chains()


if __name__ == "__main__":
    main()
