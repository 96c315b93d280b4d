"""What tells one model from another, whatever both are called: hashes of weights and description.

With these and a request's settings a seed is an image.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from hebm_sample.config import GeneratorConfig, ModelConfig
from hebm_sample.errors import UserInputError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hebm_sample.metrics.typicality import Calibration
    from hebm_sample.pipeline.model import Model

__all__ = [
    "calibration_if_any",
    "calibration_to_save",
    "description_hash",
    "encoder_hash",
    "own_calibration",
    "scores_hash",
    "state_of",
    "weights_hash",
]


_SHARP = ("sharp.",)  # beginning of the names of a sharp decoder's weights


def weights_hash(model: "Model") -> str:
    """The sha256 of every weight of generator and energies, whatever they were loaded from."""
    parts: list[object] = [model.generator]
    return _hash_of(model, "weights", parts if model.prior is None else [*parts, model.prior])


def encoder_hash(model: "Model") -> str:
    """The same of the encoder, which decides what is read out of an image."""
    return _hash_of(model, "encoder", [model.encoder])


def description_hash(config: ModelConfig) -> str:
    """The sha256 of what `config.json` says of generator and prior, noise levels included."""
    import hashlib  # a part of the commands' start that --help can do without

    described = config.to_dict()
    parts = {name: described[name] for name in ("generator", "prior")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def scores_hash(model: "Model", dtype: "torch.dtype | None" = None) -> str:
    """The sha256 of all that scores depend on: weights of generator, energies and encoder, and
    what `config.json` says of them; not a sharp decoder, which only shows images.

    Arguments:
        dtype: As the model is once it was saved in this precision and loaded; as it is if None.

    Raises:
        UserInputError: The model has no encoder, or no energies.
    """
    import hashlib

    from hebm_sample.hub.save import stored_dtype
    from hebm_sample.hub.weights import content_digest

    found = [description_hash(_without_sharp(model.config))]
    parts = {"generator": model.generator, "prior": model.energies(), "encoder": model.encoder}
    for name, part in parts.items():
        if dtype is None:
            found.append(_hash_of(model, f"{name} of scores", [part], without=_SHARP))
        else:
            stored = stored_dtype(model.config, f"{name}.safetensors", part, dtype)
            found.append(content_digest(part, stored=stored, without=_SHARP))
    return hashlib.sha256(" ".join(found).encode()).hexdigest()


def own_calibration(model: "Model") -> "tuple[Calibration | None, str]":
    """The calibration, if it is of these very weights; or None, and why in one line.

    Raises:
        WeightsError: Its file cannot be read.
    """
    if (found := model.calibration) is None:
        return None, (
            f"no p-values: {model.name} carries no calibration; write one into a model folder "
            "with hebm-train calibrate FOLDER --data SOURCE"
        )
    try:
        fits = found.weights == scores_hash(model)
    except UserInputError:  # without encoder or energies it has no scores
        fits = False
    if fits:
        return found, ""
    return None, (
        f"no p-values: the calibration of {model.name} is of other weights than it has now; "
        "calibrate it again with hebm-train calibrate FOLDER --data SOURCE"
    )


def calibration_if_any(model: "Model") -> "Calibration | None":
    """The same for what does without: None, too, where the file cannot be read."""
    try:
        return own_calibration(model)[0]
    except WeightsError:
        return None


def calibration_to_save(model: "Model", dtype: "torch.dtype") -> "Calibration | None":
    """The model's own, as of its weights once they were saved in this precision."""
    known = calibration_if_any(model)
    return known and known.saying(weights=scores_hash(model, dtype))


def state_of(*modules: "nn.Module") -> object:
    """What changes when a weight of the modules does, for a quarter of the time that a hash takes:
    which tensors they are and where, how often each was written to, and its Euclidean norm, since
    what is written through `.data` is not counted. None for weights that are not watched at all.
    """
    import torch

    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    if any(t.is_inference() for t in tensors):
        return None
    marks = [(id(t), t.data_ptr(), t._version) for t in tensors]
    norms = torch._foreach_norm([t.detach() for t in tensors if t.is_floating_point()])  # pyright: ignore[reportPrivateImportUsage]
    return marks, torch.stack([n.float().cpu() for n in norms]).tolist()


def _without_sharp(config: ModelConfig) -> ModelConfig:
    if not isinstance(config.generator, GeneratorConfig):
        return config
    return replace(config, generator=config.generator.without_sharp_decoder)


def _hash_of(
    model: "Model", name: str, parts: Sequence[object], without: tuple[str, ...] = ()
) -> str:
    """Computed again where a weight was changed."""
    from hebm_sample.hub.weights import content_digest  # torch: commands start without it

    modules = cast("Sequence[nn.Module]", parts)
    state, known = state_of(*modules), model.hashes.get(name)
    if known is None or state is None or known[0] != state:
        known = model.hashes[name] = (state, content_digest(*modules, without=without))
    return known[1]
