"""Libraries of the extras, imported when first needed."""

import importlib
from types import ModuleType

from hebm_sample.errors import EnvironmentFailure

__all__ = ["import_extra"]


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a module of an extra; `EnvironmentFailure` names the pip command where it is
    missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn", "torch_fidelity": "torch-fidelity"}
        name = module.split(".")[0]
        raise EnvironmentFailure(
            f"this needs {package.get(name, name)}, which is not installed: "
            f'pip install "hebm-sample[{extra}]"'
        ) from error
