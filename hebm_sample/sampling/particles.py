r"""Several particles per image: sequential Monte Carlo over the noise levels.

Each image has N chains. The path u_{T-1} ... u_t of one of them should have the density

    p_t(u_t) q(u_{t+1} | u_t) ... q(u_{T-1} | u_{T-2})            q the forward noise

Level t proposes u_t by an ancestral step r(u_t | u_{t+1}) and moves it by chains that leave
p(u_t | u_{t+1}), or p_t, as it is. So the weight of a particle is multiplied by

    p_t(u_t) q(u_{t+1} | u_t) / (p_{t+1}(u_{t+1}) r(u_t | u_{t+1}))
        = exp(F(u_t, t) - F(u_{t+1}, t+1)) r_0(u_t | u_{t+1}) / r(u_t | u_{t+1})

at the proposal, with r_0 the step for F = 0, for which weights stay equal; at the first level by
exp(F(u_{T-1}, T-1)). Where the effective number of an image's particles falls below half of them,
they are resampled; at the end one is kept, drawn by weight. At a temperature tau all densities are
to the power 1 / tau^2.

"Sequential Monte Carlo samplers" (Del Moral, Doucet and Jasra, arXiv cond-mat/0212648), here with
the weights of "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models" (arXiv
2306.17775), whose twisted targets are our energies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hebm_sample.io.seeds import derived_seed

__all__ = ["Particles", "particle_seeds"]

PARTICLE_STREAM = 0x73776172  # of a seed: its further particles'; candidates have 1, 2, ...
RESAMPLE_STREAM = 0x70617274  # of a seed: draws that choose among its particles
ENOUGH = 0.5  # effective particles, of all, below which they are resampled


def particle_seeds(seeds: Sequence[int], count: int) -> tuple[int, ...]:
    """`count` seeds for each seed, one after another; the first is the seed itself."""
    found: list[int] = []
    for seed in seeds:
        stream = derived_seed(seed, PARTICLE_STREAM)
        found += [seed, *(derived_seed(stream, k) for k in range(1, count))]
    return tuple(found)


class Particles:
    """Weights of all particles of a batch, and what is drawn by them.

    Rows are images times particles, an image's own one after another. An image's draws come from
    its own seed, and are the same in any batch.

    Arguments:
        seeds: One per image.
        count: N, particles per image.
        temperature: tau.

    Attributes:
        log_weights: (images, N), float64, on the CPU.
    """

    def __init__(self, seeds: Sequence[int], count: int, temperature: float = 1.0) -> None:
        self.count, self.temperature = count, temperature
        self.log_weights = torch.zeros(len(seeds), count, dtype=torch.float64, device="cpu")
        streams = [derived_seed(seed, RESAMPLE_STREAM) for seed in seeds]
        self._streams = [torch.Generator("cpu").manual_seed(seed) for seed in streams]

    def weigh(self, log_ratio: Tensor) -> None:
        """Multiply the weights by exp(log_ratio / tau^2), (rows,)."""
        rows = log_ratio.detach().to("cpu", torch.float64).reshape(self.log_weights.shape)
        self.log_weights = self.log_weights + rows / self.temperature**2

    def effective(self) -> Tensor:
        """The effective number of particles of each image, 1 ... N, (images,)."""
        return 1 / self.log_weights.softmax(1).square().sum(1)

    def resample(self) -> Tensor | None:
        """Rows to go on with, (rows,), or None for all as they are; new particles weigh the same.

        Systematic resampling: of a particle with weight w, floor(N w) or one more go on.
        """
        poor = self.effective() < ENOUGH * self.count
        starts = self._uniform()  # advanced whether needed or not
        if not bool(poor.any()):
            return None
        weights = self.log_weights.softmax(1)
        each = torch.arange(self.count, device="cpu")
        points = (each.double() + starts[:, None]) / self.count
        chosen = torch.searchsorted(weights.cumsum(1), points, right=True)
        chosen = chosen.clamp(max=self.count - 1)
        chosen = torch.where(poor[:, None], chosen, each)
        self.log_weights = torch.where(poor[:, None], 0.0, self.log_weights)
        return self._rows(chosen)

    def heaviest(self) -> Tensor:
        """The row of each image's particle of most weight, (images,)."""
        return self._rows(self.log_weights.argmax(1, keepdim=True))

    def draw(self) -> Tensor:
        """A row per image, by weight, (images,)."""
        bounds = self.log_weights.softmax(1).cumsum(1)
        chosen = torch.searchsorted(bounds, self._uniform()[:, None], right=True)
        return self._rows(chosen.clamp(max=self.count - 1))

    def _uniform(self) -> Tensor:
        drawn = [
            torch.rand((), generator=s, dtype=torch.float64, device="cpu") for s in self._streams
        ]
        return torch.stack(drawn)

    def _rows(self, chosen: Tensor) -> Tensor:
        """Particles of each image, (images, n), as rows of the batch."""
        first = torch.arange(len(chosen), device="cpu")[:, None] * self.count
        return (first + chosen).reshape(-1)
