"""Energies guided by a weaker version of themselves, to compare other samplers with.

    F + w (F - F_weak)

after Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself" (arXiv 2406.02507),
for energies in place of denoisers: F_weak are the energies of an earlier step of the same run, on
the same generator. What both agree to be unlikely stays; what only the weak ones like is left.
"""

from typing import cast

import torch
from torch import Tensor, nn

from hebm_sample import Pipeline
from hebm_sample.errors import UserInputError
from hebm_sample.prior.joint import GroupStates, JointEnergy, JointLevel
from hebm_sample.prior.symbols import GroupOutputs, symbol_part

__all__ = ["GuidedEnergy", "guided"]


class GuidedEnergy(JointEnergy):
    """F of `strong` led away from that of `weak`, by the weight w; what it says of symbols is the
    strong one's. Terms of single groups share alike in what logarithms make of all.

    Arguments:
        strong, weak: Of one config's latents, levels and symbols; widths may differ.
        weight: w; 0 is `strong` alone.
    """

    weight: Tensor

    def __init__(self, strong: JointEnergy, weak: JointEnergy, weight: float) -> None:
        nn.Module.__init__(self)
        self.config, self.table = strong.config, strong.table
        # One of the numbers that a fingerprint of the model reads: latents are kept by it.
        self.register_buffer("weight", torch.tensor(float(weight)))
        self.strong, self.weak = strong, weak

    def at(self, level: Tensor) -> JointLevel:
        """Of both, one after the other."""
        scale, strong = self.strong.at(level)
        return JointLevel(scale, (*strong, *self.weak.at(level).nets))

    def outputs(self, top: GroupStates, level: Tensor | JointLevel) -> GroupOutputs:
        """As of `JointEnergy`."""
        known = self.at(level) if isinstance(level, Tensor) else level
        count = len(self.strong.nets)
        parts = (known.nets[:count], known.nets[count:])
        strong, weak = (
            cast("JointEnergy", prior).outputs(top, JointLevel(known.scale, nets))
            for prior, nets in zip((self.strong, self.weak), parts, strict=True)
        )
        gap = strong.base - weak.base
        if len(self.table):
            good, poor = (symbol_part(self.table, o.logits.sum(1)) for o in (strong, weak))
            gap = gap + (good - poor)[:, None] / count
        return GroupOutputs(strong.base + self.weight * gap, strong.logits)


def guided(pipe: Pipeline, weak: Pipeline, weight: float) -> Pipeline:
    """The model with guided energies.

    Raises:
        UserInputError: The generators differ, or what the energies are of.
    """
    if pipe.prior is None or weak.prior is None:
        raise UserInputError("autoguidance needs two models with energies")
    ours, theirs = pipe.generator.state_dict(), weak.generator.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    differing = [
        name
        for name in ("levels", "symbols", "parametrization")
        if getattr(pipe.prior.config, name) != getattr(weak.prior.config, name)
    ]
    if not same or differing:
        raise UserInputError(
            f"the weak model has {'other ' + ', '.join(differing) if differing else 'another T'}; "
            "take an earlier step, or a narrower net, of the same run"
        )
    prior = GuidedEnergy(pipe.prior, weak.prior, weight)
    return Pipeline(pipe.config, pipe.generator, prior, pipe.encoder, device=pipe.device)
