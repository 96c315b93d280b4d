"""F as a chain evaluates it: the same terms as `JointEnergy`, and nothing that a step has no use
for.

- Parameters stand still: no gradient in them is recorded, whatever their `requires_grad` says.
- What depends on the noise level alone is evaluated once a level, not once a step.
- What follows the last latent group feeds the image decoder alone, and is left out of T.

`torch.compile` can fuse the rest. It takes long for each new batch size, so only the first one is
compiled, and only for gradients.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hebm_sample.errors import EnvironmentFailure
from hebm_sample.generator.protocol import Generator
from hebm_sample.latents import Latents, Scalar
from hebm_sample.pipeline.runtime.malloc import keep_freed_memory
from hebm_sample.prior.density import EnergyAtLevel, level_rows
from hebm_sample.prior.joint import JointEnergy, JointLevel
from hebm_sample.prior.symbols import Condition

__all__ = ["ChainEnergy", "addresses", "frozen"]

_M = TypeVar("_M", bound=nn.Module)


@torch.inference_mode(False)
def frozen(module: _M) -> _M:
    """A copy that shares the memory of parameters and buffers, and asks for no gradient in them.

    It sees what is later written to them, and is out of date once they lie at other `addresses`.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
    return copy.deepcopy(module, memo)


def addresses(*modules: nn.Module) -> tuple[int, ...]:
    """Where the parameters lie."""
    return tuple(p.data_ptr() for module in modules for p in module.parameters())


class ChainEnergy:
    """Terms that sum to F, (B, L), or (B, L + 1) with symbols; differentiable in u.

    Arguments:
        generator: Whose T leads to the groups' states.
        prior: The energies. Both stay as they are.
        compiled: Let `torch.compile` have it.
    """

    def __init__(
        self, generator: Generator, prior: JointEnergy, *, compiled: bool = False
    ) -> None:
        keep_freed_memory()
        self.generator, self.prior = frozen(generator), frozen(prior)
        self._compiled = torch.compile(self._terms, dynamic=False) if compiled else None
        self._compiled_for: int | None = None

    def at(self, level: Scalar, condition: Condition | None = None) -> EnergyAtLevel:
        """F at one level: what depends on the level alone is evaluated once a batch size.

        Arguments:
            level: As `prior.density.net_level` gives it: one number, or (B,).
            condition: What is asked of each example.
        """
        known: dict[int, JointLevel] = {}

        def terms(u: Latents) -> Tensor:
            count = len(u[0])
            if count not in known:
                known[count] = self.prior.at(level_rows(level, u))
            return self(u, known[count], condition)

        return terms

    def __call__(
        self, u: Latents, level: Tensor | JointLevel, condition: Condition | None = None
    ) -> Tensor:
        """As `JointEnergy.forward` of T(u).

        Arguments:
            u: (B, C_i, H_i, W_i) a group.
            level: (B,), or what `JointEnergy.at` makes of it.
            condition: What is asked of each example.

        Raises:
            EnvironmentFailure: this machine cannot compile.
        """
        known = self.prior.at(level) if isinstance(level, Tensor) else level
        fits = torch.is_grad_enabled() and self._compiled_for in (None, len(u[0]))
        if self._compiled is None or not fits:
            return self._terms(u, known, condition)
        try:  # of one layout, because each is compiled anew
            terms = self._compiled(tuple(g.contiguous() for g in u), known, condition)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise EnvironmentFailure(
                f"torch.compile does not work here ({reason}); sample without it"
            ) from error
        self._compiled_for = len(u[0])
        return terms

    def _terms(self, u: Latents, level: JointLevel, condition: Condition | None) -> Tensor:
        return self.prior(self.generator.transform(u, features=False), level, condition)
