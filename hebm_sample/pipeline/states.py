"""Where a batch is after a noise level, on the device and decoded; how parts of one are joined,
and which of two candidates for an image is better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hebm_sample.latents import Latents, concatenate
from hebm_sample.pipeline.scoring import half_squares

__all__ = ["ChainState", "DecodedState", "Ranking", "better_of", "join_batches", "join_parts"]

Ranking = Literal["density", "energy"]


class ChainState(NamedTuple):
    """A batch after a level: u, and the terms of F if the model has any, on its device."""

    level: int
    u: Latents
    terms: Tensor | None


@dataclass(frozen=True)
class DecodedState:
    """Images after a level: u, terms of F and float images (N, 3, S, S), on the CPU."""

    level: int
    u: Latents
    terms: Tensor | None
    images: Tensor


def join_parts(parts: Sequence[ChainState]) -> ChainState:
    """The state of a batch from those of its parts."""
    terms = [p.terms for p in parts if p.terms is not None]
    return ChainState(parts[0].level, concatenate([p.u for p in parts]), torch.cat(terms))


def join_batches(states: Sequence[DecodedState]) -> DecodedState:
    """Batches one after another."""
    terms = [s.terms for s in states if s.terms is not None]
    return DecodedState(
        states[0].level,
        concatenate([s.u for s in states]),
        torch.cat(terms) if terms else None,
        torch.cat([s.images for s in states]),
    )


def _rank(state: DecodedState, rank_by: Ranking) -> Tensor:
    """log p(u | y) up to its constant, or F, (N,): high is better."""
    assert state.terms is not None
    gain = state.terms.sum(1).double()
    return gain if rank_by == "energy" else gain - half_squares(state.u).sum(1)


def better_of(old: DecodedState, new: DecodedState, rank_by: Ranking) -> DecodedState:
    """Image by image the one that ranks higher."""
    assert old.terms is not None and new.terms is not None
    better = _rank(new, rank_by) > _rank(old, rank_by)

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(better.reshape(-1, *(1,) * (a.dim() - 1)), b, a)

    return DecodedState(
        0,
        tuple(pick(a, b) for a, b in zip(old.u, new.u, strict=True)),
        pick(old.terms, new.terms),
        pick(old.images, new.images),
    )
