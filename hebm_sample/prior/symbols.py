r"""Symbols: named variables v with values j that the energies are coupled to.

Group i puts out a base b_i and one number g_i^{vj} a value; with g^{vj} = sum_i g_i^{vj},

    F(u, y)        = sum_i b_i + sum_v g^{v y_v}
    F_open(u)      = sum_i b_i + sum_v logsumexp_j g^{vj}              variables summed out
    p(y_v = j | u) = softmax_j g^{vj}

Sampling with conditions "y_v in S_v", of weight w_v, takes for F

    F_open(u) + sum_v w_v log p(y_v in S_v | u)
    log p(y_v in S_v | u) = logsumexp_{j in S_v} g^{vj} - logsumexp_j g^{vj}

w = 0 is unconditional, 1 the exact conditional of the model, more is guidance. A set S of several
values is OR, a complement is NOT, several variables are AND. At noise levels t > 0 this is not the
diffusion of the density composed at t = 0: products and powers of marginals do not diffuse into
each other.

"Latent Space Energy-Based Model of Symbol-Vector Coupling for Text Generation and Classification"
(arXiv 2108.11556) couples a symbol to the latents' energy so; the weight is that of classifier
guidance, "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233), and products of
conditions are those of "Compositional Visual Generation with Composable Diffusion Models" (arXiv
2206.01714).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hebm_sample.config import SymbolConfig

__all__ = ["Condition", "GroupOutputs", "SymbolTable", "open_condition", "symbol_part"]


class GroupOutputs(NamedTuple):
    """What the energy nets put out: b_i (B, L), and g_i^{vj} (B, L, V), the values of all
    variables one after another.
    """

    base: Tensor
    logits: Tensor


class SymbolTable:
    """Where each variable's values lie among the V outputs.

    Arguments:
        symbols: The variables, in the config's order.
    """

    def __init__(self, symbols: Sequence[SymbolConfig]) -> None:
        self.symbols = tuple(symbols)
        self.sizes = [len(s.values) for s in self.symbols]
        self.num_values = sum(self.sizes)

    def __len__(self) -> int:
        return len(self.symbols)

    def split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """(..., V) to one (..., values) a variable."""
        return torch.split(outputs, self.sizes, dim=-1)

    def columns(self, outputs: Tensor, rest: float) -> Tensor:
        """(..., V) to (..., variables, most values), `rest` where a variable has fewer."""
        most = max(self.sizes)
        if all(size == most for size in self.sizes):
            return outputs.reshape(*outputs.shape[:-1], len(self), most)
        parts = [F.pad(g, (0, most - g.shape[-1]), value=rest) for g in self.split(outputs)]
        return torch.stack(parts, dim=-2)

    def probabilities(self, logits: Tensor) -> dict[str, Tensor]:
        """p(y_v = j | u) of g (..., V): (..., values) a variable."""
        parts = self.split(logits)
        return {s.name: g.softmax(-1) for s, g in zip(self.symbols, parts, strict=True)}

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of g (B, V) and labels (B, variables), -1 where unknown.

        Returns:
            The mean over the known labels (0 if none is known), and the number of right answers
            and of known labels per variable, (variables,) each.
        """
        total = logits.new_zeros(())
        right: list[Tensor] = []
        known: list[Tensor] = []
        for v, g in enumerate(self.split(logits)):
            y = labels[:, v]
            total = total + F.cross_entropy(g, y, ignore_index=-1, reduction="sum")
            right.append(((g.argmax(1) == y) & (y >= 0)).sum())
            known.append((y >= 0).sum())
        counts = torch.stack(known)
        return total / counts.sum().clamp(min=1), torch.stack(right), counts


class Condition(NamedTuple):
    """Target values of each example.

    Arguments:
        allowed: (B, V) bool, the values in S_v; a variable without one allows all.
        weight: (B, variables), w_v; 0 without one.
    """

    allowed: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "Condition":
        """On another device."""
        return Condition(self.allowed.to(device), self.weight.to(device))

    def rows(self, start: int, stop: int) -> "Condition":
        """Of examples start ... stop - 1."""
        return Condition(self.allowed[start:stop], self.weight[start:stop])

    def repeated(self, count: int) -> "Condition":
        """Each example `count` times, one after another."""
        return Condition(*(x.repeat_interleave(count, 0) for x in self))


def open_condition(table: SymbolTable, batch: int) -> Condition:
    """The unconditional model's: F_open."""
    return Condition(
        torch.ones(batch, table.num_values, dtype=torch.bool, device="cpu"),
        torch.zeros(batch, len(table), dtype=torch.float32, device="cpu"),
    )


def symbol_part(table: SymbolTable, logits: Tensor, condition: Condition | None = None) -> Tensor:
    """sum_v [ logsumexp_j g^{vj} + w_v log p(y_v in S_v | u) ], the symbols' part of F.

    Arguments:
        logits: g, (B, V), or of each group by itself, (B, L, V).
        condition: Its B rows; None for all variables open.

    Returns:
        (B,), or (B, L).
    """
    if not len(table):
        return logits.new_zeros(logits.shape[:-1])
    # All variables at once: a dozen small operations each would cost a chain more than they do.
    g = table.columns(logits, -torch.inf)
    everything = g.logsumexp(-1)
    if condition is None:
        return everything.sum(-1)
    allowed, weight = table.columns(condition.allowed, False), condition.weight
    if logits.dim() == 3:
        allowed, weight = allowed[:, None], weight[:, None]
    allowed_part = g.masked_fill(~allowed, -torch.inf).logsumexp(-1)
    return (everything + weight * (allowed_part - everything)).sum(-1)
