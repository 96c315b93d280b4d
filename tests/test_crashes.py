"""Whenever a process dies or the disk refuses, what is taken for whole is whole.

A model folder of two models' files, a PNG cut in the middle or a checkpoint that loads half would
be noticed long after the run that could have been repeated.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny import tiny_config, tiny_pipeline
from torch import nn

import hebm_sample
from hebm_sample.cli.sample import main
from hebm_sample.errors import EnvironmentFailure, WeightsError
from hebm_sample.hub.manifest import read_row, write_row
from hebm_sample.hub.resolve import resolve
from hebm_sample.hub.save import write_model_folder
from hebm_sample.hub.weights import save_weights
from hebm_sample.io.images import save_png
from hebm_sample.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint

resource = pytest.importorskip("resource")  # signals, limits and modes of POSIX
ROOT = Path(hebm_sample.__file__).parents[1]
CONFIG = tiny_config()
WHOLE = ("generator", "prior", "encoder")


class PowerCut(BaseException):
    """The machine is off: from the n-th call on, no call to the disk is answered any more."""


CALLS = ("open", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "close")


@contextlib.contextmanager
def power_cut(after):
    """The power fails at call number `after`, half of them before it is made, half after it."""
    count = 0

    def tick():
        nonlocal count
        count += 1
        if count >= after:
            raise PowerCut

    def hooked(function):
        def call(*arguments, **options):
            tick()
            result = function(*arguments, **options)
            tick()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, hooked(getattr(os, name)))
        yield


def at_every_call(attempt, examine):
    """Cut the power at each call of `attempt`; `examine` what it left. Returns what it found."""
    found = []
    for after in range(1, 1000):
        try:
            with power_cut(after):
                attempt()
        except PowerCut:
            found.append(examine())
        else:
            found.append(examine())
            return found
    raise AssertionError("it never came to its end")


def modules(seed):
    torch.manual_seed(seed)
    return [nn.Linear(2, 2) for _ in WHOLE]


# ---- the power fails


@pytest.fixture
def memory(monkeypatch):
    """Nothing waits for a disk: what is on it survives these power cuts anyhow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_an_image_is_the_old_one_or_the_new_one(tmp_path, memory):
    path = tmp_path / "a.png"
    old, new = Image.new("RGB", (4, 4), (9, 9, 9)), Image.new("RGB", (4, 4), (1, 2, 3))
    kinds = []
    for image in (old, new):
        save_png(image, path)
        kinds.append(path.read_bytes())
    save_png(old, path)
    found = at_every_call(lambda: save_png(new, path), lambda: kinds.index(path.read_bytes()))
    assert found == sorted(found) and set(found) == {0, 1}
    assert {p.name[:6] for p in tmp_path.iterdir()} <= {"a.png", ".hebm-"}


def test_a_model_folder_is_of_one_model_or_refused(tmp_path, memory):
    """Over an older one, which stays until the new one is whole beside it: then its row goes first
    and the new one's comes last.
    """
    folder = tmp_path / "model"
    old, new = modules(1), modules(2)

    def write(parts):
        write_model_folder(folder, CONFIG, *parts, overwrite=True)

    rows = []
    for parts in (new, old):
        write(parts)
        rows.insert(0, read_row(folder))
    assert rows[0] != rows[1]

    def examine():
        try:
            model = resolve(folder)
            model.path("encoder.safetensors")
        except WeightsError as error:
            assert "weights_manifest.json" in str(error)
            found = "refused"
        else:
            found = ["old", "new"][rows.index(model.row)]
        write(old)
        return found

    found = at_every_call(lambda: write(new), examine)
    ranks = [["old", "refused", "new"].index(x) for x in found]
    assert ranks == sorted(ranks) and set(ranks) == {0, 1, 2} and len(found) > 30


def test_the_newest_checkpoint_is_the_old_one_or_the_new_one(tmp_path, memory):
    """As the slow test with SIGKILL, without the torn writes, at every call."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters())

    def save(step):
        with torch.no_grad():
            net.bias.fill_(step)
        save_checkpoint(
            tmp_path, step, modules={"net": net}, optimizer=optimizer, state={"step": step}
        )

    def examine():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = latest_checkpoint(tmp_path)
        assert path is not None
        step = load_checkpoint(path, modules={"net": net}, optimizer=None)["step"]
        assert path.name.startswith(f"checkpoint-{step:08d}") and bool((net.bias == step).all())
        return step

    save(1)
    found = at_every_call(lambda: save(2), examine)
    assert found == sorted(found) and set(found) == {1, 2} and len(found) > 10


# ---- the disk is full: the system itself cuts the file at a size


@contextlib.contextmanager
def files_of_at_most(size):
    """No file of this process can grow beyond `size` bytes. (Python ignores SIGXFSZ.)"""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _image(folder):
    save_png(Image.radial_gradient("L"), folder / "a.png")


def _weights(folder):
    save_weights(nn.Linear(64, 64), folder / "net.safetensors")


def _row(folder):
    write_row(folder, name="tiny", resolution=16, licence="CC0-1.0", figures={"a": "x" * 5000})


def _checkpoint(folder):
    net = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(net.parameters())
    save_checkpoint(folder, 7, modules={"net": net}, optimizer=optimizer, state={})


@pytest.mark.parametrize("write", [_image, _weights, _row, _checkpoint])
@pytest.mark.parametrize("size", [0, 100, 4096])
def test_a_file_that_the_system_cuts_is_not_there(tmp_path, write, size):
    for name in ("config.json", "generator.safetensors"):
        (tmp_path / name).write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))
    with files_of_at_most(size), pytest.raises(EnvironmentFailure) as caught:
        write(tmp_path)
    assert "File too large" in str(caught.value) and str(caught.value).isprintable()
    assert sorted(os.listdir(tmp_path)) == before
    write(tmp_path)
    assert len(os.listdir(tmp_path)) == len(before) + 1


def test_an_old_file_survives_a_full_disk(tmp_path):
    _weights(tmp_path)
    _image(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for write in (_weights, _image):
        with files_of_at_most(1000), pytest.raises(EnvironmentFailure):
            write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- a disk that is read-only


@contextlib.contextmanager
def read_only():
    """A folder that this process cannot write to; root steps down, for whom it would not hold."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        is_root = os.geteuid() == 0
        folder.chmod(0o555)
        if is_root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o755)
            assert not list(folder.iterdir())


@pytest.mark.parametrize("write", [_image, _weights, _checkpoint])
def test_a_read_only_disk_is_one_line(write):
    with read_only() as folder, pytest.raises(EnvironmentFailure, match="Permission denied"):
        write(folder)


def test_a_read_only_disk_is_found_out_before_sampling(tmp_path):
    with read_only() as folder:
        for place in (
            ["--outdir", folder],
            ["--outdir", folder / "new"],
            ["--out", folder / "a.png"],
        ):
            words = ["--dataset", "celebahq", *map(str, place)]
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 1, result.output
            assert "Permission denied" in result.stderr and result.stderr.count("\n") == 1
    with read_only() as folder, pytest.raises(EnvironmentFailure, match="cannot be written"):
        write_model_folder(folder / "model", CONFIG, *modules(0))


# ---- whole processes


def environment():
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


SIGNALLED = """
import os, signal
from hebm_sample.cli import sample as cli
from hebm_sample.io import images

# A shell that put the tests into the background had them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

save, files = images.save_image, []

def save_two(*arguments):
    save(*arguments)
    files.append(arguments)
    if len(files) == 2:
        os.kill(os.getpid(), signal.SIGINT)

images.save_image = save_two
cli.main()
"""


@pytest.mark.slow
def test_ctrl_c_leaves_whole_images_and_is_gone_on_from(tmp_path):
    tiny_pipeline(CONFIG).save_pretrained(tmp_path / "model")
    words = ["--dataset", str(tmp_path / "model"), "--seeds", "0-4", "--batch", "1"]
    words += ["--outdir", str(tmp_path / "out"), "--device", "cpu"]
    command = [sys.executable, "-c", SIGNALLED, *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Error: interrupted\n")
    images = sorted((tmp_path / "out").glob("*"))
    assert [p.name for p in images if p.suffix == ".png"] == ["seed0000.png", "seed0001.png"]
    for path in images:
        if path.suffix == ".png":
            Image.open(path).load()
    answer = CliRunner().invoke(main, [*words, "--json"])
    assert json.loads(answer.stdout)["seeds"] == [2, 3, 4]


KILLED = """
import json, os, random, signal, sys, time
from tiny import tiny_modules, tiny_config
from hebm_sample.errors import WeightsError
from hebm_sample.hub.manifest import read_row
from hebm_sample.hub.resolve import resolve
from hebm_sample.hub.save import write_model_folder

generator, encoder, prior = tiny_modules()
model = (tiny_config(), generator, prior, encoder)
write = lambda: write_model_folder(sys.argv[1], *model, overwrite=True)
from pathlib import Path
sys.argv[1] = Path(sys.argv[1])
begun = time.monotonic()
write()
seconds, rows, draw = time.monotonic() - begun, read_row(sys.argv[1]).files, random.Random(0)
outcomes = []
for _ in range(40):
    pid = os.fork()
    if pid == 0:
        while True:
            write()
    time.sleep(draw.uniform(0, 3 * seconds))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        model = resolve(sys.argv[1])
        model.path("encoder.safetensors")
        outcomes.append("whole" if model.row.files == rows else "other")
    except WeightsError as error:
        outcomes.append("refused" if "weights_manifest.json" in str(error) else str(error))
print(json.dumps(outcomes))
"""


@pytest.mark.slow
def test_an_export_that_is_killed_is_refused_or_whole(tmp_path):
    """SIGKILL at random moments of writers that never stop writing over one folder."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 40 and set(outcomes) <= {"whole", "refused"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_twenty_kills_of_a_training_run():
    tool = [sys.executable, str(ROOT / "tools" / "kill_training.py"), "--kills", "20"]
    done = subprocess.run(tool, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["kills"], report["differing"], report["failed"]) == (20, 0, 0)
    assert report["runs"] >= 1
