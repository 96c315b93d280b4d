"""The joint energy-based prior: one term a latent group.

    p(u) ∝ exp(F(T(u))) N(u; 0, I),    F = sum_i F_i

F large = likely; the energy of the API is -F. The networks' outputs f_i are scaled in one place,
by the config's `parametrization`:

    "log_snr"   F_i = f_i / cum_sigma,  cum_sigma^2 = 1 / (1 + exp(log SNR)); defined at any noise
    "release"   F_i = f_i / s_t,        t an integer: the authors' networks put out s_t F
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from hebm_sample.config import PriorConfig
from hebm_sample.prior.energy import EnergyNet
from hebm_sample.prior.schedule import DiffusionSchedule, release_step_sizes

__all__ = ["GroupStates", "JointEnergy"]


class GroupStates(Protocol):
    """What the energies read of T(u): z_i, u_i and h_i, one tensor a group."""

    @property
    def z(self) -> tuple[Tensor, ...]:
        """z_i, (B, C_i, H_i, W_i) each."""
        ...

    @property
    def u(self) -> tuple[Tensor, ...]:
        """u_i, (B, C_i, H_i, W_i) each."""
        ...

    @property
    def h(self) -> tuple[Tensor, ...]:
        """h_i, (B, S_i, H_i, W_i) each."""
        ...


class JointEnergy(nn.Module):
    """One energy net a group, and the scaling of their outputs.

    Arguments:
        config: The prior's.
        latent_shapes: (C, H, W) a group.
        state_shapes: (S, H, W) of the top-down state a group.
    """

    step_sizes: Tensor

    def __init__(
        self,
        config: PriorConfig,
        latent_shapes: tuple[tuple[int, int, int], ...],
        state_shapes: tuple[tuple[int, int, int], ...],
    ) -> None:
        super().__init__()
        self.config = config
        self.nets = nn.ModuleList(
            EnergyNet(latent, state[0], config.width, config.cells, config.max_resolution)
            for latent, state in zip(latent_shapes, state_shapes, strict=True)
        )
        steps = release_step_sizes(DiffusionSchedule(config.levels), config.step_size_0)
        self.register_buffer("step_sizes", torch.tensor(steps), persistent=False)

    def scale(self, level: Tensor) -> Tensor:
        """What f_i is divided by at each level (B,)."""
        if self.config.parametrization == "release":
            return self.step_sizes[level.round().long()]
        return torch.sigmoid(-level).sqrt()

    def forward(self, top: GroupStates, level: Tensor) -> Tensor:
        """F_i: (B, L).

        Arguments:
            top: T(u).
            level: (B,), log SNR, or the integer t as a float, as the config's `parametrization`
                says.
        """
        terms = [
            net(z, u, h, level)
            for net, z, u, h in zip(self.nets, top.z, top.u, top.h, strict=True)
        ]
        return torch.stack(terms, dim=1) / self.scale(level)[:, None]
