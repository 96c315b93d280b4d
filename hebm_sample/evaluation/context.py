"""An evaluation context: a model's latents and images, made once for every part of a measurement.

    gaussian, ebm      u of seeds 0 ... n - 1 under N(0, I) and under the energy-based prior
    held-out           u ~ q(u | x), -log p(x | h_{L+1}) and KL per group, of all held-out images

With a folder these are kept there as safetensors, 500 images per file, under a key of the
package's version, the model, the sampler and the data, and with a hash of what they hold: a
measurement that was interrupted goes on where it was, a second one reads them, and what is damaged
is made again. Images are decoded again each time, which costs little beside the chains.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hebm_sample import __version__
from hebm_sample.data.dataset import ImageDataset
from hebm_sample.data.holdout import random_rows, selected
from hebm_sample.errors import UserInputError
from hebm_sample.io.bars import disabled
from hebm_sample.io.files import write_atomically
from hebm_sample.io.images import to_uint8
from hebm_sample.io.kept import damaged, open_tensors, tensor_bytes
from hebm_sample.io.seeds import posterior_seed
from hebm_sample.latents import Latents, concatenate
from hebm_sample.metrics.features import extract
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.training.elbo import elbo

__all__ = [
    "EvaluationContext",
    "PriorSamples",
    "EncodedImages",
    "Spaces",
    "as_bytes",
    "clock",
    "fingerprint",
]

FORMAT = 1
IMAGES_A_FILE = 500
USUAL_BATCH = 50
IMAGE_SETS = ("gaussian", "ebm", "reconstructions", "reconstructed", "reference", "training")
Spaces = dict[str, tuple[Any, dict[str, Any]]]
Prior = Literal["gaussian", "ebm"]


class PriorSamples(NamedTuple):
    """Latents of seeds 0 ... n - 1, and the seconds that sampling them took."""

    u: Latents
    seconds: float


class EncodedImages(NamedTuple):
    """Held-out images: u ~ q(u | x), -log p(x | h_{L+1}) (N,) and KL per group (N, L) in nats."""

    u: Latents
    distortion: Tensor
    kl: Tensor


def as_bytes(images: Tensor) -> np.ndarray:
    """What a user would save: float images in [-1, 1] to uint8 (N, 3, S, S)."""
    return np.ascontiguousarray(to_uint8(images).transpose(0, 3, 1, 2))


def fingerprint(pipe: Pipeline, *, encoder: bool = False) -> str:
    """A hash of a model's config and weights."""
    # Records of its training change nothing that a model makes.
    config = {k: v for k, v in pipe.config.to_dict().items() if k != "training"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    modules = [pipe.generator, *([pipe.prior] if pipe.prior is not None else [])]
    for module in [*modules, *([pipe.encoder] if encoder else [])]:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def clock(device: torch.device) -> float:
    """Seconds, when all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Watch:
    """Counts gradients and keeps the time of the last one: what follows it is decoding."""

    def __init__(
        self, total: int, device: torch.device, progress: Callable[[int], object]
    ) -> None:
        self.left, self.device, self.progress = total, device, progress
        self.ended = math.nan

    def __call__(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            self.ended = clock(self.device)
        self.progress(count)


@dataclass
class EvaluationContext:
    """A model, the images to measure it on, and what has been made of both so far.

    Arguments:
        pipe: The model.
        num_images: n, in each set.
        training: What it was trained on; None where a measurement does without.
        held_out: 2 n images that it was not: the first n are reconstructed, the others are the
            reference.
        batch_size: Images at a time.
        folder: Where latents are kept; None keeps them in memory only.
        progress: Show bars.
        sampling: Fields of `LangevinConfig` in place of the model's own.
        every_held_out: All held-out images, of which scores take a random part; those of
            `held_out` if None.
    """

    pipe: Pipeline
    num_images: int
    training: ImageDataset | None = None
    held_out: ImageDataset | None = None
    batch_size: int = USUAL_BATCH
    folder: Path | None = None
    progress: bool = True
    sampling: dict[str, Any] = field(default_factory=dict)
    every_held_out: ImageDataset | None = None
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def of_model(self, pipe: Pipeline) -> "EvaluationContext":
        """The same images and folder for another model, with that model's own sampler."""
        return replace(self, pipe=pipe, sampling={}, _made={})

    def samples(self, prior: Prior) -> PriorSamples:
        """Latents of seeds 0 ... n - 1 under a prior."""
        settings = self.sampling if prior == "ebm" else {}
        total = self.pipe.total_steps(
            num_images=self.num_images,
            batch_size=self.batch_size,
            steps=settings.get("steps"),
            prior=prior,
        )
        config = self.pipe.sampling_config(**settings)
        key = [prior, fingerprint(self.pipe), config.to_dict()]
        key.append("seconds of u alone")  # earlier files' seconds hold decoding, too
        key += self.unusual()
        if prior == "gaussian" and self.pipe.config.sampling.temperature != 1:
            key.append("of variance 1")  # earlier files' is the temperature's
        if config.precondition:  # whose steps know the posterior
            key.append(fingerprint(self.pipe, encoder=True))
        bar = tqdm(
            total=total,
            desc="sampling",
            unit="grad",
            disable=disabled(bool(self.progress and total)),
        )

        def make(start: int, stop: int) -> dict[str, Tensor]:
            starts = range(start, stop, self.batch_size)
            batches = [range(i, min(i + self.batch_size, stop)) for i in starts]
            parts = [self._sample_batch(seeds, prior, bar.update) for seeds in batches]
            seconds = torch.tensor([sum(seconds for _, seconds in parts)])
            return _by_group(concatenate([u for u, _ in parts])) | {"seconds": seconds}

        with bar:
            found = self.cached(prior, key, self.num_images, make)
        return PriorSamples(self.latents_of(found), float(found["seconds"].sum()))

    def unusual(self, *, timed: bool = True) -> list[Any]:
        """What kept rows depend on besides their makers' own key: device and number format, and
        for their seconds the batch; nothing where all is as usual.
        """
        asked: dict[str, Any] = {"device": self.pipe.device.type, "dtype": str(self.pipe.dtype)}
        usual: dict[str, Any] = {"device": "cpu", "dtype": str(torch.float32)}
        if timed:
            asked, usual = asked | {"batch": self.batch_size}, usual | {"batch": USUAL_BATCH}
        found = {name: value for name, value in asked.items() if value != usual[name]}
        return [found] if found else []

    def _sample_batch(
        self, seeds: range, prior: Prior, progress: Callable[[int], object]
    ) -> tuple[Latents, float]:
        """u of a batch and the seconds that it took; decoding, which comes to all priors alike, is
        not timed.
        """
        device = self.pipe.device
        began = clock(device)
        if prior == "gaussian":
            streams = NoiseStreams(seeds, self.pipe.generator.latent_shapes, device=device)
            u = streams.normal()  # whatever the temperature of the model's chains
            seconds = clock(device) - began
            return tuple(g.float().cpu() for g in u), seconds
        watch = _Watch(self.pipe.sampling_config(**self.sampling).steps, device, progress)
        out = self.pipe(
            seeds=seeds,
            batch_size=self.batch_size,
            output_type="torch",
            progress=watch,
            **self.sampling,
        )
        return out.latents, watch.ended - began

    def encoded(self) -> EncodedImages:
        """Latents, distortion and KL of the held-out images."""
        images = self.held_out_images()
        key = [
            "seen",  # of files that are there already
            "noise of its own",
            fingerprint(self.pipe, encoder=True),
            images.identity,
            *self.unusual(timed=False),
        ]
        found = self.cached("held-out", key, len(images), self._encode_held_out)
        return EncodedImages(self.latents_of(found), found["distortion"], found["kl"])

    def encode_images(self, images: np.ndarray) -> EncodedImages:
        """The same of any images, uint8 (N, 3, S, S); not kept."""
        found = self._encode_rows(images, 0)
        return EncodedImages(self.latents_of(found), found["distortion"], found["kl"])

    def _encode_held_out(self, start: int, stop: int) -> dict[str, Tensor]:
        return self._encode_rows(np.asarray(self.held_out_images().images[start:stop]), start)

    @torch.no_grad()
    def _encode_rows(self, images: np.ndarray, first_seed: int) -> dict[str, Tensor]:
        pipe, parts = self.pipe, []
        starts = range(0, len(images), self.batch_size)
        for i in tqdm(starts, desc="encoding", unit="batch", disable=disabled(self.progress)):
            x = torch.from_numpy(np.array(images[i : i + self.batch_size])).float() / 127.5 - 1
            rows = range(first_seed + i, first_seed + i + len(x))
            seeds = [posterior_seed(row) for row in rows]  # not the noise of samples
            noise = NoiseStreams(seeds, pipe.generator.latent_shapes, device=pipe.device).normal()
            found = elbo(pipe.generator, pipe.encoder, x.to(pipe.device), noise)
            u = _by_group(tuple(g.cpu() for g in found.posterior.u))
            nats = {"distortion": found.distortion.double().cpu(), "kl": found.kl.double().cpu()}
            parts.append(u | nats)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def images(self, u: Latents) -> Iterator[np.ndarray]:
        """Mean images of u as bytes, uint8 (B, 3, S, S) a batch."""
        for i in range(0, len(u[0]), self.batch_size):
            rows = tuple(g[i : i + self.batch_size] for g in u)
            found = self.pipe.decode(rows, output_type="torch", batch_size=self.batch_size)
            yield as_bytes(found * 2 - 1)

    def stream(self, name: str) -> Iterator[np.ndarray]:
        """Batches of a set of `IMAGE_SETS`: `reconstructed` are the held-out images whose
        `reconstructions` are compared with the others, the `reference`.
        """
        half = self.num_images
        if name in ("gaussian", "ebm"):
            yield from self.images(self.samples(name).u)  # pyright: ignore[reportArgumentType]
            return
        if name == "reconstructions":
            yield from self.images(tuple(g[:half] for g in self.encoded().u))
            return
        if name == "training":
            if self.training is None:
                raise UserInputError("this needs the training images; give them with --data")
            images = self.training.images
        else:
            images = self.held_out_images().images
            images = images[:half] if name == "reconstructed" else images[half : 2 * half]
        for i in range(0, len(images), self.batch_size):
            yield np.asarray(images[i : i + self.batch_size])

    def features(self, name: str, spaces: Spaces) -> dict[str, np.ndarray]:
        """Features (N, D) of a set of images in every space; each set is decoded once."""
        return self._features(name, lambda: self.stream(name), spaces)

    def features_of(self, name: str, u: Latents, spaces: Spaces) -> dict[str, np.ndarray]:
        """The same of the images of any latents, kept under a name of the caller's."""
        return self._features(name, lambda: self.images(u), spaces)

    def _features(
        self, name: str, stream: Callable[[], Iterator[np.ndarray]], spaces: Spaces
    ) -> dict[str, np.ndarray]:
        missing = {s: e for s, (e, _) in spaces.items() if (name, s) not in self._made}
        if missing:
            parts: dict[str, list[np.ndarray]] = {s: [] for s in missing}
            bar = tqdm(desc=f"features, {name}", unit="img", disable=disabled(self.progress))
            for batch in stream():
                for space, extractor in missing.items():
                    parts[space].append(extract(extractor, batch))
                bar.update(len(batch))
            bar.close()
            for space, found in parts.items():
                self._made[name, space] = np.concatenate(found)
        return {s: self._made[name, s] for s in spaces}

    def held_out_images(self) -> ImageDataset:
        """The held-out images; `UserInputError` where there are none."""
        if self.held_out is None:
            raise UserInputError("this needs held-out images; give the data with --data")
        return self.held_out

    def scored_images(self, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Two sets of n held-out images, uint8 (n, 3, S, S), without an image in common: what
        fits a score, and what is scored, of which `most` at most. A fixed random part of all
        held-out images, since these may be sorted by class.
        """
        images = (self.every_held_out or self.held_out_images()).images
        rows = random_rows(len(images), 2 * self.num_images)
        fitting, scored = np.array_split(rows, 2)
        found = [selected(images, np.sort(part)) for part in (fitting, scored[:most])]
        return found[0], found[1]

    def latents_of(self, found: Mapping[str, Tensor]) -> Latents:
        """The groups u0, u1, ... out of what `cached` gives."""
        return tuple(found[f"u{i}"] for i in range(len(self.pipe.generator.latent_shapes)))

    def cached(
        self,
        name: str,
        key: list[Any],
        count: int,
        make: Callable[[int, int], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Rows 0 ... count - 1 of what `make(start, stop)` gives, from memory, the folder, or
        made.

        Arguments:
            name: Of the files, and in memory; one key has one name.
            key: What the rows depend on, as plain JSON values.
        """
        if name not in self._made:
            parts = []
            for start in range(0, count, IMAGES_A_FILE):
                stop = min(start + IMAGES_A_FILE, count)
                parts.append(self._cached_file(name, [*key, start, stop], start, stop, make))
            self._made[name] = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        return self._made[name]

    def _cached_file(
        self,
        name: str,
        key: list[Any],
        start: int,
        stop: int,
        make: Callable[[int, int], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        if self.folder is None:
            return make(start, stop)
        known = [FORMAT, __version__, *key]
        digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{start:06}-{digest}.safetensors"
        try:
            return open_tensors(path.read_bytes(), hashed=True)[0]
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            damaged(path, error)
        found = make(start, stop)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, tensor_bytes({k: v.contiguous() for k, v in found.items()}))
        return found


def _by_group(u: Latents) -> dict[str, Tensor]:
    return {f"u{i}": g for i, g in enumerate(u)}
