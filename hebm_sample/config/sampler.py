"""The sampler's settings, a part of a model's description that every call can change."""

import dataclasses
import typing
from dataclasses import dataclass, replace
from typing import Any, Literal

from hebm_sample.config.base import (
    ConfigBase,
    plain,
    require,
    require_choice,
    require_integer,
    require_range,
)

__all__ = [
    "CHAINLESS",
    "EDIT_GUIDANCE",
    "EDIT_STEPS",
    "MAX_FACTORS",
    "MAX_PARTICLES",
    "OF_CHAINS",
    "Kernel",
    "LangevinConfig",
    "MAX_GUIDANCE",
    "ReferenceVariance",
    "SamplerName",
    "Start",
]

# Gradients of an edit by inversion, half of them up, and of an inpainting: both need more than the
# samplers of some models.
EDIT_STEPS = 48
# Weight of the condition of an edit, and the most that any condition can have.
EDIT_GUIDANCE = 32.0
MAX_GUIDANCE = 100.0
MAX_PARTICLES = 1000
MAX_FACTORS = 1000  # temperatures, one per group

SamplerName = Literal["recovery", "annealed", "flow"]
# Those that follow a path of their own, with a state per step of it, and have no chains.
CHAINLESS: tuple[SamplerName, ...] = ("flow",)
# What only chains have.
OF_CHAINS = (
    "kernel",
    "start",
    "reference_variance",
    "step_scale",
    "early_share",
    "step_decay",
    "momentum",
    "metropolis",
    "precondition",
)
Kernel = Literal["corrected", "plain"]
Start = Literal["ancestral", "flow", "u_next"]
ReferenceVariance = Literal["sigma_next", "posterior"]


@dataclass(frozen=True)
class LangevinConfig(ConfigBase):
    """How to sample: the method, its number of gradients, and the Langevin kernel's settings.

    Arguments:
        sampler: "recovery" (the paper's), "annealed" or "flow".
        steps: Gradient evaluations in all.
        kernel: "corrected" leaves a Gaussian of the reference variance invariant; "plain" is the
            release's.
        start: Where a level's chain starts: "u_next", one deterministic flow step from it
            ("flow"), or one random ancestral step from it ("ancestral").
        reference_variance: C of the corrected kernel: "sigma_next", sigma_{t+1}^2 (1 for a
            marginal), or "posterior", B_t below.
        step_scale: c in s = c B_t, B_t the variance of q(u_t | u_{t+1}, u_0) (cum_sigma_t^2 for a
            marginal); for the plain kernel on the release's parametrisation the factor on its s_t.
        temperature: Factor on every noise draw's standard deviation; a list gives one per group.
        denoise: End with one flow step from the lowest level to noise 0.
        early_share: Gradients of the noisiest level over those of the lowest, not counting one
            that each level has anyway; those between lie on a line. 1 spends as many on each.
        step_decay: s at the end of each level's chain over s at its start; geometric between.
        momentum: rho, the part of the momentum that a step keeps (`sampling/chain.py`). 0 is
            overdamped Langevin.
        metropolis: Accept or refuse each step, so that the chain leaves its density exactly as it
            is; costs a gradient per level.
        particles: Chains per image; of each noise level's, those that the energies find unlikely
            give way to others (`sampling/particles.py`). Each costs as many gradients. They need
            the start "ancestral", which several that are asked for in a call bring along.
        precondition: Longer steps where the data leaves more room: B_t of each coordinate from
            the posterior's variance there, see `sampling/sample.py`.

    >>> LangevinConfig(sampler="flow", steps=20).temperature
    1.0
    >>> LangevinConfig(sampler="gibbs")
    Traceback (most recent call last):
    hebm_sample.errors.UserInputError: sampler is 'gibbs'; it can be 'recovery', 'annealed', 'flow'
    """

    sampler: SamplerName = "recovery"
    steps: int = 48
    kernel: Kernel = "corrected"
    start: Start = "flow"
    reference_variance: ReferenceVariance = "sigma_next"
    step_scale: float = 1.5
    temperature: float | tuple[float, ...] = 1.0
    denoise: bool = True
    early_share: float = 1.0
    step_decay: float = 1.0
    momentum: float = 0.0
    metropolis: bool = False
    precondition: bool = False
    particles: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # NumPy's and torch's numbers as Python's
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        require_choice("sampler", self.sampler, SamplerName)
        require_choice("kernel", self.kernel, Kernel)
        require_choice("start", self.start, Start)
        require_choice("reference_variance", self.reference_variance, ReferenceVariance)
        require_integer("steps", self.steps, 1, 100_000)
        require_range("step_scale", self.step_scale, 0.0, 1e6)
        require_range("early_share", self.early_share, 0.0, 100.0)
        if self.kernel == "corrected":
            require(
                self.step_scale <= 4,
                f"step_scale is {self.step_scale}; the corrected kernel needs s <= 4 C",
            )
        require_range("step_decay", self.step_decay, 0.001, 1.0)
        require_range("momentum", self.momentum, 0.0, 0.999)
        for name in ("denoise", "metropolis", "precondition"):
            require_choice(name, getattr(self, name), Literal[True, False])
        self._check_temperature()
        self._check_particles()
        moving = self.momentum > 0 or self.metropolis
        require(
            not moving or self.kernel == "plain" or self.step_scale < 4,
            "momentum and metropolis need steps with noise: step_scale below 4",
        )

    def _check_temperature(self) -> None:
        several = isinstance(self.temperature, (tuple, list))
        count = len(typing.cast("Any", self.temperature)) if several else 1
        require(
            1 <= count <= MAX_FACTORS,
            f"temperature has {count} numbers; give one, or one per group",
        )
        if several:  # a list from a caller becomes what a frozen dataclass should hold
            factors = map(plain, typing.cast("Any", self.temperature))
            object.__setattr__(self, "temperature", tuple(factors))
        for value in typing.cast("Any", self.temperature) if several else (self.temperature,):
            require_range("temperature", value, 0.0, 10.0)
        require(
            not self.metropolis or (not several and self.temperature != 0.0),
            f"temperature is {self.temperature}; metropolis needs one number above 0",
        )

    def _check_particles(self) -> None:
        require_integer("particles", self.particles, 1, MAX_PARTICLES)
        if self.particles == 1:
            return
        require(
            self.runs_chains and self.start == "ancestral",
            f"particles is {self.particles}; they need start='ancestral', a random step between "
            f"levels, and sampler='recovery' or 'annealed' (these are start={self.start!r}, "
            f"sampler={self.sampler!r})",
        )
        require(
            not isinstance(self.temperature, tuple) and self.temperature != 0.0,
            f"temperature is {self.temperature}; particles need one number above 0",
        )

    @property
    def gradients(self) -> int:
        """Per image, of all its particles."""
        return self.steps * self.particles

    @property
    def words(self) -> str:
        """Sampler and cost, for cards and tables.

        >>> LangevinConfig(steps=16, start="ancestral", particles=4).words
        'recovery, 64 gradients (4 particles of 16)'
        """
        several = f" ({self.particles} particles of {self.steps})" if self.particles > 1 else ""
        return f"{self.sampler}, {self.gradients} gradients{several}"

    @property
    def runs_chains(self) -> bool:
        """Whether chains run at the model's levels, with steps and densities of their own."""
        return self.sampler not in CHAINLESS

    def takes_particles(self) -> bool:
        """Whether these settings have proposals that particles can be weighed by."""
        single = isinstance(self.temperature, float | int) and self.temperature != 0.0
        return self.runs_chains and self.start == "ancestral" and single

    def changed(self, **settings: Any) -> "LangevinConfig":
        """With these settings in the place of its own. Its number of particles stays where they
        can have them; several that are asked for bring the start that they need along.
        """
        found = replace(self, **{**settings, "particles": 1})
        asked = plain(settings.get("particles", 1))
        several = isinstance(asked, int) and asked > 1
        if several and found.runs_chains and "start" not in settings:
            found = replace(found, start="ancestral")
        usual = self.particles if found.takes_particles() else 1
        return replace(found, particles=settings.get("particles", usual))

    def to_dict(self) -> dict[str, Any]:
        """As any other, but what was added later only where it says something: files and hashes
        of models from before it stay as they were.
        """
        later = (
            "early_share",
            "step_decay",
            "momentum",
            "metropolis",
            "precondition",
            "particles",
        )
        usual = {f.name: f.default for f in dataclasses.fields(self) if f.name in later}
        missing = object()
        return {k: v for k, v in super().to_dict().items() if v != usual.get(k, missing)}
