"""F as a chain evaluates it: the same terms as `JointEnergy`, and nothing that a step has no use
for.

- Parameters stand still: no gradient in them is recorded, whatever their `requires_grad` says.
- What depends on the noise level alone is evaluated once per level, not once per step.
- What follows the last latent group feeds the image decoder alone, and is left out of T.

`torch.compile` can fuse the rest. It takes long for each new batch size, so only the first one is
compiled, and only for gradients.
"""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hebm_sample.generator.protocol import Generator
from hebm_sample.latents import Latents, Scalar
from hebm_sample.pipeline.runtime.compiled import compiled
from hebm_sample.prior.density import EnergyAtLevel, level_rows
from hebm_sample.prior.joint import JointEnergy, JointLevel
from hebm_sample.prior.symbols import Condition

__all__ = ["ChainEnergy", "CompiledTerms", "frozen"]

_M = TypeVar("_M", bound=nn.Module)


@torch.inference_mode(False)
def frozen(module: _M) -> _M:
    """A copy that shares the memory of parameters and buffers, and needs no gradient in them.

    It costs milliseconds, whatever the size of the weights, and belongs to one call: it follows
    what is written to the parameters, but not their exchange for others.
    """
    return _frozen(module, {})


def _frozen(module: Any, made: dict[int, Any]) -> Any:
    """The copy of a module, once for all the places that hold it."""
    if id(module) not in made:
        made[id(module)] = twin = copy.copy(module)
        twin._parameters = {
            name: p if p is None else nn.Parameter(p.detach(), requires_grad=False)
            for name, p in module._parameters.items()
        }
        twin._buffers = dict(module._buffers)
        twin._modules = {
            name: child if child is None else _frozen(child, made)
            for name, child in module._modules.items()
        }
    return made[id(module)]


def _terms(
    u: Latents,
    level: JointLevel,
    condition: Condition | None,
    generator: Generator,
    prior: JointEnergy,
) -> Tensor:
    return prior(generator.transform(u, features=False), level, condition)


class CompiledTerms:
    """Terms of F by `torch.compile`, for the first batch size that it meets; kept by whoever makes
    several `ChainEnergy`s of networks of the same build.
    """

    def __init__(self) -> None:
        self.batch: int | None = None
        self._compiled = compiled(_terms, "sample without it")

    def fits(self, u: Latents) -> bool:
        """Whether these latents are compiled for, or nothing yet."""
        return torch.is_grad_enabled() and self.batch in (None, len(u[0]))

    def __call__(self, u: Latents, *rest: Any) -> Tensor:
        """The terms.

        Raises:
            EnvironmentFailure: this machine cannot compile.
        """
        # Of one layout, because each is compiled anew.
        terms = self._compiled(tuple(g.contiguous() for g in u), *rest)
        self.batch = len(u[0])
        return terms


class ChainEnergy:
    """Terms that sum to F, (B, L), or (B, L + 1) with symbols; differentiable in u.

    Arguments:
        generator: Whose T leads to the groups' states.
        prior: The energies. Both stay as they are.
        compiled: Evaluates gradients of the batch size that it fits; None compiles nothing.
    """

    def __init__(
        self, generator: Generator, prior: JointEnergy, *, compiled: CompiledTerms | None = None
    ) -> None:
        self.generator, self.prior, self.compiled = frozen(generator), frozen(prior), compiled

    def at(self, level: Scalar, condition: Condition | None = None) -> EnergyAtLevel:
        """F at one level: what depends on the level alone is evaluated once per batch size.

        Arguments:
            level: As `prior.density.net_level` gives it: one number, or (B,).
            condition: Target values of each example.
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
            condition: Target values of each example.

        Raises:
            EnvironmentFailure: this machine cannot compile.
        """
        known = self.prior.at(level) if isinstance(level, Tensor) else level
        terms = self.compiled if self.compiled is not None and self.compiled.fits(u) else _terms
        return terms(u, known, condition, self.generator, self.prior)
