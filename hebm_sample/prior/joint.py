"""The joint energy-based prior: one term per latent group.

    p(u) ∝ exp(F(T(u))) N(u; 0, I),    F = sum_i b_i + the symbols' part   (`prior/symbols.py`)

"Learning Latent Space Energy-Based Prior Model" (arXiv 2006.08205), with a term per group as in
"Learning Latent Space Hierarchical EBM Diffusion Models" (arXiv 2405.13910).

F large = likely; the energy of the API is -F. The networks' outputs f_i are scaled in one place,
by the config's `parametrization`:

    "log_snr"   b_i = f_i / cum_sigma,  cum_sigma^2 = 1 / (1 + exp(log SNR)); defined at any noise
    "release"   b_i = f_i / s_t,        t an integer: the authors' networks put out s_t F

The outputs g_i of symbols are log odds and are not scaled.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from hebm_sample.config import PriorConfig
from hebm_sample.prior.network import EnergyNet, LevelFeatures
from hebm_sample.prior.release_network import ReleaseLevel, ReleaseNet
from hebm_sample.prior.schedule import DiffusionSchedule, release_step_sizes
from hebm_sample.prior.symbols import Condition, GroupOutputs, SymbolTable, symbol_part

__all__ = ["GroupStates", "JointEnergy", "JointLevel"]


class JointLevel(NamedTuple):
    """What all nets make of the noise level alone.

    Arguments:
        scale: (B, 1), what f_i is divided by.
        nets: One per group.
    """

    scale: Tensor
    nets: tuple[LevelFeatures | ReleaseLevel, ...]


class GroupStates(Protocol):
    """What the energies read of T(u): z_i, u_i and h_i, one tensor per group."""

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


def _new_net(
    config: PriorConfig, latent: tuple[int, int, int], state: int, values: int
) -> EnergyNet | ReleaseNet:
    """One group's net, of the config's `network`."""
    if config.network != "energy_net":
        return ReleaseNet(latent, config.width, residual=config.network == "release_residual")
    return EnergyNet(latent, state, config.width, config.cells, config.max_resolution, values)


class JointEnergy(nn.Module):
    """One energy net a group, and the scaling of their outputs.

    Arguments:
        config: The prior's.
        latent_shapes: (C, H, W) a group.
        state_shapes: (S, H, W) of the top-down state per group.
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
        self.table = SymbolTable(config.symbols)
        self.nets = nn.ModuleList(
            _new_net(config, latent, state[0], self.table.num_values)
            for latent, state in zip(latent_shapes, state_shapes, strict=True)
        )
        steps = release_step_sizes(DiffusionSchedule(config.levels), config.step_size_0)
        sizes = torch.tensor(steps, dtype=torch.float32)
        self.register_buffer("step_sizes", sizes, persistent=False)

    def scale(self, level: Tensor) -> Tensor:
        """What f_i is divided by at each level (B,)."""
        if self.config.parametrization == "release":
            return self.step_sizes[level.round().long()]
        return torch.sigmoid(-level).sqrt()

    def at(self, level: Tensor) -> JointLevel:
        """What depends on the level alone, to be given to the methods below in its place.

        Arguments:
            level: (B,), log SNR, or the integer t as a float, as the config's `parametrization`
                says.
        """
        nets = cast("Iterable[EnergyNet | ReleaseNet]", self.nets)
        return JointLevel(self.scale(level)[:, None], tuple(net.at(level) for net in nets))

    def outputs(self, top: GroupStates, level: Tensor | JointLevel) -> GroupOutputs:
        """b_i (B, L) and g_i (B, L, V).

        Arguments:
            top: T(u).
            level: As for `at`, or what it gave.
        """
        known = self.at(level) if isinstance(level, Tensor) else level
        rows = zip(self.nets, top.z, top.u, top.h, known.nets, strict=True)
        pairs = [net(z, u, h, features) for net, z, u, h, features in rows]
        base, logits = (torch.stack(column, dim=1) for column in zip(*pairs, strict=True))
        return GroupOutputs(base / known.scale, logits)

    def forward(
        self,
        top: GroupStates,
        level: Tensor | JointLevel,
        condition: Condition | None = None,
    ) -> Tensor:
        """Terms that sum to F; the first L are F_{i}, each group alone.

        A model without symbols has no others, (B, L). With symbols a column is added, (B, L + 1):
        what F, whose logarithms mix the groups, is above the sum of the F_{i}.

        Arguments:
            top, level: As for `outputs`.
            condition: Target values of each example; None leaves all symbols open.
        """
        return self.join(self.outputs(top, level), condition)

    def join(self, outputs: GroupOutputs, condition: Condition | None = None) -> Tensor:
        """`forward` of what `outputs` gave."""
        if not len(self.table):
            return outputs.base
        # Detached where it cancels in the sum: no gradient is computed twice.
        alone = symbol_part(self.table, outputs.logits.detach(), condition)
        joint = symbol_part(self.table, outputs.logits.sum(1), condition)
        rest = joint - alone.sum(1)
        return torch.cat([outputs.base + alone, rest[:, None]], dim=1)

    def select(self, outputs: GroupOutputs, groups: list[int]) -> Tensor:
        """F_G (B,): only the groups in G, inside the logarithms too; all symbols open."""
        return outputs.base[:, groups].sum(1) + symbol_part(
            self.table, outputs.logits[:, groups].sum(1)
        )
