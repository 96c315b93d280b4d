"""A model that says how likely images are; the mathematics is in `pipeline/scoring.py`."""

from torch import Tensor

from hebm_sample.config import require_integer
from hebm_sample.io.seeds import MAX_SEEDS
from hebm_sample.latents import Latents, check_latents
from hebm_sample.pipeline.model import EncodeMode, Groups, Model, Pictures
from hebm_sample.pipeline.scoring import log_density, rate

__all__ = ["Scorer"]

MAX_DRAWS = 1000


class Scorer(Model):
    """A `Model` with densities."""

    def log_density(
        self,
        images: Pictures | None = None,
        *,
        latents: Latents | None = None,
        groups: Groups | None = None,
        mode: EncodeMode = "sample",
        batch_size: int = 16,
    ) -> Tensor:
        """The prior log density log p_G(u) = F_G(u) - |u_G|^2 / 2 at the lowest noise level, all
        symbols open, up to its constant, in nats: (N,). High for images like the training data.

        `energy` is -F_G alone, the log ratio of N(0, I) to the prior.

        Arguments:
            images: As for `encode`; or give `latents`.
            latents: u, as `encode` or a call returns it.
            groups: The groups G that count: a slice, indices or one index; all if None.
            mode: "sample", u ~ q(u | x), or "mean", the posterior's mean.

        Raises:
            UserInputError: No prior, no encoder, or groups that the model has not.
        """
        chosen, _ = self._group_indices(groups), self._energies()
        u = self._latents_of(images, latents, mode, batch_size)
        check_latents(u, self.generator.latent_shapes)
        return log_density(self, u, chosen, batch_size)

    def rate(
        self,
        images: Pictures,
        *,
        groups: Groups | None = None,
        draws: int = 4,
        batch_size: int = 16,
    ) -> Tensor:
        """E_q[-F_G(u)] + KL(q(u_G | x) || N(0, I)) in nats, (N,): the divergence of the posterior
        from the prior up to a constant, low for images like the training data.

        Arguments:
            images, groups: As for `log_density`.
            draws: Of u, the same noise for every image.

        Raises:
            UserInputError: As for `log_density`.
        """
        require_integer("draws", draws, 1, MAX_DRAWS)
        require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        chosen, _ = self._group_indices(groups), self._energies()
        return rate(self, self._read(images), chosen, draws, batch_size)
