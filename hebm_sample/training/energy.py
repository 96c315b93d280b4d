"""The prior's objectives, with generator and encoder frozen and u_0 ~ q(u | x) drawn afresh.

`score`: the energies define log p_t(u) = F(T(u), t) - |u|^2 / 2 at every noise level, so they can
be fitted by denoising score matching, without a chain:

    loss = E | cum_sigma grad_u log p_t(u_t) + eps |^2 / D        u_t = cum_a u_0 + cum_sigma eps

cum_sigma is log-uniform. With F = 0 the loss is E|eps - cum_sigma u_t|^2 / D; the statistic `drop`
is how far below it the energies are (with all symbols open). "A Connection Between Score Matching
and Denoising Autoencoders" (Vincent, 2011), at many noise levels as in "Generative Modeling by
Estimating Gradients of the Data Distribution" (arXiv 1907.05600).

`mle`: maximum likelihood by Langevin, as in "Learning Latent Space Hierarchical EBM Diffusion
Models" (arXiv 2405.13910) and "Learning Energy-Based Models by Diffusion Recovery Likelihood"
(arXiv 2012.08125). With t uniform, K steps from u_{t+1} on
log p(u_t | u_{t+1}) give u_t^-, and

    loss = mean[ F(u_t^-, t) - F(u_t^+, t) ] / D

If the energies have symbols, both add `symbol_weight` times the cross-entropy of the known labels,
at the noisy u_t and at every level. Symbols and their cross-entropy are those of "Latent Space
Energy-Based Model of Symbol-Vector Coupling for Text Generation and Classification" (arXiv
2108.11556). `mle` leaves all symbols open in F: with labels there too, p(y | u) would be counted
twice. Score matching counts nothing twice, because the score of
F(u, y) is that of p_t(u | y) whatever else is learned; so a share of the labelled examples are
seen with some of their labels set, which teaches the gradient of log p(y | u_t) directly, where
cross-entropy teaches its value.

The release writes (f(u^-) - f(u^+)) / s_t for F, because its nets put out f = s_t F. The division
by D, the dimensions of u, keeps gradients at the size that the gradient clip is made for.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hebm_sample.config import Kernel, LangevinConfig
from hebm_sample.generator.encoder import encode
from hebm_sample.generator.protocol import Generator, ImageEncoder
from hebm_sample.latents import Latents, flatten
from hebm_sample.prior.density import conditional_at, net_level
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.prior.symbols import Condition, GroupOutputs
from hebm_sample.sampling.chain import run_chain
from hebm_sample.sampling.step_size import transition
from hebm_sample.training.convolution.autograd import no_weight_gradients
from hebm_sample.training.elbo import standard_normal
from hebm_sample.training.optim import Rows, Stream, draw

__all__ = ["Images", "MleObjective", "PriorObjective", "ScoreObjective", "stratified"]

Images = Tensor | dict[int, Tensor]
"""(B, 3, S, S) in [-1, 1], or what `ImageEncoder.features` makes of them."""


def _first(images: Images) -> Tensor:
    """A tensor of the batch, for its size and device."""
    return images if isinstance(images, Tensor) else next(iter(images.values()))


def stratified(count: int, device: torch.device, stream: Stream = None) -> Tensor:
    """(B,) numbers, each uniform in (0, 1), one in every B-th of it: less noise over the levels of
    a batch.
    """
    within = draw(torch.rand, (count,), stream, device)
    rows = stream if isinstance(stream, Rows) else None
    slots = _places(count, rows, device) + within
    return slots / (rows.total if rows else count)


def _places(count: int, rows: Rows | None, device: torch.device) -> Tensor:
    """Where in its whole batch each row is, (count,)."""
    first = rows.first if rows else 0
    return torch.arange(first, first + count, device=device)


def _in_bands(values: Tensor, bands: int, stream: Stream) -> Tensor:
    """Means (bands,) of values (B,) over equal parts of the whole batch; 0 where a part has no
    row here, so that the mean over all divisions of a batch is the batch's.
    """
    if not isinstance(stream, Rows):
        return torch.stack([part.mean() for part in values.chunk(bands)])
    band = _places(len(values), stream, values.device) * bands // stream.total
    inside = band[None] == torch.arange(bands, device=values.device)[:, None]
    return bands * (inside * values).mean(1)


class PriorObjective(nn.Module):
    """What both objectives share: the frozen generator and encoder, and the energies that
    learn.

    Arguments:
        symbol_weight: Of the labels' cross-entropy.
    """

    divisible = True  # every draw is `draw`'s, so that a batch can be divided

    def __init__(
        self,
        generator: Generator,
        encoder: ImageEncoder,
        energy: JointEnergy,
        *,
        symbol_weight: float = 0.002,
    ) -> None:
        super().__init__()
        self.generator = generator.requires_grad_(False)
        self.encoder = encoder.requires_grad_(False)
        self.energy = energy
        self.symbol_weight = symbol_weight

    def energies(
        self, u: Latents, level: Tensor, condition: Condition | None = None
    ) -> tuple[Tensor, Tensor]:
        """Terms that sum to F at u and level, (B, L), or (B, L + 1) with symbols; and g (B, V)."""
        outputs = self.energy.outputs(self.generator.transform(u, features=False), level)
        if outputs.base.dtype == torch.bfloat16 or outputs.logits.dtype == torch.bfloat16:
            outputs = GroupOutputs(outputs.base.float(), outputs.logits.float())
        return self.energy.join(outputs, condition), outputs.logits.sum(1)

    def terms(self, u: Latents, level: Tensor) -> Tensor:
        """Terms that sum to F_open."""
        return self.energies(u, level)[0]

    def symbol_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy of g (B, V), with statistics: itself, and the share of right
        answers a variable.
        """
        entropy, right, known = self.energy.table.cross_entropy(logits, labels)
        stats = {"cross_entropy": entropy.detach(), "accuracy": right / known.clamp(min=1)}
        return self.symbol_weight * entropy, stats

    @torch.no_grad()
    def posterior_draw(self, images: Images, stream: Stream = None) -> Latents:
        """u_0 ~ q(u | x) of images (B, 3, S, S), or of their `ImageEncoder.features`."""
        like = _first(images)
        noise = standard_normal(self.generator.latent_shapes, len(like), like.device, stream)
        return self.encoded(images, noise)

    def encoded(self, images: Images, noise: Latents) -> Latents:
        """The draw that this noise makes."""
        return encode(self.generator, self.encoder, images, noise, features=False).u


class ScoreObjective(PriorObjective):
    """Denoising score matching of the energies' gradient, at every noise level.

    Arguments:
        condition_share: Of the examples, those seen with labels set: a random share of the labels
            that they have.
    """

    second_derivatives = True
    compilable = ("encoded", "matched")

    def __init__(
        self,
        generator: Generator,
        encoder: ImageEncoder,
        energy: JointEnergy,
        *,
        symbol_weight: float = 0.002,
        condition_share: float = 0.5,
    ) -> None:
        super().__init__(generator, encoder, energy, symbol_weight=symbol_weight)
        self.condition_share = condition_share

    def reveal(self, labels: Tensor, stream: Stream = None) -> Condition:
        """Set some of the labels (B, variables) of some examples, with weight 1."""
        batch, device = len(labels), labels.device
        share = draw(torch.rand, (batch, 1), stream, device)
        seen = draw(torch.rand, (batch, 1), stream, device) < self.condition_share
        own = draw(torch.rand, labels.shape, stream, device)
        shown = (labels >= 0) & seen & (own < share)
        allowed = [
            F.one_hot(y.clamp(min=0), size).bool() | ~known[:, None]
            for y, known, size in zip(labels.T, shown.T, self.energy.table.sizes, strict=True)
        ]
        return Condition(torch.cat(allowed, 1), shown.float())

    def residual(
        self,
        u_t: Latents,
        noise: Latents,
        cum_sigma: Tensor,
        condition: Condition | None = None,
    ) -> tuple[Tensor, Tensor]:
        """cum_sigma grad log p_t(u_t) + eps, (B, D), differentiable in the energies' parameters,
        and g (B, V).
        """
        level = torch.log1p(-cum_sigma.square()) - 2 * cum_sigma.log()
        if torch.compiler.is_compiling():  # which follows a gradient of a function alone

            def total(u: Latents) -> tuple[Tensor, Tensor]:
                terms, logits = self.energies(u, level, condition)
                return terms.sum(), logits

            gradient, logits = torch.func.grad(total, has_aux=True)(u_t)
            score = flatten(gradient) - flatten(u_t)
            return cum_sigma[:, None] * score + flatten(noise), logits
        u_t = tuple(u.requires_grad_() for u in u_t)
        wanted = torch.is_grad_enabled()  # not where it is only measured
        with torch.enable_grad():
            terms, logits = self.energies(u_t, level, condition)
            with no_weight_gradients():
                gradient = torch.autograd.grad(terms.sum(), u_t, create_graph=wanted)
        score = flatten(gradient) - flatten(u_t)
        return cum_sigma[:, None] * score + flatten(noise), logits

    def matched(
        self, u_0: Latents, noise: Latents, cum_sigma: Tensor, condition: Condition | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean squares a dimension of the residual at u_t and of that with F = 0, (B,), and
        g (B, V), of u_0, noise and cum_sigma (B,).
        """
        cum_a = (1 - cum_sigma.square()).sqrt()
        a, s = cum_a[:, None, None, None], cum_sigma[:, None, None, None]
        u_t = tuple(a * u + s * eps for u, eps in zip(u_0, noise, strict=True))
        residual, logits = self.residual(u_t, noise, cum_sigma, condition)
        with torch.no_grad():
            gaussian = (flatten(noise) - cum_sigma[:, None] * flatten(u_t)).square().mean(1)
        return residual.square().mean(1), gaussian, logits

    def forward(
        self,
        images: Images,
        fraction: float,
        labels: Tensor | None = None,
        stream: Stream = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Mean square per dimension, with `gaussian` (the loss at F = 0), and `drop`, the gain
        over it, also in four bands of noise.

        Arguments:
            images: (B, 3, S, S) in [-1, 1], or their `ImageEncoder.features`.
            fraction: Unused here: every step sees every level.
            labels: (B, variables), -1 where unknown.
            stream: Of all draws.
        """
        u_0 = self.posterior_draw(images, stream)
        config, batch, device = self.energy.config, len(u_0[0]), u_0[0].device
        ratio = config.sigma_max / config.sigma_min
        cum_sigma = config.sigma_min * ratio ** stratified(batch, device, stream)
        noise = standard_normal(self.generator.latent_shapes, batch, device, stream)
        condition = None if labels is None else self.reveal(labels, stream)
        square, gaussian, logits = self.matched(u_0, noise, cum_sigma, condition)
        with torch.no_grad():
            drop = gaussian - square
            unset = torch.ones_like(drop) if condition is None else (condition.weight == 0).all(1)
            stats: dict[str, Any] = {
                "gaussian": gaussian.mean(),
                "drop": (drop * unset).sum() / unset.sum().clamp(min=1),
                # The levels are stratified, so equal parts of the batch are equal bands of log
                # cum_sigma.
                "drop_by_noise": _in_bands(drop, 4, stream),
            }
        loss = square.mean()
        if labels is not None:
            symbol_loss, symbol_stats = self.symbol_loss(logits, labels)
            loss, stats = loss + symbol_loss, stats | symbol_stats
        return loss, stats


class MleObjective(PriorObjective):
    """The paper's recovery likelihood: short chains from u_{t+1}, one level an example.

    Arguments:
        chain_steps: K.
        kernel: Of the training chains; "plain" with the release's s_t is the paper's.
        step_scale: c, as in `LangevinConfig`.
    """

    def __init__(
        self,
        generator: Generator,
        encoder: ImageEncoder,
        energy: JointEnergy,
        *,
        chain_steps: int = 20,
        kernel: Kernel = "plain",
        step_scale: float = 1.0,
        symbol_weight: float = 0.002,
    ) -> None:
        super().__init__(generator, encoder, energy, symbol_weight=symbol_weight)
        self.chain_steps, self.step_scale = chain_steps, step_scale
        self.kernel: Kernel = kernel
        self.schedule = DiffusionSchedule(energy.config.levels)

    def step_sizes(self) -> tuple[Tensor, Tensor]:
        """s_t and the reference variance C_t of the training chains, (T,) each."""
        config = self.energy.config
        chains = [
            transition(
                self.schedule,
                t,
                LangevinConfig(
                    kernel=self.kernel,
                    step_scale=self.step_scale,
                    reference_variance="posterior",
                ),
                parametrization=config.parametrization,
                step_size_0=config.step_size_0,
            )
            for t in range(self.schedule.num_levels)
        ]
        return (
            torch.tensor([chain.step_size for chain in chains]),
            torch.tensor([chain.reference_variance for chain in chains]),
        )

    def forward(
        self,
        images: Images,
        fraction: float,
        labels: Tensor | None = None,
        stream: Stream = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """mean[F(u^-) - F(u^+)], with the energies of both, and how far the chains moved, a
        dimension.

        Arguments:
            images: (B, 3, S, S) in [-1, 1], or their `ImageEncoder.features`.
            fraction: Unused here.
            labels: (B, variables), -1 where unknown.
            stream: Of all draws.
        """
        u_0 = self.posterior_draw(images, stream)
        batch, device = len(u_0[0]), u_0[0].device
        shapes = self.generator.latent_shapes
        t = draw(partial(torch.randint, self.schedule.num_levels), (batch,), stream, device)
        positive = self.schedule.diffuse(u_0, t, standard_normal(shapes, batch, device, stream))
        noise = standard_normal(shapes, batch, device, stream)
        a = self.schedule.gather(self.schedule.a, t + 1)
        sigma = self.schedule.gather(self.schedule.sigma, t + 1)
        assert isinstance(a, Tensor) and isinstance(sigma, Tensor)
        u_next = tuple(
            a[:, None, None, None] * u + sigma[:, None, None, None] * eps
            for u, eps in zip(positive, noise, strict=True)
        )
        negative, moved = self.negative(u_next, t, stream)
        level = net_level(self.schedule, t, self.energy.config.parametrization)
        assert isinstance(level, Tensor)
        f_plus, logits = self.energies(positive, level)
        f_minus = self.terms(negative, level)
        loss = (f_minus.sum(1) - f_plus.sum(1)).mean()
        dimensions = flatten(u_0).shape[1]
        stats: dict[str, Any] = {
            "energy_positive": -f_plus.detach().mean(0),
            "energy_negative": -f_minus.detach().mean(0),
            "displacement": moved.mean(),
        }
        loss = loss / dimensions
        if labels is not None:
            symbol_loss, symbol_stats = self.symbol_loss(logits, labels)
            loss, stats = loss + symbol_loss, stats | symbol_stats
        return loss, stats

    def negative(
        self, u_next: Latents, t: Tensor, stream: Stream = None
    ) -> tuple[Latents, Tensor]:
        """u_t^- after K Langevin steps from u_{t+1}, and the root mean square it moved, (B,)."""
        config = self.energy.config
        step, reference = (table.to(t.device)[t] for table in self.step_sizes())
        shapes, batch = self.generator.latent_shapes, t.shape[0]
        density = conditional_at(self.terms, self.schedule, t, u_next, config.parametrization)
        with torch.no_grad():
            u, _ = run_chain(
                u_next,
                density,
                lambda: standard_normal(shapes, batch, t.device, stream),
                num_steps=self.chain_steps,
                step_size=step,
                kernel=self.kernel,
                reference_variance=reference,
            )
        u = tuple(g.detach() for g in u)
        moved = (flatten(u) - flatten(u_next)).square().mean(1).sqrt()
        return u, moved
