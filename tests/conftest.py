"""Where the tests run: a device, few threads, and a Hub cache of their own.

The Hub's environment is set before anything imports `huggingface_hub`, which reads it once;
otherwise the tests would pass or fail with what lies in the developer's cache.
"""

import os
import tempfile
from collections.abc import Iterator

import pytest

_HF_HOME = tempfile.TemporaryDirectory(prefix="hebm-sample-tests-")
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
    os.environ.pop(_name, None)
os.environ["HF_HOME"] = _HF_HOME.name
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers side by side: threads of one would wait for those of the other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tensors live: cpu (default) or cuda")
    parser.addoption("--network", action="store_true", help="also run the tests that use the Hub")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, rather than skip, what this machine was not asked for or cannot run."""
    unwanted = set() if config.getoption("--network") else {"network"}
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            unwanted.add("gpu")
    dropped = [item for item in items if any(item.get_closest_marker(m) for m in unwanted)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


def pytest_unconfigure() -> None:
    _HF_HOME.cleanup()


@pytest.fixture(scope="session", autouse=True)
def _threads() -> Iterator[None]:
    """Tiny tensors: more than a few threads only wait for each other. Parts of a batch are
    allowed, as commands in this process allow them.
    """
    import torch

    from hebm_sample.pipeline.runtime.threads import allow_parts

    allow_parts()
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 4))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """What `--device` says; a test that takes it runs there."""
    name: str = request.config.getoption("--device")
    if name != "cpu":
        import torch

        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:
            pytest.fail(f"--device {name} cannot be used: {error}")
    return name
