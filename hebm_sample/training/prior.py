"""The prior's objectives, with generator and encoder frozen and u_0 ~ q(u | x) drawn afresh.

`score`: the energies define log p_t(u) = F(T(u), t) - |u|^2 / 2 at every noise level, so they can
be fitted by denoising score matching, without a chain:

    loss = E | cum_sigma grad_u log p_t(u_t) + eps |^2 / D        u_t = cum_a u_0 + cum_sigma eps

cum_sigma is log-uniform. With F = 0 the loss is E|eps - cum_sigma u_t|^2 / D; the statistic `drop`
is how far below it the energies are.

`mle`: the paper's maximum likelihood by Langevin. With t uniform, K steps from u_{t+1} on
log p(u_t | u_{t+1}) give u_t^-, and

    loss = mean[ F(u_t^-, t) - F(u_t^+, t) ] / D

The release writes (f(u^-) - f(u^+)) / s_t for F, because its nets put out f = s_t F. The division
by D, the dimensions of u, keeps gradients at the size that the gradient clip is made for.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hebm_sample.config import Kernel
from hebm_sample.generator.encoder import Encoder, encode
from hebm_sample.generator.hierarchy import HierarchicalGenerator, Latents
from hebm_sample.prior.conditional import conditional_at, flatten, net_level
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.prior.schedule import DiffusionSchedule, release_step_sizes
from hebm_sample.sampling.driver import chain_variances, run_chain
from hebm_sample.training.generator import standard_normal

__all__ = ["MleObjective", "PriorObjective", "ScoreObjective", "stratified"]


def stratified(count: int, device: torch.device) -> Tensor:
    """(B,) numbers, each uniform in (0, 1), one in every B-th of it: less noise over the levels of
    a batch.
    """
    slots = torch.arange(count, device=device) + torch.rand(count, device=device)
    return slots / count


class PriorObjective(nn.Module):
    """What both objectives share: the frozen generator and encoder, and the energies that
    learn.
    """

    def __init__(
        self, generator: HierarchicalGenerator, encoder: Encoder, energy: JointEnergy
    ) -> None:
        super().__init__()
        self.generator = generator.requires_grad_(False)
        self.encoder = encoder.requires_grad_(False)
        self.energy = energy

    def terms(self, u: Latents, level: Tensor) -> Tensor:
        """F_i at u and level: (B, L)."""
        return self.energy(self.generator.transform(u), level)

    @torch.no_grad()
    def posterior_draw(self, images: Tensor) -> Latents:
        """u_0 ~ q(u | x) of pictures (B, 3, S, S)."""
        shapes = self.generator.latent_shapes
        noise = standard_normal(shapes, images.shape[0], images.device)
        return encode(self.generator, self.encoder, images, noise).u


class ScoreObjective(PriorObjective):
    """Denoising score matching of the energies' gradient, at every noise level."""

    def residual(self, u_t: Latents, noise: Latents, cum_sigma: Tensor) -> Tensor:
        """cum_sigma grad log p_t(u_t) + eps, (B, D); differentiable in the energies'
        parameters.
        """
        level = torch.log1p(-cum_sigma.square()) - 2 * cum_sigma.log()
        u_t = tuple(u.requires_grad_() for u in u_t)
        with torch.enable_grad():
            total = self.terms(u_t, level).sum()
            gradient = torch.autograd.grad(total, u_t, create_graph=torch.is_grad_enabled())
        return cum_sigma[:, None] * (flatten(gradient) - flatten(u_t)) + flatten(noise)

    def forward(self, images: Tensor, fraction: float) -> tuple[Tensor, dict[str, Any]]:
        """Mean square a dimension, with `gaussian` (the loss at F = 0), `drop`, and `drop` in four
        bands of noise.

        Arguments:
            images: (B, 3, S, S) in [-1, 1].
            fraction: Unused here: every step sees every level.
        """
        u_0 = self.posterior_draw(images)
        config, batch = self.energy.config, images.shape[0]
        ratio = config.sigma_max / config.sigma_min
        cum_sigma = config.sigma_min * ratio ** stratified(batch, images.device)
        cum_a = (1 - cum_sigma.square()).sqrt()
        noise = standard_normal(self.generator.latent_shapes, batch, images.device)
        a, s = cum_a[:, None, None, None], cum_sigma[:, None, None, None]
        u_t = tuple(a * u + s * eps for u, eps in zip(u_0, noise, strict=True))
        square = self.residual(u_t, noise, cum_sigma).square().mean(1)
        with torch.no_grad():
            gaussian = (flatten(noise) - cum_sigma[:, None] * flatten(u_t)).square().mean(1)
            drop = gaussian - square
            stats = {
                "gaussian": gaussian.mean(),
                "drop": drop.mean(),
                # The levels are stratified, so equal parts of the batch are equal bands of log
                # cum_sigma.
                "drop_by_noise": torch.stack([part.mean() for part in drop.chunk(4)]),
            }
        return square.mean(), stats


class MleObjective(PriorObjective):
    """The paper's recovery likelihood: short chains from u_{t+1}, one level an example.

    Arguments:
        chain_steps: K.
        kernel: Of the training chains; "plain" with the release's s_t is the paper's.
        step_scale: c, as in `LangevinConfig`.
    """

    def __init__(
        self,
        generator: HierarchicalGenerator,
        encoder: Encoder,
        energy: JointEnergy,
        *,
        chain_steps: int = 20,
        kernel: Kernel = "plain",
        step_scale: float = 1.0,
    ) -> None:
        super().__init__(generator, encoder, energy)
        self.chain_steps, self.step_scale = chain_steps, step_scale
        self.kernel: Kernel = kernel
        self.schedule = DiffusionSchedule(energy.config.levels)

    def step_sizes(self) -> tuple[Tensor, Tensor]:
        """s_t and the reference variance C_t of the training chains, (T,) each."""
        config, levels = self.energy.config, range(self.schedule.num_levels)
        last = self.schedule.num_levels - 1
        pairs = [
            chain_variances(self.schedule, t, conditional=t < last, reference="posterior")
            for t in levels
        ]
        unit, reference = (torch.tensor(column) for column in zip(*pairs, strict=True))
        if config.parametrization == "release":
            unit = torch.tensor(release_step_sizes(self.schedule, config.step_size_0))
        return self.step_scale * unit, reference

    def forward(self, images: Tensor, fraction: float) -> tuple[Tensor, dict[str, Any]]:
        """mean[F(u^-) - F(u^+)], with the energies of both, and how far the chains moved, a
        dimension.

        Arguments:
            images: (B, 3, S, S) in [-1, 1].
            fraction: Unused here.
        """
        u_0 = self.posterior_draw(images)
        batch, device = images.shape[0], images.device
        shapes = self.generator.latent_shapes
        t = torch.randint(self.schedule.num_levels, (batch,), device=device)
        positive = self.schedule.diffuse(u_0, t, standard_normal(shapes, batch, device))
        noise = standard_normal(shapes, batch, device)
        a = self.schedule.gather(self.schedule.a, t + 1)
        sigma = self.schedule.gather(self.schedule.sigma, t + 1)
        assert isinstance(a, Tensor) and isinstance(sigma, Tensor)
        u_next = tuple(
            a[:, None, None, None] * u + sigma[:, None, None, None] * eps
            for u, eps in zip(positive, noise, strict=True)
        )
        negative, moved = self.negative(u_next, t)
        level = net_level(self.schedule, t, self.energy.config.parametrization)
        assert isinstance(level, Tensor)
        f_plus, f_minus = self.terms(positive, level), self.terms(negative, level)
        loss = (f_minus.sum(1) - f_plus.sum(1)).mean()
        dimensions = flatten(u_0).shape[1]
        stats = {
            "energy_positive": -f_plus.detach().mean(0),
            "energy_negative": -f_minus.detach().mean(0),
            "displacement": moved.mean(),
        }
        return loss / dimensions, stats

    def negative(self, u_next: Latents, t: Tensor) -> tuple[Latents, Tensor]:
        """u_t^- after K Langevin steps from u_{t+1}, and the root mean square it moved, (B,)."""
        config = self.energy.config
        step, reference = (table.to(t.device)[t] for table in self.step_sizes())
        shapes, batch = self.generator.latent_shapes, t.shape[0]
        trainable = [p for p in self.energy.parameters() if p.requires_grad]
        for p in trainable:
            p.requires_grad_(False)
        try:
            density = conditional_at(self.terms, self.schedule, t, u_next, config.parametrization)
            with torch.no_grad():
                u, _ = run_chain(
                    u_next,
                    density,
                    lambda: standard_normal(shapes, batch, t.device),
                    num_steps=self.chain_steps,
                    step_size=step,
                    kernel=self.kernel,
                    reference_variance=reference,
                )
        finally:
            for p in trainable:
                p.requires_grad_(True)
        u = tuple(g.detach() for g in u)
        moved = (flatten(u) - flatten(u_next)).square().mean(1).sqrt()
        return u, moved
