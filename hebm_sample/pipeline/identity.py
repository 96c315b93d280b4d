"""What tells one model from another, whatever both are called: hashes of weights and description.

With these and a request's settings a seed is an image.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from hebm_sample.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn

    from hebm_sample.pipeline.model import Model

__all__ = ["description_hash", "encoder_hash", "weights_hash"]


def weights_hash(model: "Model") -> str:
    """The sha256 of every weight of generator and energies, whatever they were loaded from."""
    parts: list[object] = [model.generator]
    return _hash_of(model, "weights", parts if model.prior is None else [*parts, model.prior])


def encoder_hash(model: "Model") -> str:
    """The same of the encoder, which decides what is read out of an image."""
    return _hash_of(model, "encoder", [model.encoder])


def description_hash(config: ModelConfig) -> str:
    """The sha256 of what `config.json` says of generator and prior, noise levels included."""
    described = config.to_dict()
    parts = {name: described[name] for name in ("generator", "prior")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _hash_of(model: "Model", name: str, parts: Sequence[object]) -> str:
    """Computed once where the networks stay as they are."""
    from hebm_sample.hub.weights import content_digest  # torch: commands start without it

    modules = cast("Sequence[nn.Module]", parts)
    if not model.fixed:
        return content_digest(*modules)
    if name not in model.hashes:
        model.hashes[name] = content_digest(*modules)
    return model.hashes[name]
