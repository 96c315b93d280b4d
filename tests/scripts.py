"""A file of `benchmarks/` or `tools/` as a module: what a test needs to call its functions."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def script(path: str) -> Iterator[ModuleType]:
    """The module at `path` from the top folder, with the modules beside it, until the end."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"script_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    sys.modules[module.__name__] = module  # where dataclasses look up their annotations
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(file.parent))
        del sys.modules[module.__name__]
