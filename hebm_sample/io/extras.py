"""Libraries of the extras, imported when first needed."""

import importlib
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

from hebm_sample.errors import EnvironmentFailure

__all__ = ["import_extra", "install_hint", "missing_extra", "reinstall_hint"]

_NAMES = {"sklearn": "scikit-learn", "torch_fidelity": "torch-fidelity"}
_SOURCE = Path(__file__).resolve().parents[2]


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a module of an extra; `EnvironmentFailure` names the pip command where it is
    missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(module, extra) from error


def missing_extra(module: str, extra: str) -> EnvironmentFailure:
    """The error to raise where a module of an extra cannot be imported."""
    name = module.split(".")[0]
    return EnvironmentFailure(
        f"this needs {_NAMES.get(name, name)}, which is not installed: {install_hint(extra)}"
    )


def install_hint(extra: str) -> str:
    """The command that adds an extra to the package where it came from: its source folder, the
    address that pip noted (PEP 610), or the index.
    """
    if (_SOURCE / "pyproject.toml").is_file():
        return f'pip install -e "{_SOURCE}[{extra}]"'
    address = _address()
    return f'pip install "hebm-sample[{extra}]{f" @ {address}" if address else ""}"'


def reinstall_hint() -> str:
    """The command that brings the package's own files back, from where it came from."""
    if (_SOURCE / ".git").exists():
        return f'restore the files: git -C "{_SOURCE}" checkout -- hebm_sample/weights'
    if (_SOURCE / "pyproject.toml").is_file():
        return f"unpack the package's archive again into {_SOURCE}"
    again = "pip install --force-reinstall --no-deps"
    address = _address()
    return f'reinstall the package: {again} "hebm-sample{f" @ {address}" if address else ""}"'


def _address() -> str | None:
    """What the package was installed from, if that was no index."""
    try:
        text = distribution("hebm-sample").read_text("direct_url.json")
        origin: dict[str, Any] = json.loads(text) if text else {}
    except (PackageNotFoundError, ValueError):
        return None
    url: Any = origin.get("url")
    vcs: dict[str, str] = origin.get("vcs_info") or {}
    if not isinstance(url, str):
        return None
    commit = vcs.get("commit_id")
    return f"{vcs['vcs']}+{url}{f'@{commit}' if commit else ''}" if vcs.get("vcs") else url
