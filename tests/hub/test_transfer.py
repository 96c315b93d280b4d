"""Bytes on their way: cut, corrupted, redirected, killed, four at a time, while a branch moves.

Whatever happens, a model is one commit's files, whole and verified, or one line; nothing that is
half there is ever taken for whole. Processes that are killed or run side by side are real ones.
"""

import ctypes
import itertools
import os
import sys
import threading

import pytest
from hub.loopback import REPO, SECRET, damage
from hub.processes import child, lines

from hebm_sample.errors import HubError, WeightsError
from hebm_sample.hub import manifest
from hebm_sample.hub.resolve import resolve

LARGE = 10 * 2**20  # the client writes such pieces, and goes on after the last one it wrote


def gets(hub, name):
    return [s for s in hub.requests if s.method == "GET" and s.path.endswith(f"/{name}")]


def is_whole(model):
    return all(model.fault(name) is None for name in manifest.MODEL_FILES)


# --- cut, corrupted, redirected ------------------------------------------------------------------


def test_cut_once_at_any_byte(published):
    hub, where, row = published
    sizes = [0, 1, row.files["prior.safetensors"].size // 2]
    sizes.append(row.files["encoder.safetensors"].size - 1)
    for name, sent in zip(manifest.MODEL_FILES, sizes, strict=True):
        hub.cut[name] = iter([sent])
    assert is_whole(resolve("tiny", **where))
    assert [len(gets(hub, name)) for name in manifest.MODEL_FILES] == [2] * 4


@pytest.mark.parametrize("sent", [0, 100, -1])
def test_cut_for_ever(sent, published):
    hub, where, row = published
    size = row.files["generator.safetensors"].size
    hub.cut["generator.safetensors"] = itertools.repeat(sent % size if sent else 0)
    message = "could not be downloaded: the connection broke off; try again$"
    with pytest.raises(HubError, match=message) as caught:
        resolve("tiny", **where)
    assert SECRET not in str(caught.value) and caught.value.__context__ is None
    with pytest.raises(HubError, match="not complete in the cache and no request"):
        resolve("tiny", local_files_only=True, **where)
    assert not list(where["cache_dir"].rglob("generator.safetensors"))
    del hub.cut["generator.safetensors"]
    assert is_whole(resolve("tiny", **where))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_large_file_goes_on_where_it_was_cut(ranges, published, model_folder):
    hub, where, _ = published
    (model_folder / "encoder.safetensors").write_bytes(os.urandom(LARGE + 9))
    manifest.write_row(model_folder, name="tiny", resolution=32, licence="CC0-1.0")
    hub.publish(REPO, {path.name: path.read_bytes() for path in model_folder.iterdir()})
    hub.cut["encoder.safetensors"] = iter([LARGE + 4])
    hub.ranges = ranges
    assert is_whole(resolve(REPO, **where))
    asked = [seen.range for seen in gets(hub, "encoder.safetensors")]
    assert asked == [None, f"bytes={LARGE}-"]


def test_a_second_origin_gets_no_token(published):
    hub, where, _ = published
    hub.elsewhere = True
    assert is_whole(resolve("tiny", **where))
    sent = {(seen.host, seen.authorization) for seen in hub.requests}
    assert sent == {(hub.endpoint, f"Bearer {SECRET}"), (hub.storage, None)}


def test_a_second_origin_is_not_trusted_either(published):
    hub, where, _ = published
    hub.elsewhere, hub.corrupt = True, {"encoder.safetensors"}
    model = resolve("tiny", **where)
    with pytest.raises(WeightsError, match="encoder.safetensors is corrupt: its sha256 is"):
        model.path("encoder.safetensors")
    assert len(gets(hub, "encoder.safetensors")) == 2  # once more, and then never again


def test_files_listed_in_pages(published):
    hub, where, _ = published
    hub.page_size = 2
    assert is_whole(resolve("tiny", **where))
    assert len([seen for seen in hub.requests if "/tree/" in seen.path]) == 4  # of 7 files


@pytest.mark.parametrize("omit", ["X-Repo-Commit", "ETag"])
def test_answers_of_no_hub(omit, published):
    hub, where, _ = published
    hub.omit = {omit, "X-Linked-Etag"}
    with pytest.raises(HubError, match="the answers are not those of a Hub; check HF_ENDPOINT"):
        resolve("tiny", **where)


# --- a branch that moves -------------------------------------------------------------------------


@pytest.fixture
def moving(published, model_folder):
    """(server, cache, old row, old commit, `move`, which publishes other files to main)."""
    hub, where, row = published
    for name in manifest.MODEL_FILES:
        damage(model_folder / name)
    manifest.write_row(model_folder, name="tiny", resolution=32, licence="CC0-1.0")
    new = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    return hub, where, row, lambda: hub.publish(REPO, new)


@pytest.mark.parametrize("moment", ["/tree/", "/config.json", "/prior.safetensors"])
def test_one_commit_for_all_files(moment, moving):
    hub, where, row, move = moving
    moved = []

    def before(seen):
        if moment in seen.path and not moved:
            moved.append(move())

    hub.before = before
    model = resolve(REPO, **where)
    assert moved and is_whole(model)
    assert (model.revision, model.row.files) == (row.revision, row.files)
    later = resolve(REPO, **where)
    assert later.revision == moved[0] and is_whole(later) and later.row.files != row.files


def test_repair_after_the_branch_has_moved(moving):
    hub, where, row, move = moving
    model = resolve(REPO, **where)
    move()
    damage(model.folder / "encoder.safetensors")
    model.path("encoder.safetensors")
    assert is_whole(model) and model.row.files == row.files


# --- processes -----------------------------------------------------------------------------------


def test_killed_in_the_middle(published):
    hub, where, row = published
    reached, over = threading.Event(), threading.Event()
    hub.cut["generator.safetensors"] = iter([100])
    hub.midway = lambda: (reached.set(), over.wait(60))
    process = child(hub, where["cache_dir"], REPO)
    assert reached.wait(60), lines(process)
    process.kill()
    process.communicate()
    over.set()
    assert not list(where["cache_dir"].rglob("generator.safetensors"))
    with pytest.raises(HubError, match="not complete in the cache and no request"):
        resolve(REPO, local_files_only=True, **where)
    assert is_whole(resolve(REPO, **where))
    asked = [seen.range for seen in gets(hub, "generator.safetensors")]
    assert asked == [None, None], "the next process begins at the first byte"


@pytest.mark.slow
def test_four_processes_and_one_cache(published):
    hub, where, row = published
    together = threading.Barrier(4)

    def before(seen):
        if seen.path.startswith(f"/api/models/{REPO}") and "/tree/" not in seen.path:
            together.wait(60)

    hub.before = before
    processes = [child(hub, where["cache_dir"], REPO) for _ in range(4)]
    assert [lines(process) for process in processes] == [[row.revision]] * 4
    assert is_whole(resolve("tiny", local_files_only=True, **where))


def test_a_cache_without_symbolic_links(published):
    hub, where, row = published
    hub.corrupt = {"prior.safetensors"}
    hub.before = lambda _: len(gets(hub, "prior.safetensors")) > 1 and hub.corrupt.clear()
    process = child(hub, where["cache_dir"], REPO, HF_HUB_DISABLE_SYMLINKS="1")
    assert lines(process) == [row.revision]
    assert not [path for path in where["cache_dir"].rglob("*") if path.is_symlink()]
    assert len(gets(hub, "prior.safetensors")) == 2, "corrupt at first, and repaired"
    assert is_whole(resolve("tiny", local_files_only=True, **where))


def _obey_permissions():
    """In the child, before it becomes Python: root without the right to ignore them."""
    if os.getuid() == 0:
        ctypes.CDLL(None).prctl(24, 1)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


@pytest.mark.skipif(sys.platform != "linux", reason="root ignores permissions elsewhere")
def test_a_cache_that_cannot_be_written(moving):
    hub, where, row, move = moving
    cache = where["cache_dir"]
    resolve(REPO, **where)
    hub.repositories[REPO].branches["damaged"] = move()
    hub.repositories[REPO].branches["main"] = row.revision
    damage(resolve(REPO, revision="damaged", **where).folder / "prior.safetensors")
    paths = [cache, *(path for path in cache.rglob("*") if not path.is_symlink())]
    modes = {path: path.stat().st_mode for path in paths}
    try:
        for path, mode in modes.items():
            path.chmod(mode & 0o555)
        runs = (f"{REPO}@{row.revision}", REPO, f"{REPO}@damaged")
        *fine, fault = lines(child(hub, cache, *runs, before=_obey_permissions))
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert fine == [row.revision] * 2
    assert "prior.safetensors is corrupt: its sha256" in fault
    assert fault.endswith("it could not be replaced: Permission denied")
