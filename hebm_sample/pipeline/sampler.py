"""Drawing images: seeds, batches and wishes in, `Samples` out.

u ~ p(u) ∝ exp(F(T(u))) N(u; 0, I)    by the model's sampler, F as in `prior.symbols`
image = mean of p(x | h_{L+1}(u))
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from hebm_sample.config import LangevinConfig, require_choice, require_integer
from hebm_sample.errors import NonFiniteSampleError, UserInputError
from hebm_sample.io.seeds import MAX_SEEDS, derived_seed
from hebm_sample.latents import Latents, Scalar, concatenate
from hebm_sample.pipeline.conditions import Guidance, Symbols, read_condition
from hebm_sample.pipeline.inpainting import KnownPixels
from hebm_sample.pipeline.outputs import OutputType, Samples, Trajectory, choose_seeds, to_output
from hebm_sample.pipeline.posterior_variance import posterior_variance
from hebm_sample.pipeline.runtime.frozen_energy import ChainEnergy, addresses
from hebm_sample.pipeline.runtime.threads import Stop, part_bounds, side_by_side
from hebm_sample.pipeline.scorer import Scorer
from hebm_sample.pipeline.scoring import half_squares
from hebm_sample.prior.density import Energy, EnergyAtLevel, level_rows
from hebm_sample.prior.symbols import Condition
from hebm_sample.sampling.constraints import Given
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.probability_flow import flow_levels, flow_noise
from hebm_sample.sampling.sample import sample_prior
from hebm_sample.sampling.state import GradientTally

__all__ = ["Drawer", "Prior", "Ranking", "Request"]

Prior = Literal["ebm", "gaussian"]
Ranking = Literal["density", "energy"]
Progress = Callable[[int], object]

_State = tuple[int, Latents, Tensor | None]  # level, u, terms of F

FLOW_START = 0.99  # cum_sigma where the probability flow begins
MAX_CANDIDATES = 1000


@dataclass(frozen=True)
class Request:
    """One batch of images to be drawn.

    Arguments:
        seeds: One per image.
        config: The sampler's settings.
        prior: "ebm" or "gaussian".
        condition: What is asked of each image; its rows follow `seeds`.
        given: Latents to keep or to start from, rows as `seeds`.
        lifted: Whether the noise of `given` is found by the flow, with half of the gradients.
        likelihood: log p of known pixels, added to F.
        progress: Called with the number of gradients just evaluated.
        only_last: Decode the result only.
    """

    seeds: tuple[int, ...]
    config: LangevinConfig
    prior: Prior = "ebm"
    condition: Condition | None = None
    given: Given | None = None
    lifted: bool = False
    likelihood: KnownPixels | None = None
    progress: Progress | None = None
    only_last: bool = True

    def rows(self, start: int, stop: int) -> "Request":
        """The same for images start ... stop - 1."""
        condition, given = self.condition, self.given
        return replace(
            self,
            seeds=self.seeds[start:stop],
            condition=condition and condition.rows(start, stop),
            given=given and given.rows(start, stop),
            likelihood=self.likelihood and self.likelihood.rows(start, stop),
        )


@dataclass(frozen=True)
class _Drawn:
    """Where a request is after a level: u, terms of F and float images, on the CPU."""

    level: int
    u: Latents
    terms: Tensor | None
    images: Tensor


@dataclass(frozen=True)
class _AskedEnergy:
    """An `Energy` with what is asked and observed: terms of F, (B, K), in float32."""

    chain: ChainEnergy
    condition: Condition | None
    likelihood: KnownPixels | None
    precision: Callable[[], AbstractContextManager[Any]]

    def at(self, level: Scalar) -> EnergyAtLevel:
        """F at one level."""
        fixed, likelihood = self.chain.at(level, self.condition), self.likelihood

        def terms(u: Latents) -> Tensor:
            with self.precision():
                found = fixed(u).float()
            if likelihood is None:
                return found
            seen = likelihood(u, level_rows(level, u))
            return torch.cat([found, seen[:, None]], dim=1)

        return terms


class Drawer(Scorer):
    """A model that draws.

    Attributes:
        compile_chains: Whether `torch.compile` has the chains' energies. Compiling takes long, so
            it can pay for many images only; off at first.
    """

    compile_chains: bool = False
    _chains: tuple[object, ChainEnergy] | None = None
    _widths: tuple[object, Latents] | None = None

    def sampling_config(self, **overrides: Any) -> LangevinConfig:
        """The model's sampler settings with those that are given (not None) in their place."""
        given = {k: v for k, v in overrides.items() if v is not None}
        known = set(LangevinConfig.__dataclass_fields__)
        if set(given) - known:
            raise UserInputError(
                f"unknown sampler settings {sorted(set(given) - known)}; known are {sorted(known)}"
            )
        return replace(self.config.sampling, **given)

    def total_steps(
        self,
        *,
        num_images: int = 1,
        batch_size: int = 16,
        steps: int | None = None,
        prior: Prior = "ebm",
    ) -> int:
        """Gradient evaluations of such a call, over all its batches; 0 under the Gaussian
        prior.
        """
        require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        if prior == "gaussian":
            return 0
        return self.sampling_config(steps=steps).steps * -(-num_images // batch_size)

    def __call__(
        self,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        *,
        symbols: Symbols | None = None,
        guidance: Guidance = 1.0,
        best_of: int = 1,
        rank_by: Ranking = "density",
        prior: Prior = "ebm",
        batch_size: int = 16,
        output_type: OutputType = "pil",
        progress: Progress | None = None,
        **settings: Any,
    ) -> Samples:
        """Draw images.

        Arguments:
            num_images: How many, with seeds 0 ... n-1 (default 1).
            seeds: One per image: the same seed is the same image, in any batch.
            symbols: What is asked, such as {"class": "horse"}, {"class": ["cat", "dog"]},
                {"class": "~cat"}, {"Smiling": "yes", "Male": "no"}; or a list, one per image.
            guidance: The weight w of what is asked, one or one a variable: 0 ignores it, 1 is the
                model's conditional, more exaggerates.
            best_of: Draw so many candidates an image and keep the best. The first candidate is
                the seed's own image.
            rank_by: What is best: "density", the highest log p(u | y) = F - |u|^2 / 2 with what
                is asked in F, the density that the sampler's lowest level has; or "energy", the
                lowest -F, its ratio to N(0, I), which does not mind unlikely u.
            prior: "ebm", or "gaussian" for u ~ N(0, I): the generator without its energies.
            batch_size: Most images at a time.
            output_type: "pil", "numpy" or "torch"; see `Samples`.
            progress: Called with the number of gradients just evaluated.
            settings: Fields of `LangevinConfig` (sampler, steps, temperature, ...); None means the
                model's own.

        Raises:
            UserInputError: A setting out of range, an unknown one, or symbols that the model has
                not.
            NonFiniteSampleError: A chain left the finite numbers.
        """
        require_choice("output_type", output_type, OutputType)
        require_integer("best_of", best_of, 1, MAX_CANDIDATES)
        require_choice("rank_by", rank_by, Ranking)
        if best_of > 1 and prior == "gaussian":
            raise UserInputError(
                f"best_of ranks by {rank_by}; it does not go with prior='gaussian'"
            )
        request, batch_size = self._request(
            num_images,
            seeds,
            symbols=symbols,
            guidance=guidance,
            prior=prior,
            batch_size=batch_size,
            progress=progress,
            **settings,
        )
        best = self._best(request, best_of, batch_size, rank_by)
        return self._samples(best, request.seeds, output_type)

    def _best(
        self, request: Request, best_of: int, batch_size: int, rank_by: Ranking = "density"
    ) -> _Drawn:
        """The result; of several candidates an image, the one that ranks first."""
        best: _Drawn | None = None
        for k in range(best_of):
            seeds = tuple(derived_seed(seed, k) for seed in request.seeds)
            *_, found = self._run(replace(request, seeds=seeds), batch_size)
            best = found if best is None else _keep_better(best, found, rank_by)
        assert best is not None
        return best

    def stream(
        self,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        *,
        output_type: OutputType = "pil",
        **options: Any,
    ) -> Iterator[Samples]:
        """As a call, but yields `Samples` after each noise level; the last one is what a call
        returns.

        Arguments:
            options: As of a call, without `best_of`.
        """
        require_choice("output_type", output_type, OutputType)
        given: dict[str, Any] = {"only_last": False} | options
        request, batch_size = self._request(num_images, seeds, **given)
        # Built eagerly: what is wrong with the request is said now, not when the first image is
        # asked for.
        states = self._run(request, batch_size)
        return (self._samples(state, request.seeds, output_type) for state in states)

    def trajectory(
        self,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        **options: Any,
    ) -> Trajectory:
        """All that `stream` yields: to look at as a sheet, or to save as an animation.

        Arguments:
            options: As of a call, without `best_of` and `output_type`. With `sampler="flow"` there
                is a frame for each of its `steps`.
        """
        return Trajectory(tuple(self.stream(num_images, seeds, output_type="pil", **options)))

    def _request(
        self,
        num_images: int | None,
        seeds: int | Iterable[int] | None,
        *,
        symbols: Symbols | None = None,
        guidance: Guidance = 1.0,
        prior: Prior = "ebm",
        batch_size: int = 16,
        progress: Progress | None = None,
        only_last: bool = True,
        **settings: Any,
    ) -> tuple[Request, int]:
        """A call's arguments, checked, and its batch size."""
        require_choice("prior", prior, Prior)
        require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        idle = sorted(k for k, v in settings.items() if v is not None and k != "temperature")
        idle += ["symbols"] if symbols is not None else []
        if prior == "gaussian" and idle:
            raise UserInputError(
                f"prior='gaussian' draws u at once, without {', '.join(idle)}; leave them out"
            )
        if num_images is None and seeds is None and isinstance(symbols, (list, tuple)):
            num_images = len(symbols)
        chosen = choose_seeds(num_images, seeds)
        config = self.sampling_config(**settings)
        condition = self._condition(symbols, guidance, len(chosen))
        request = Request(chosen, config, prior, condition, progress=progress, only_last=only_last)
        return request, batch_size

    def _condition(
        self, symbols: Symbols | None, guidance: Guidance, count: int
    ) -> Condition | None:
        if symbols is None and guidance == 1.0:
            return None
        return read_condition(self._energies().table, symbols, guidance, count, self.name)

    def _samples(self, state: _Drawn, seeds: tuple[int, ...], output_type: OutputType) -> Samples:
        terms = state.terms
        groups = len(self.generator.latent_shapes)
        energies = None if terms is None else -terms[:, :groups]
        return Samples(to_output(state.images, output_type), state.u, energies, seeds, state.level)

    def _run(self, request: Request, batch_size: int) -> Iterator[_Drawn]:
        """States of all images after each level, computed batch by batch."""
        starts = range(0, len(request.seeds), batch_size)
        walks = [self._walk(request.rows(i, i + batch_size)) for i in starts]
        return (_joined(states) for states in zip(*walks, strict=True))

    def _walk(self, request: Request) -> Iterator[_Drawn]:
        """One batch."""
        return self._decoded(self._side_by_side(request), request)

    def _side_by_side(self, request: Request) -> Iterator[_State]:
        """The states of one batch, its parts at the same time where cores compute."""
        cores = torch.get_num_threads() if self.device.type == "cpu" else 1
        bounds = part_bounds(len(request.seeds), cores)
        if len(bounds) == 1 or request.lifted or request.prior == "gaussian":
            return self._states(request)
        stop = Stop()
        parts = [request.rows(start, end) for start, end in bounds]
        parts[1:] = [replace(part, progress=stop) for part in parts[1:]]
        walks = [self._states(part) for part in parts]
        return (_whole(states) for states in side_by_side(walks, stop))

    def _states(self, request: Request) -> Iterator[_State]:
        """Of one batch, or a part of one."""
        noise = NoiseStreams(request.seeds, self.generator.latent_shapes, device=self.device)
        if request.prior == "gaussian":
            if request.given is not None:
                raise UserInputError(
                    "prior='gaussian' draws all groups at once and keeps none; leave it out"
                )
            u = noise.normal(request.config.temperature)
            terms = None
            if self.prior is not None:
                prior = self.prior
                terms = prior.join(self._lowest_outputs(u, len(request.seeds)))
            return iter([(0, u, terms)])
        return ((s.level, s.u, s.terms) for s in self._levels(noise, request))

    def _levels(self, noise: NoiseStreams, request: Request) -> Iterator[Any]:
        self._energies()
        assert self.config.prior is not None and self._schedule is not None
        given, config = request.given, request.config
        if given is not None:
            given = given.to(self.device)
        if given is not None and request.lifted:
            up = config.steps // 2
            config = replace(config, steps=config.steps - up)
            given = replace(given, eps=self._flow_noise(given, request, up))
        return sample_prior(
            self._energy_of(request),
            self._schedule,
            noise,
            config,
            parametrization=self.config.prior.parametrization,
            step_size_0=self.config.prior.step_size_0,
            sigma_high=min(FLOW_START, self.config.prior.sigma_max),
            given=given,
            posterior_variance=self.posterior_variance() if config.precondition else None,
            progress=cast("Callable[[int], None] | None", request.progress),
        )

    def _flow_noise(self, given: Given, request: Request, steps: int) -> Latents:
        """eps of `given` by the flow, with nothing asked and nothing observed."""
        assert self._schedule is not None and given.start_level is not None
        levels = self._schedule.levels
        path = flow_levels(steps, levels[0], levels[given.start_level], denoise=False)[::-1]
        progress = cast("Callable[[int], None] | None", request.progress)
        tally = GradientTally(request.seeds, progress)
        plain = replace(request, condition=None, likelihood=None)
        return flow_noise(self._energy_of(plain), given.u, path, tally)

    def _energy_of(self, request: Request) -> Energy:
        """Terms of F, (B, K), with what is asked and observed."""
        condition = request.condition and request.condition.to(self.device)
        likelihood = request.likelihood and request.likelihood.to(self.device)
        return _AskedEnergy(self._chain_energy(), condition, likelihood, self._precision)

    def posterior_variance(self) -> Latents:
        """w of every coordinate, (1, C_i, H_i, W_i) a group, on the pipeline's device: how wide
        q(u | x) is there, averaged over images (`pipeline/posterior_variance.py`). The steps of
        `precondition=True` follow it. Found once, and again after the networks were moved.

        Raises:
            UserInputError: the model has no encoder.
        """
        state = addresses(self.generator, self.encoder)
        if self._widths is None or self._widths[0] != state:
            with self._precision():
                found = posterior_variance(self.generator, self.encoder, self.device)
            self._widths = state, found
        return self._widths[1]

    def _chain_energy(self) -> ChainEnergy:
        """`energy_terms` for chains; made again after the networks were moved."""
        prior = self._energies()
        state = (addresses(self.generator, prior), self.compile_chains)
        if self._chains is None or self._chains[0] != state:
            energy = ChainEnergy(self.generator, prior, compiled=self.compile_chains)
            self._chains = state, energy
        return self._chains[1]

    def _decoded(self, states: Iterator[_State], request: Request) -> Iterator[_Drawn]:
        for level, u, terms in states:
            if request.only_last and level > 0:
                continue
            images = self._decode(u)
            finite = torch.isfinite(images).flatten(1).all(1)
            if terms is not None:
                terms = terms.detach().float().cpu()
                finite &= torch.isfinite(terms).all(1)
            if not bool(finite.all()):
                pairs = zip(request.seeds, finite.tolist(), strict=True)
                raise NonFiniteSampleError([seed for seed, fine in pairs if not fine], level, 0)
            yield _Drawn(level, tuple(g.detach().float().cpu() for g in u), terms, images)


def _whole(parts: tuple[_State, ...]) -> _State:
    """The state of a batch from those of its parts."""
    terms = [t for _, _, t in parts if t is not None]
    return parts[0][0], concatenate([u for _, u, _ in parts]), torch.cat(terms)


def _joined(states: tuple[_Drawn, ...]) -> _Drawn:
    """Batches one after another."""
    terms = [s.terms for s in states if s.terms is not None]
    return _Drawn(
        states[0].level,
        concatenate([s.u for s in states]),
        torch.cat(terms) if terms else None,
        torch.cat([s.images for s in states]),
    )


def _rank(state: _Drawn, rank_by: Ranking) -> Tensor:
    """log p(u | y) up to its constant, or F, (N,): high is better."""
    assert state.terms is not None
    gain = state.terms.sum(1).double()
    return gain if rank_by == "energy" else gain - half_squares(state.u).sum(1)


def _keep_better(old: _Drawn, new: _Drawn, rank_by: Ranking) -> _Drawn:
    """Image by image the one that ranks higher."""
    assert old.terms is not None and new.terms is not None
    better = _rank(new, rank_by) > _rank(old, rank_by)

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(better.reshape(-1, *(1,) * (a.dim() - 1)), b, a)

    return _Drawn(
        0,
        tuple(pick(a, b) for a, b in zip(old.u, new.u, strict=True)),
        pick(old.terms, new.terms),
        pick(old.images, new.images),
    )
