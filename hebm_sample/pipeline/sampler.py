"""Sampling a model: seeds, batches and conditions in, `Samples` out.

u ~ p(u) ∝ exp(F(T(u))) N(u; 0, I)    by the model's sampler, F as in `prior.symbols`
image = mean of p(x | h_{L+1}(u)), or the sharp decoder's of h_{L+1}(u)

"Learning Latent Space Hierarchical EBM Diffusion Models" (arXiv 2405.13910), whose prior is an
energy-based one as in "Learning Latent Space Energy-Based Prior Model" (arXiv 2006.08205).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from hebm_sample.config import DecoderName, require_choice, require_integer
from hebm_sample.errors import NonFiniteSampleError, UserInputError
from hebm_sample.io.seeds import continued_seed, derived_seed
from hebm_sample.latents import Latents, Scalar
from hebm_sample.pipeline.conditions import Guidance, Symbols
from hebm_sample.pipeline.model import Model
from hebm_sample.pipeline.outputs import OutputType, Samples, Trajectory, to_output
from hebm_sample.pipeline.progress import Callback, Progress, Watch
from hebm_sample.pipeline.provenance import Provenance, said_of_particles, settings_of
from hebm_sample.pipeline.request import (
    Likelihood,
    Prior,
    Request,
    check_particles,
    read_request,
)
from hebm_sample.pipeline.runtime.frozen_energy import ChainEnergy, CompiledTerms
from hebm_sample.pipeline.runtime.threads import Stop, in_threads, part_bounds, part_threads
from hebm_sample.pipeline.states import (
    ChainState,
    DecodedState,
    Ranking,
    better_of,
    join_batches,
    join_parts,
)
from hebm_sample.prior.density import Energy, EnergyAtLevel, level_rows
from hebm_sample.prior.symbols import Condition
from hebm_sample.sampling.constraints import LatentConstraint
from hebm_sample.sampling.inversion import invert, retrace
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.particles import particle_seeds
from hebm_sample.sampling.probability_flow import flow_levels
from hebm_sample.sampling.sample import sample_prior
from hebm_sample.sampling.state import GradientTally, LevelState

__all__ = ["Sampler"]

FLOW_START = 0.99  # cum_sigma where the probability flow begins
MAX_CANDIDATES = 1000


@dataclass(frozen=True)
class _ConditionedEnergy:
    """An `Energy` with its condition and a likelihood: terms of F, (B, K), in float32."""

    chain: ChainEnergy
    condition: Condition | None
    likelihood: Likelihood | None
    precision: Callable[[], AbstractContextManager[Any]]

    def at(self, level: Scalar) -> EnergyAtLevel:
        """F at one level."""
        fixed, likelihood = self.chain.at(level, self.condition), self.likelihood

        def terms(u: Latents) -> Tensor:
            with self.precision():
                found = fixed(u).float()
            if likelihood is None:
                return found
            measured = likelihood(u, level_rows(level, u))
            return torch.cat([found, measured[:, None]], dim=1)

        return terms


class Sampler:
    """Samples of a model.

    Arguments:
        model: Whose networks they come from.

    Attributes:
        compile_chains: Whether `torch.compile` has the chains' energies. Compiling takes long, so
            it can pay for many images only; off at first.
        bar_options: Of the progress bar; `tqdm`'s own where it says nothing.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.bar_options: dict[str, Any] = {}
        self.compile_chains = False
        self._compiled: CompiledTerms | None = None

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
        decoder: DecoderName | None = None,
        batch_size: int = 16,
        output_type: OutputType = "pil",
        progress: Progress | bool | None = None,
        callback: Callback | None = None,
        **settings: Any,
    ) -> Samples:
        """Sample images.

        Conditions are those of "Latent Space Energy-Based Model of Symbol-Vector Coupling for Text
        Generation and Classification" (arXiv 2108.11556), composed as products of densities.

        Arguments:
            num_images: How many, with seeds 0 ... n-1 (default 1).
            seeds: One per image: the same seed is the same image, in any batch.
            symbols: The condition, such as {"class": "horse"}, {"class": ["cat", "dog"]},
                {"class": "~cat"}, {"Smiling": "yes", "Male": "no"}; or a list, one per image.
            guidance: The weight w of the condition, one or one per variable: 0 ignores it, 1 is
                the model's conditional, more exaggerates.
            best_of: Sample so many candidates per image and keep the best. The first candidate is
                the seed's own image.
            rank_by: What is best: "density", the highest log p(u | y) = F - |u|^2 / 2 with the
                condition in F, the density that the sampler's lowest level has; or "energy", the
                lowest -F, its ratio to N(0, I) without |u|^2 / 2.
            prior: "ebm", or "gaussian" for u ~ N(0, I): the generator without its energies.
            decoder: What shows u: "sharp", the default of models that have it, or "likelihood",
                the mean of p(x | u). u, energies and scores are the same.
            batch_size: Most images at a time; alone, without `num_images` and seeds, so many
                images.
            output_type: "pil", "numpy" ("np") or "torch" ("pt"); see `Samples`.
            progress: True shows a bar, False none; None shows it in a terminal and in a notebook
                (`Pipeline.set_progress_bar_config`). Or a function, called with the number of
                gradients just evaluated.
            callback: Called after each gradient as callback(step, total, level): how many have
                been evaluated, of how many, and the noise level that the chains are at, 0 at last
                (with sampler="flow" the steps that are left). Batches follow one another; those
                of a stream take turns. An exception in it ends the chains and is raised.
            settings: Fields of `LangevinConfig` (sampler, steps, temperature, ...); None means the
                model's own.

        Raises:
            UserInputError: A setting out of range, an unknown one, or symbols or a decoder that
                the model has not.
            NonFiniteSampleError: A chain left the finite numbers.
        """
        require_choice("output_type", output_type, OutputType)
        best_of = require_integer("best_of", best_of, 1, MAX_CANDIDATES)
        require_choice("rank_by", rank_by, Ranking)
        if best_of > 1 and prior == "gaussian":
            raise UserInputError(
                f"best_of ranks by {rank_by}; it does not go with prior='gaussian'"
            )
        request = read_request(
            self.model,
            num_images,
            seeds,
            symbols=symbols,
            guidance=guidance,
            prior=prior,
            decoder=decoder,
            batch_size=batch_size,
            progress=progress,
            callback=callback,
            facts={"best_of": best_of, "rank_by": rank_by} if best_of > 1 else None,
            **settings,
        )
        best = self.best(request, best_of, rank_by)
        return self.samples(best, request, output_type)

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
        options = {"only_last": False} | options
        request = read_request(self.model, num_images, seeds, **options)
        # Built eagerly: what is wrong with the request is said now, not when the first image is
        # needed.
        states, said = self.run(request), self._provenance(request)
        return (self.samples(state, request, output_type, said) for state in states)

    def trajectory(
        self,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        **options: Any,
    ) -> Trajectory:
        """All that `stream` yields: to look at as a grid, or to save as an animation.

        Arguments:
            options: As of a call, without `best_of` and `output_type`. With `sampler="flow"` there
                is a frame for each of its `steps`.
        """
        return Trajectory(tuple(self.stream(num_images, seeds, output_type="pil", **options)))

    # Of requests

    def best(
        self, request: Request, best_of: int = 1, rank_by: Ranking = "density"
    ) -> DecodedState:
        """The result; of several candidates per image, the one that ranks first."""
        check_particles(self.model, request)
        best: DecodedState | None = None
        with closing(self._watch(request, best_of)) as watch:
            for k in range(best_of):
                seeds = tuple(derived_seed(seed, k) for seed in request.seeds)
                *_, found = self._run(replace(request, seeds=seeds, progress=watch))
                best = found if best is None else better_of(best, found, rank_by)
        assert best is not None
        return best

    def run(self, request: Request) -> Iterator[DecodedState]:
        """States of all images after each level, computed batch by batch."""
        check_particles(self.model, request)
        watch = self._watch(request)
        return watch.over(self._run(replace(request, progress=watch)))

    def _watch(self, request: Request, times: int = 1) -> Watch:
        """Who is told of the gradients of a request that is run so often."""
        total = times * request.gradients
        progress = cast("Progress | bool | None", request.progress)
        return Watch(total, progress, request.callback, self.bar_options)

    def _run(self, request: Request) -> Iterator[DecodedState]:
        energy = self.chain_energy() if request.prior == "ebm" else None
        if request.only_last:
            return self._ends(request, energy)
        walks = [self._batch(batch, energy) for batch in request.batches()]
        return (join_batches(states) for states in zip(*walks, strict=True))

    def _ends(self, request: Request, energy: ChainEnergy | None) -> Iterator[DecodedState]:
        """The result alone; what a batch needs is made when it begins and dropped at its end."""
        ends: list[DecodedState] = []
        for batch in request.batches():
            *_, end = self._batch(batch, energy)
            ends.append(end)
        yield join_batches(ends)

    def samples(
        self,
        state: DecodedState,
        request: Request,
        output_type: OutputType,
        said: tuple[Provenance, ...] | None = None,
    ) -> Samples:
        """A state of a request as it is given to the user.

        Arguments:
            said: What the files of its images say, where that is known already.
        """
        groups = len(self.model.generator.latent_shapes)
        energies = None if state.terms is None else -state.terms[:, :groups]
        images = to_output(state.images, output_type)
        said = self._provenance(request) if said is None else said
        if state.level:  # on the way: its file is not that of the finished image
            said = tuple(each.saying(level=state.level) for each in said)
        seeds, decoder = request.seeds, request.decoder
        return Samples(
            images, state.u, energies, seeds, state.level, decoder=decoder, provenance=said
        )

    def _provenance(self, request: Request) -> tuple[Provenance, ...]:
        """What the file of each image says."""
        config = request.config
        chain = request.prior != "gaussian"
        how: dict[str, Any] = {
            "sampler": config.sampler if chain else None,
            "steps": config.steps if chain else None,
            "temperature": None if request.inverted else config.temperature,
            "prior": request.prior,
        }
        how |= said_of_particles(config, self.model.config.sampling) if chain else {}
        how |= {"sampling": settings_of(config)} if chain else {}
        how |= {"compile": "yes"} if chain and self.compile_chains else {}  # it rounds otherwise
        encoder = chain and config.precondition  # whose steps follow the posterior
        common = Provenance.of_decoded(self.model, request.decoder, encoder=encoder)
        common = common.saying(**how, **request.facts)
        rows = zip(request.seeds, request.asked or ({},) * len(request.seeds), strict=True)
        return tuple(common.saying(**asked).of_seeds(seed) for seed, asked in rows)

    def chain_energy(self) -> ChainEnergy:
        """`Model.energy_terms` for chains, of the networks as they are now.

        Made for a call and dropped with it: networks that were moved, exchanged or trained further
        are those of the next call.
        """
        if not self.compile_chains:
            return ChainEnergy(self.model.generator, self.model.energies())
        self._compiled = self._compiled or CompiledTerms()
        return ChainEnergy(self.model.generator, self.model.energies(), compiled=self._compiled)

    def _batch(self, request: Request, energy: ChainEnergy | None) -> Iterator[DecodedState]:
        """The states of one batch, its parts at the same time where cores compute."""
        cores = part_threads() if self.model.device.type == "cpu" else 1
        bounds = part_bounds(len(request.seeds), cores)
        if energy is None:
            return self._decoded(self._gaussian(request), request)
        if len(bounds) == 1 or request.inverted:
            return self._decoded(self._states(request, energy), request)
        stop = Stop()
        parts = [request.rows(start, end) for start, end in bounds]
        parts[1:] = [replace(part, progress=stop) for part in parts[1:]]
        walks = [self._states(part, energy) for part in parts]
        states = (join_parts(states) for states in in_threads(walks, stop))
        return self._decoded(states, request)

    def _noise(self, request: Request) -> NoiseStreams:
        """One stream an image, or one a particle of each."""
        names, seeds = request.seeds, request.seeds
        if request.constraint is not None:
            seeds = tuple(continued_seed(seed) for seed in seeds)
        if request.prior != "gaussian" and (count := request.config.particles) > 1:
            names = [seed for seed in names for _ in range(count)]
            seeds = particle_seeds(seeds, count)
        shapes = self.model.generator.latent_shapes
        return NoiseStreams(seeds, shapes, device=self.model.device, names=names)

    def _gaussian(self, request: Request) -> Iterator[ChainState]:
        """u ~ N(0, I)."""
        if request.constraint is not None:
            raise UserInputError(
                "prior='gaussian' draws all groups at once and keeps none; leave it out"
            )
        u, terms = self._noise(request).normal(request.config.temperature), None
        if self.model.prior is not None:
            terms = self.model.prior.join(self.model.lowest_outputs(u, len(request.seeds)))
        return iter([ChainState(0, u, terms)])

    def _states(self, request: Request, energy: ChainEnergy) -> Iterator[ChainState]:
        """Of one batch, or a part of one."""
        if isinstance(watch := request.progress, Watch):
            walk = watch.of_walk(self._first_level(request))
            levels = walk.over(self._levels(replace(request, progress=walk), energy))
        else:
            levels = self._levels(request, energy)
        return (ChainState(s.level, s.u, s.terms) for s in levels)

    def _first_level(self, request: Request) -> int:
        """That of the first state: chains' noise levels, or the steps of the flow."""
        assert self.model.schedule is not None
        steps, constraint = request.config.steps, request.constraint
        if request.config.sampler == "flow":
            return (steps - steps // 2 if request.inverted else steps) - 1
        start = None if constraint is None else constraint.start_level
        return (self.model.schedule.num_levels if start is None else start) - 1

    def _levels(self, request: Request, energy: ChainEnergy) -> Iterator[LevelState]:
        model = self.model
        assert model.config.prior is not None and model.schedule is not None
        constraint, config = request.constraint, request.config
        if constraint is not None:
            constraint = constraint.to(model.device)
        if constraint is not None and request.inverted:
            return self._inverted(constraint, request, energy)
        request = replace(request, constraint=constraint)
        noise = self._noise(request)
        if config.particles > 1:
            request = request.particles()
        return sample_prior(
            self._conditioned(request, energy),
            model.schedule,
            noise,
            config,
            parametrization=model.config.prior.parametrization,
            step_size_0=model.config.prior.step_size_0,
            sigma_high=min(FLOW_START, model.config.prior.sigma_max),
            given=request.constraint,
            posterior_variance=model.posterior_variance() if config.precondition else None,
            progress=request.told,
        )

    def _inverted(
        self, constraint: LatentConstraint, request: Request, energy: ChainEnergy
    ) -> Iterator[LevelState]:
        """Up the unconditional flow, and back down the conditional one."""
        assert self.model.schedule is not None and constraint.start_level is not None
        levels, config = self.model.schedule.levels, request.config
        high = levels[constraint.start_level]
        path = flow_levels(config.steps // 2, levels[0], high, denoise=config.denoise)
        tally = GradientTally(request.seeds, request.told)
        plain = self._conditioned(replace(request, condition=None, likelihood=None), energy)
        way = invert(plain, constraint.u, path, tally, first_step=config.steps % 2 == 1)
        conditioned = self._conditioned(request, energy)
        return retrace(conditioned, way, tally, constraint.clamped, lowest=levels[0])

    def _conditioned(self, request: Request, energy: ChainEnergy) -> Energy:
        """Terms of F, (B, K), with the condition and the likelihood."""
        device = self.model.device
        condition = request.condition and request.condition.to(device)
        likelihood = request.likelihood and request.likelihood.to(device)
        return _ConditionedEnergy(energy, condition, likelihood, self.model.precision)

    def _decoded(self, states: Iterator[ChainState], request: Request) -> Iterator[DecodedState]:
        for level, u, terms in states:
            if request.only_last and level > 0:
                continue
            images = self.model.images(u, request.decoder)
            finite = torch.isfinite(images).flatten(1).all(1)
            if terms is not None:
                terms = terms.detach().float().cpu()
                finite &= torch.isfinite(terms).all(1)
            if not bool(finite.all()):
                pairs = zip(request.seeds, finite.tolist(), strict=True)
                raise NonFiniteSampleError([seed for seed, fine in pairs if not fine], level, 0)
            u = tuple(g.detach().float().cpu() for g in u)
            yield DecodedState(level, u, terms, images)
