r"""A baseline: a small diffusion model of u (latent DDPM) in the place of the energy-based prior.

    u_s = a(s) u_0 + s eps,   a^2 + s^2 = 1,       s log-uniform, as for the energies
    loss = E | eps_hat(u_s, s) - eps |^2 / D       eps_hat = s u_s + net(u_s, log SNR)

With net = 0 that is N(0, I), where the energies start, too. The net sees nothing of the
generator: the groups are brought to one grid (finer ones folded into channels, coarser ones
repeated), a stack of residual cells works there, and each group's part is brought back. Its width
is the one that gives about as many parameters as the energies have; data, optimiser, steps,
average and checkpoints are the prior's.

Sampling steps down the flow's levels (`sampling/probability_flow.py`), even in log SNR, from s to
r < s. With s = sin(theta), a(s) = cos(theta), n = eps_hat - s u, the net's departure from N(0, I),
rho = a(s) / a(r) and c^2 = eta^2 (1 - rho^2),

    u <- sqrt(1 - c^2) u - ((1 - eta^2) sin(theta_s - theta_r) / a(s)
                            + eta^2 (1 - rho^2) / (rho s)) n + c eps

eta = 1 is ancestral sampling with the variance that is right for N(0, I) (the first choice of Ho
et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, section 3.2). eta = 0 is
deterministic; it differs from the step of Song et al., "Denoising Diffusion Implicit Models"
(arXiv 2010.02502), as the flow's does: theirs is exact for a point mass and shrinks N(0, I). So
all steps leave N(0, I) as it is where n = 0, like the energies' samplers. The last step, to r = 0,
is deterministic. A diffusion model of a generator's latents is Rombach et al., "High-Resolution
Image Synthesis with Latent Diffusion Models" (arXiv 2112.10752).
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebm_sample.config import TrainingRecord, require_integer, require_range
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.hub.weights import content_digest
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.files import MAX_FILE_BYTES, read_capped, write_atomically
from hebm_sample.io.kept import open_tensors, tensor_bytes
from hebm_sample.latents import Latents, flatten
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.preset import Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.prior.network import LevelEmbedding
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.probability_flow import flow_levels
from hebm_sample.training.checkpoint import latest_checkpoint, load_part, read_state
from hebm_sample.training.devices import agreed, by_first
from hebm_sample.training.elbo import standard_normal
from hebm_sample.training.ending import has_ended
from hebm_sample.training.energy import Images, PriorObjective, stratified
from hebm_sample.training.heldout import BATCH, heldout_figures
from hebm_sample.training.record import record_of, same_rows
from hebm_sample.training.trainer import RunResult, Task, make_accelerator, make_run_folder, train

__all__ = [
    "DDPM_FILE",
    "DenoisingObjective",
    "LatentDenoiser",
    "TrainedDdpm",
    "latents_digest",
    "load_ddpm",
    "matching_width",
    "read_ddpm",
    "sample_ddpm",
    "save_ddpm",
    "told_by_run",
    "train_ddpm",
]

DDPM_FILE = "ddpm.safetensors"
GRID = 8
FORMAT_VERSION = 1
HIGHEST = 0.99  # s where sampling starts, as the flow's
Shapes = Sequence[tuple[int, int, int]]


class _Cell(nn.Module):
    """h + conv(silu(scale(level) conv(silu(norm(h))) + shift(level)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.first, self.last = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.level = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.last.weight)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.level(level)[:, :, None, None].chunk(2, dim=1)
        inner = self.first(F.silu(self.norm(h))) * (1 + scale) + shift
        return h + self.last(F.silu(inner))


class LatentDenoiser(nn.Module):
    """eps_hat of all groups of u and a noise level.

    Arguments:
        shapes: (C, H, W) a group, square.
        width: Channels of the cells.
        cells: How many.
        sigma_min: Smallest s that training visits, where sampling ends.
    """

    def __init__(
        self, shapes: Shapes, width: int = 96, cells: int = 6, sigma_min: float = 0.1
    ) -> None:
        super().__init__()
        require_integer("width", width, 4, 4096)
        require_integer("cells", cells, 1, 64)
        require_range("sigma_min", sigma_min, 1e-4, 0.9)
        self.shapes = tuple((int(c), int(h), int(w)) for c, h, w in shapes)
        self.width, self.cells, self.sigma_min = width, cells, sigma_min
        self.grid = min(GRID, max(h for _, h, _ in self.shapes))
        channels = sum(self._channels(s) for s in self.shapes)
        self.embedding = LevelEmbedding(width)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.stack = nn.ModuleList(_Cell(width) for _ in range(cells))
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.head = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def settings(self) -> dict[str, Any]:
        """Plain values from which `LatentDenoiser(**settings)` is rebuilt."""
        shapes = [list(s) for s in self.shapes]
        return {
            "shapes": shapes,
            "width": self.width,
            "cells": self.cells,
            "sigma_min": self.sigma_min,
        }

    def _channels(self, shape: tuple[int, int, int]) -> int:
        channels, side, _ = shape
        return channels * max(1, side // self.grid) ** 2

    def _gather(self, u: Latents) -> Tensor:
        """All groups on one grid, (B, C, G, G)."""
        parts = []
        for group, (_, side, _) in zip(u, self.shapes, strict=True):
            if side > self.grid:
                group = F.pixel_unshuffle(group, side // self.grid)
            elif side < self.grid:
                group = F.interpolate(group, (self.grid, self.grid), mode="nearest")
            parts.append(group)
        return torch.cat(parts, dim=1)

    def _scatter(self, maps: Tensor) -> Latents:
        """Back to the groups: the inverse of folding; means where positions were repeated."""
        parts = maps.split([self._channels(s) for s in self.shapes], dim=1)
        groups = []
        for part, (_, side, _) in zip(parts, self.shapes, strict=True):
            if side > self.grid:
                part = F.pixel_shuffle(part, side // self.grid)
            elif side < self.grid:
                part = F.adaptive_avg_pool2d(part, side)
            groups.append(part)
        return tuple(groups)

    def forward(self, u: Latents, sigma: Tensor) -> Latents:
        """eps_hat, shaped like u_s; s is (B,)."""
        level = self.embedding(torch.log1p(-sigma.square()) - 2 * sigma.log())
        h = self.stem(self._gather(u))
        for cell in self.stack:
            h = cell(h, level)
        found = self._scatter(self.head(F.silu(self.norm(h))))
        s = sigma[:, None, None, None]
        return tuple(s * g + part for g, part in zip(u, found, strict=True))


def matching_width(shapes: Shapes, parameters: int, cells: int = 6) -> int:
    """The width, a multiple of 8, whose net comes closest to that many parameters."""

    def count(width: int) -> int:
        with torch.device("meta"):
            net = LatentDenoiser(shapes, width, cells)
        return sum(p.numel() for p in net.parameters())

    low, high = 1, 64  # times 8; the count rises with the width
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if count(8 * middle) < parameters else (low, middle)
    return min((8 * max(low - 1, 1), 8 * low), key=lambda w: abs(count(w) - parameters))


class DenoisingObjective(nn.Module):
    """The module's loss, on fresh samples u_0 ~ q(u | x).

    Arguments:
        frozen: The prior's objective, for its posterior samples; none of it learns here.
        net: What learns.
        sigma_max: Largest s.
    """

    def __init__(self, frozen: PriorObjective, net: LatentDenoiser, sigma_max: float) -> None:
        super().__init__()
        self.frozen, self.net, self.sigma_max = frozen.requires_grad_(False), net, sigma_max

    def forward(
        self,
        images: Images,
        fraction: float,
        labels: Tensor | None = None,
        stream: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Mean square per dimension, with `gaussian` (the loss at net = 0) and `drop` below it.

        Arguments:
            images: (B, 3, S, S) in [-1, 1], or their `Encoder.features`.
            fraction, labels: Unused here.
            stream: Of all noise.
        """
        u_0 = self.frozen.posterior_draw(images, stream)
        batch, device = len(u_0[0]), u_0[0].device
        ratio = self.sigma_max / self.net.sigma_min
        sigma = self.net.sigma_min * ratio ** stratified(batch, device, stream)
        noise = standard_normal(self.net.shapes, batch, device, stream)
        s = sigma[:, None, None, None]
        a = (1 - s.square()).sqrt()
        u = tuple(a * g + s * n for g, n in zip(u_0, noise, strict=True))
        loss = (flatten(self.net(u, sigma)) - flatten(noise)).square().mean()
        with torch.no_grad():
            gaussian = (sigma[:, None] * flatten(u) - flatten(noise)).square().mean()
        return loss, {"gaussian": gaussian, "drop": gaussian - loss.detach()}


def _coefficients(s: float, r: float, eta: float) -> tuple[float, float]:
    """Of n and of the fresh noise in a step from s down to r; the module's formula."""
    a = math.sqrt(1 - s * s)
    turn = math.sin(math.asin(s) - math.asin(r)) / a
    if eta == 0 or r == 0:
        return turn, 0.0
    rho = a / math.sqrt(1 - r * r)
    ancestral = (1 - rho * rho) / (rho * s)
    return (1 - eta**2) * turn + eta**2 * ancestral, eta * math.sqrt(1 - rho * rho)


@usual_defaults()
@torch.no_grad()
def sample_ddpm(
    net: LatentDenoiser,
    noise: NoiseStreams,
    *,
    steps: int = 48,
    eta: float = 1.0,
    progress: Callable[[int], object] | None = None,
) -> Latents:
    """u of the streams' seeds, by `steps` evaluations of the net; (N, C_i, H_i, W_i) a group."""
    require_integer("steps", steps, 1, 100_000)
    require_range("eta", eta, 0.0, 1.0)
    path = flow_levels(steps, net.sigma_min, HIGHEST)
    u = noise.normal()
    for s, r in zip(path, path[1:], strict=False):
        slope, spread = _coefficients(s, r, eta)
        sigma = torch.full((len(u[0]),), s, device=u[0].device)
        away = tuple(e - s * g for e, g in zip(net(u, sigma), u, strict=True))
        kept = math.sqrt(1 - spread**2)
        u = tuple(kept * g - slope * n for g, n in zip(u, away, strict=True))
        if spread:
            u = tuple(g + spread * e for g, e in zip(u, noise.normal(), strict=True))
        if progress is not None:
            progress(1)
    return u


class TrainedDdpm(NamedTuple):
    """What a file holds: the net, the file's sha256, `latents_digest` of the model that it was
    trained for and the record of its training, None where the file does not say.
    """

    net: LatentDenoiser
    digest: str
    latents: str | None
    record: TrainingRecord | None


def latents_digest(model: Pipeline) -> str:
    """The sha256 of what u means in a model: T, and the encoder where it has one, in half
    precision as they are on disk. Image decoders, which can be trained further, do not count.
    """
    networks: list[nn.Module] = [model.generator]
    if model.has_encoder:
        networks.append(model.encoder)
    decoders = ("decoder.", "likelihood.", "sharp.")
    return content_digest(*networks, stored=torch.float16, without=decoders)


def save_ddpm(
    net: LatentDenoiser, path: Path, latents: str = "", record: TrainingRecord | None = None
) -> None:
    """Write weights and settings to one safetensors file; raises `EnvironmentFailure`.

    Arguments:
        latents: `latents_digest` of the model that it was trained for.
        record: Of its training.
    """
    header = {"format_version": str(FORMAT_VERSION), "settings": json.dumps(net.settings())}
    header |= {"latents": latents} if latents else {}
    header |= {} if record is None else {"training": json.dumps(record.to_dict())}
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    write_atomically(path, tensor_bytes(tensors, header))


def load_ddpm(folder: str | Path) -> LatentDenoiser:
    """What a run of `train_ddpm` left in `folder`; `UserInputError` where there is nothing."""
    return read_ddpm(folder).net


@usual_defaults()
def read_ddpm(folder: str | Path) -> TrainedDdpm:
    """The same, with what the file says of it; the file is read once."""
    path = Path(folder) / DDPM_FILE
    if not path.is_file():
        raise UserInputError(f"{folder} has no {DDPM_FILE}; train one with hebm-train baseline")
    data = read_capped(path, MAX_FILE_BYTES)
    try:
        tensors, header = open_tensors(data)
        net = LatentDenoiser(**json.loads(header["settings"]))
        net.load_state_dict(tensors)
        record = header.get("training") and TrainingRecord.from_dict(
            json.loads(header["training"])
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} is no usable latent DDPM ({error}); train it again") from error
    net = net.requires_grad_(False).eval()
    return TrainedDdpm(
        net, hashlib.sha256(data).hexdigest(), header.get("latents"), record or None
    )


def told_by_run(found: TrainedDdpm, run: Path, model: Pipeline) -> TrainedDdpm:
    """A file that says nothing of its training, with what the checkpoint of its run proves: that
    the net is the run's, and the model's networks those that it was trained with.
    """
    checkpoint = latest_checkpoint(run)
    if found.latents is not None or checkpoint is None or not model.has_encoder:
        return found
    state = read_state(checkpoint)
    if state["identity"]["kind"] != "ddpm" or not state["finished"]:
        return found
    net = LatentDenoiser(**found.net.settings())
    try:
        load_part(checkpoint, "ema", "module.", net)
    except WeightsError:
        return found
    frozen = content_digest(model.generator, model.encoder, without=("sharp.",))
    same = content_digest(net) == content_digest(found.net.cpu())
    if not same or state["identity"]["data"].split(" ")[-1] != frozen:
        return found
    return found._replace(latents=latents_digest(model), record=_record(state))


def _record(state: dict[str, Any]) -> TrainingRecord:
    """Of a run's state; a DDPM stands in the prior's place."""
    return record_of({**state, "identity": {**state["identity"], "kind": "prior"}})


@usual_defaults()
def train_ddpm(
    preset: Preset,
    model: Pipeline,
    images: ImageDataset,
    folder: str | Path,
    *,
    resume: bool = False,
    accelerator: Any = None,
    show_progress: bool = True,
) -> RunResult:
    """Train a latent DDPM for `model`'s generator, with the settings that the preset trains the
    prior with; ends with `ddpm.safetensors` in `folder`.

    Arguments:
        preset: Its prior's sigmas and settings.
        model: Generator, encoder, and the energies whose number of parameters is matched.
        images: All rows; those that the settings' `validation` says are kept apart. The weights
            that are best on them are kept, as of the energies.
        resume: Go on from the folder's newest whole checkpoint.
        accelerator: accelerate's engine; made if None.

    Raises:
        UserInputError: The generator was trained on other rows of these data.
    """
    accelerator = accelerator or make_accelerator()
    settings, device = agreed(preset.prior_settings, accelerator), accelerator.device
    training, validation = images.split(settings.validation)
    same_rows(model.name, model.config.training, training)
    objective = _objective(preset, model.to(device), device)
    net = objective.net
    folder, ended = Path(folder), has_ended(Path(folder), DDPM_FILE)
    make_run_folder(folder)

    def preview(learner: nn.Module) -> Tensor:
        noise = NoiseStreams(range(16), net.shapes, device=device)
        u = sample_ddpm(learner, noise, steps=20)  # pyright: ignore[reportArgumentType]
        return model.decode(u, output_type="torch") * 2 - 1

    former = f"{training.identity} ddpm {net.width}"
    sigmas = net.sigma_min, preset.prior.sigma_max
    identity = f"{former} {sigmas} {content_digest(model.generator, model.encoder)}"
    task = Task("ddpm", objective, net, model.config, preview, identity, former=(former, ""))
    result = train(
        replace(task, evaluate=_evaluation(objective, validation, settings, device)),
        training,
        settings,
        folder,
        resume=resume and latest_checkpoint(folder) is not None,
        accelerator=accelerator,
        show_progress=show_progress,
    )
    if not ended:
        learned = cast("LatentDenoiser", result.learner)
        told = latents_digest(model), _record(result.state)
        by_first(accelerator, lambda: save_ddpm(learned, folder / DDPM_FILE, *told))
    return result


def _evaluation(
    objective: DenoisingObjective,
    validation: ImageDataset,
    settings: TrainSettings,
    device: torch.device,
) -> Callable[[nn.Module], dict[str, float]] | None:
    """The loss of a net on held-out images; None where there are none."""

    def evaluate(learner: nn.Module) -> dict[str, float]:
        net = cast("LatentDenoiser", learner)
        measured = DenoisingObjective(objective.frozen, net, objective.sigma_max)
        names, at_once = {"drop": "heldout_gain"}, settings.at_once(BATCH)
        return heldout_figures(measured, validation, settings.heldout, device, names, at_once)

    return evaluate if len(validation) else None


def _objective(preset: Preset, model: Pipeline, device: torch.device) -> DenoisingObjective:
    """A new net of about as many parameters as the energies, and its loss."""
    if model.prior is None or model.config.prior is None:
        raise UserInputError(f"{model.name} has no energy-based prior to match in size")
    shapes = model.generator.latent_shapes
    width = matching_width(shapes, sum(p.numel() for p in model.prior.parameters()))
    torch.manual_seed(preset.prior_settings.seed)
    net = LatentDenoiser(shapes, width, sigma_min=preset.prior.sigma_min).to(device)
    frozen = PriorObjective(model.generator, model.encoder, model.prior)
    return DenoisingObjective(frozen, net, preset.prior.sigma_max)
