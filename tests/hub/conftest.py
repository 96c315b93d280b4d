"""A tiny model's folder, and a loopback Hub that serves it."""

import os
import tempfile
from dataclasses import replace

from hub.loopback import REPO, SECRET, LoopbackHub

# The Hub client reads these once, when it is imported, which the code under test does late.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hebm-test-hf-")
os.environ["HF_TOKEN"] = SECRET
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"  # uploads would look for a store of chunks
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

import pytest
import torch

from hebm_sample.hub import client, manifest, resolve, weights


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text('{"name": "tiny"}')
    for index, name in enumerate(("generator", "prior", "encoder")):
        torch.manual_seed(index)
        weights.save_weights(torch.nn.Linear(8, 8), folder / f"{name}.safetensors")
    manifest.write_row(folder, name="tiny", resolution=32, licence="CC0-1.0")
    return folder


@pytest.fixture
def model_files(model_folder):
    return {path.name: path.read_bytes() for path in model_folder.iterdir()}


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Make these rows and this folder of embedded models the installed ones."""

    def make(*rows, embedded=None):
        path = tmp_path / "installed" / "weights_manifest.json"
        path.parent.mkdir(exist_ok=True)
        manifest.write_manifest(path, rows)
        monkeypatch.setattr(manifest, "_package_manifest", lambda: path)
        monkeypatch.setattr(resolve, "EMBEDDED", embedded or tmp_path / "nothing")

    return make


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's retries
    with LoopbackHub() as server:
        monkeypatch.setattr(client, "ENDPOINT", server.endpoint)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def published(hub, model_files, model_folder, install, tmp_path):
    """The tiny model on the loopback Hub, listed and pinned; returns (server, arguments, row)."""
    extra = {"README.md": b"# card", "pytorch_model.bin": b"never", ".gitattributes": b""}
    commit = hub.publish(REPO, {**model_files, **extra})
    row = replace(manifest.read_row(model_folder), repo_id=REPO, revision=commit)
    install(row)
    return hub, {"cache_dir": tmp_path / "cache"}, row
