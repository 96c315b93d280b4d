"""Many faults at random places, where `test_transfer` has one of each: cuts, flips, kills, crowds.

A fault that is noticed at byte 100 and not at byte 101 would pass the single ones.
"""

import random
import threading

import pytest
from hub.loopback import REPO
from hub.processes import child, lines

from hebm_sample.errors import HubError, WeightsError
from hebm_sample.hub.manifest import MODEL_FILES
from hebm_sample.hub.resolve import resolve

pytestmark = pytest.mark.slow
CUTS, FLIPS, KILLS, CROWDS = 100, 200, 20, 5


def is_whole(model):
    return all(model.fault(name) is None for name in MODEL_FILES)


def test_cuts_anywhere(published, tmp_path):
    hub, _, row = published
    draw = random.Random(0)
    for number in range(CUTS):
        name = draw.choice(MODEL_FILES)
        times = draw.choice([1, 3, 9])  # the client gives up after 6 without any byte
        hub.cut = {name: iter([draw.randrange(row.files[name].size) for _ in range(times)])}
        cache = tmp_path / f"cache{number}"
        try:
            assert is_whole(resolve(REPO, cache_dir=cache))
        except HubError as error:
            assert times == 9 and str(error).endswith("the connection broke off; try again")
            assert not list(cache.rglob(name))
            hub.cut.clear()
            assert is_whole(resolve(REPO, cache_dir=cache))


def test_bits_flipped_anywhere(published):
    hub, where, row = published
    folder = resolve(REPO, **where).folder
    draw = random.Random(1)
    for _ in range(FLIPS):
        path = (folder / draw.choice(MODEL_FILES)).resolve()
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="is corrupt: its sha256 is"):
            resolve(REPO, local_files_only=True, **where).path("encoder.safetensors")
        model = resolve(REPO, **where)
        model.path("encoder.safetensors")
        assert is_whole(model) and model.row.files == row.files


def test_killed_anywhere(published, tmp_path):
    hub, _, row = published
    draw = random.Random(2)
    for number in range(KILLS):
        name = draw.choice(MODEL_FILES)
        reached, over = threading.Event(), threading.Event()
        hub.cut = {name: iter([draw.randrange(row.files[name].size)])}
        hub.midway = lambda reached=reached, over=over: (reached.set(), over.wait(60))
        cache = tmp_path / f"cache{number}"
        process = child(hub, cache, REPO)
        assert reached.wait(60), lines(process)
        process.kill()
        process.communicate()
        over.set()
        assert not list(cache.rglob(name))
        with pytest.raises(HubError, match="not complete in the cache"):
            resolve(REPO, local_files_only=True, cache_dir=cache)
        assert is_whole(resolve(REPO, cache_dir=cache))


def test_crowds(published, tmp_path):
    hub, _, row = published
    for number in range(CROWDS):
        cache = tmp_path / f"cache{number}"
        crowd = [child(hub, cache, REPO) for _ in range(4)]
        assert [lines(process) for process in crowd] == [[row.revision]] * 4
        assert is_whole(resolve(REPO, local_files_only=True, cache_dir=cache))
