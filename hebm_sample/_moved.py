"""Modules that have moved, by the names that earlier documentation showed.

    import hebm_sample.samples        is        import hebm_sample.pipeline.outputs

with a `DeprecationWarning`. The table is the only thing to keep.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "install"]

MOVED = {
    "conditions": "pipeline.conditions",
    "samples": "pipeline.outputs",
    "metrics.judge": "metrics.attribute_classifier",
    "metrics.ood": "evaluation.ood",
    "metrics.reference": "evaluation.reference",
    "pipeline.scorer": "pipeline.scores",
    "prior.conditional": "prior.density",
    "prior.energy": "prior.network",
    "sampling.driver": "sampling.sample",
    "sampling.flow": "sampling.probability_flow",
    "sampling.given": "sampling.constraints",
    "training.adversary": "training.decoding.adversary",
    "training.control": "evaluation.control",
    "training.data": "data.dataset",
    "training.decoder": "training.decoding.objective",
    "training.evaluate": "evaluation.distances",
    "training.generator": "training.elbo",
    "training.judging": "evaluation.classifiers",
    "training.loop": "training.trainer",
    "training.presets": "presets.models",
    "training.prior": "training.energy",
    "training.runs": "training.train",
    "training.settings": "presets.settings",
    "training.train_decoder": "training.decoding.train",
}


class _Alias(Loader):
    """Loads a module that is another one."""

    def __init__(self, target: str) -> None:
        self.target = target

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself, under its new name."""
        warnings.warn(f"{spec.name} is {self.target} now", DeprecationWarning, stacklevel=2)
        return importlib.import_module(self.target)

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed; only its own name is put back."""
        module.__spec__ = ModuleSpec(self.target, None)
        module.__name__ = self.target


class _Moved(MetaPathFinder):
    """Finds the old names; all others are Python's own business."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """A spec for a name in `MOVED`."""
        package, _, name = fullname.partition(".")
        if package != "hebm_sample" or name not in MOVED:
            return None
        return ModuleSpec(fullname, _Alias(f"{package}.{MOVED[name]}"))


def install() -> None:
    """Let Python ask here last, once."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
