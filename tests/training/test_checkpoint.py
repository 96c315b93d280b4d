"""Whatever happens while a checkpoint is written, the latest whole one is the old or the new one.

Without this a kill or a full disk at the wrong moment loses a run, a flipped bit goes on training
from garbage, and a resumed optimiser quietly differs from the one that was never interrupted.
"""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hebm_sample.errors import EnvironmentFailure, UserInputError, WeightsError
from hebm_sample.training import checkpoint
from hebm_sample.training.checkpoint import (
    check_identity,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    save_checkpoint,
)


def make(seed=0, foreach=None):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 1))
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    groups = [
        {"params": net[0].parameters()},
        {"params": net[3].parameters(), "weight_decay": 0.0},
    ]
    return net, torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99), foreach=foreach)


def train(net, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        loss = net(torch.randn(3, 2, 4, 4, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(run_dir, step, net, optimizer, **kwargs):
    state = {"step": step, "loss": 0.1 + 0.2}
    return save_checkpoint(
        run_dir, step, modules={"net": net}, optimizer=optimizer, state=state, **kwargs
    )


def names(run_dir):
    return sorted(p.name for p in run_dir.iterdir())


def test_a_run_goes_on_whatever_particles_its_model_will_have(tmp_path):
    """They are nothing that a step depends on, and presets have changed theirs."""
    sampling = {"sampler": "recovery", "steps": 16}
    old = {"kind": "prior", "config": {"sampling": sampling}, "data": "d", "settings": {}}
    new = old | {"config": {"sampling": sampling | {"particles": 4}}}
    check_identity(tmp_path, old, new, {})
    check_identity(tmp_path, new, old, {})
    assert new["config"]["sampling"]["particles"] == 4  # neither is changed
    other = old | {"config": {"sampling": sampling | {"kernel": "plain"}}}
    with pytest.raises(UserInputError, match="made with other config"):
        check_identity(tmp_path, old, other, {})


class TestResume:
    def test_how_updates_are_computed_is_the_resuming_process_choice(self, tmp_path):
        net, optimizer = make(foreach=False)
        save_checkpoint(tmp_path, 1, modules={"net": net}, optimizer=optimizer, state={})
        again, resumed = make(seed=1, foreach=True)
        load_checkpoint(latest_checkpoint(tmp_path), modules={"net": again}, optimizer=resumed)
        assert all(group["foreach"] is True for group in resumed.param_groups)

    @pytest.mark.parametrize("foreach", [False, True])
    def test_bit_exact_with_adamw(self, tmp_path, foreach):
        whole, whole_optimizer = make(foreach=foreach)
        train(whole, whole_optimizer, range(8))

        first, optimizer = make(foreach=foreach)
        train(first, optimizer, range(4))
        path = save(tmp_path, 4, first, optimizer)
        second, optimizer = make(seed=1, foreach=foreach)
        state = load_checkpoint(path, modules={"net": second}, optimizer=optimizer)
        assert state == {"step": 4, "loss": 0.1 + 0.2} == read_state(path)
        train(second, optimizer, range(4, 8))

        for key, value in whole.state_dict().items():
            assert torch.equal(value, second.state_dict()[key]), key
        expected, found = whole_optimizer.state_dict(), optimizer.state_dict()
        assert found["param_groups"] == expected["param_groups"]
        for index, entries in expected["state"].items():
            for name, value in entries.items():
                other = found["state"][index][name]
                assert torch.equal(value, other), (index, name)
                assert (value.dtype, value.stride()) == (other.dtype, other.stride())

    def test_no_optimizer_state_yet(self, tmp_path):
        net, optimizer = make()
        path = save(tmp_path, 0, net, optimizer)
        other, optimizer = make(seed=1)
        load_checkpoint(path, modules={"net": other}, optimizer=optimizer)
        assert torch.equal(net[0].weight, other[0].weight)
        assert not optimizer.state_dict()["state"]

    def test_shared_tensors_and_low_precision_state(self, tmp_path):
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        net = nn.Sequential(first, second).to(torch.bfloat16)
        second.weight = first.weight
        optimizer = torch.optim.AdamW(net.parameters())
        net(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        optimizer.state[first.bias]["exp_avg"] = torch.full((3,), 1 / 3)  # float32 beside bf16
        path = save(tmp_path, 1, net, optimizer)
        load_checkpoint(path, modules={"net": net}, optimizer=optimizer)
        assert torch.equal(optimizer.state[first.bias]["exp_avg"], torch.full((3,), 1 / 3))
        assert optimizer.state[first.weight]["exp_avg"].dtype == torch.bfloat16

    def test_nothing_is_pickled(self, tmp_path, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("pickle")

        for owner, name in ((torch, "save"), (torch, "load")):
            monkeypatch.setattr(owner, name, refuse)
        for name in ("dump", "dumps", "load", "loads"):
            monkeypatch.setattr(f"pickle.{name}", refuse)
        net, optimizer = make()
        path = save(tmp_path, 1, net, optimizer)
        load_checkpoint(path, modules={"net": net}, optimizer=optimizer)
        assert names(path) == ["net.safetensors", "optimizer.safetensors", "state.json"]


class TestStrictness:
    def test_modules_must_fit(self, tmp_path):
        net, optimizer = make()
        path = save(tmp_path, 1, net, optimizer)
        with pytest.raises(WeightsError, match=r"it lacks \['ema'\]"):
            load_checkpoint(path, modules={"net": net, "ema": net}, optimizer=optimizer)
        with pytest.raises(WeightsError, match=r"\['net'\] have no place"):
            load_checkpoint(path, modules={}, optimizer=optimizer)
        assert load_checkpoint(path, modules={}, optimizer=None)["step"] == 1
        with pytest.raises(
            WeightsError, match=r"missing \['bias', 'weight'\], unexpected \['0.bias"
        ):
            load_checkpoint(path, modules={"net": nn.Linear(2, 2)}, optimizer=None)
        with pytest.raises(WeightsError, match=r"weight is \(4, 2, 3, 3\) torch.float32 instead"):
            load_checkpoint(path, modules={"net": make()[0].double()}, optimizer=None)

    def test_optimizer_must_fit_before_anything_changes(self, tmp_path):
        net, optimizer = make()
        path = save(tmp_path, 1, net, optimizer)
        other, _ = make(seed=1)
        before = other[0].weight.clone()
        with pytest.raises(WeightsError, match=r"groups of \[2, 2\] parameters, not \[6\]"):
            load_checkpoint(
                path, modules={"net": other}, optimizer=torch.optim.AdamW(other.parameters())
            )
        assert torch.equal(before, other[0].weight)

    def test_bad_module_name(self, tmp_path):
        net, optimizer = make()
        for name in ("../net", "optimizer"):
            with pytest.raises(UserInputError, match="cannot be called"):
                save_checkpoint(tmp_path, 1, modules={name: net}, optimizer=optimizer, state={})
        assert not names(tmp_path)


class TestLatest:
    def test_none(self, tmp_path):
        assert latest_checkpoint(tmp_path) is None
        assert latest_checkpoint(tmp_path / "nowhere") is None

    def test_the_newest_are_kept(self, tmp_path):
        net, optimizer = make()
        (tmp_path / "log.jsonl").write_text("")
        (tmp_path / "checkpoint-notes").mkdir()
        for step in (1, 20, 300):
            path = save(tmp_path, step, net, optimizer)
            assert latest_checkpoint(tmp_path) == path
        kept = ["checkpoint-00000020", "checkpoint-00000300", "checkpoint-notes", "log.jsonl"]
        assert names(tmp_path) == kept
        save(tmp_path, 100, net, optimizer, keep=1)  # later steps are left alone
        assert names(tmp_path)[:2] == ["checkpoint-00000100", "checkpoint-00000300"]

    def test_same_step_again(self, tmp_path):
        net, optimizer = make()
        save(tmp_path, 5, net, optimizer)
        train(net, optimizer, range(1))
        path = save(tmp_path, 5, net, optimizer)
        assert latest_checkpoint(tmp_path) == path
        other, optimizer = make(seed=1)
        load_checkpoint(path, modules={"net": other}, optimizer=optimizer)
        assert torch.equal(net[0].weight, other[0].weight)
        assert names(tmp_path) == [path.name]

    @pytest.mark.parametrize("name", ["net.safetensors", "optimizer.safetensors", "state.json"])
    @pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
    def test_damage_is_passed_over(self, tmp_path, name, damage):
        net, optimizer = make()
        train(net, optimizer, range(1))
        old = save(tmp_path, 1, net, optimizer)
        new = save(tmp_path, 2, net, optimizer)
        file = new / name
        data = bytearray(file.read_bytes())
        if damage == "flip":
            data[data.index(b"0.30000000000000004") if name == "state.json" else -2] ^= 1
        file.unlink()
        if damage != "remove":
            file.write_bytes(data[:-1] if damage == "truncate" else data)
        with pytest.warns(UserWarning, match=f"broken checkpoint: .*{new.name}"):
            assert latest_checkpoint(tmp_path) == old
        with pytest.raises(WeightsError, match=new.name):
            load_checkpoint(new, modules={"net": net}, optimizer=optimizer)

    def test_orphans_of_dead_processes_are_removed(self, tmp_path):
        net, optimizer = make()
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        host = checkpoint.socket.gethostname()
        orphan = tmp_path / f".checkpoint-tmp-{host}-{dead.pid}-{'0' * 32}"
        alive = tmp_path / f".checkpoint-tmp-{host}-{os.getppid()}-{'0' * 32}"
        foreign = tmp_path / f".checkpoint-tmp-other.{host}-{dead.pid}-{'0' * 32}"
        for folder in (orphan, alive, foreign):
            folder.mkdir()
            (folder / "net.safetensors").write_bytes(b"half")
        save(tmp_path, 1, net, optimizer)
        assert not orphan.exists()
        assert alive.exists()
        assert foreign.exists()


class FullDisk:
    """Lets `budget` bytes through, then says ENOSPC, mostly in the middle of a write."""

    def __init__(self, monkeypatch, budget):
        self.left = budget
        monkeypatch.setattr(checkpoint, "open", self.open, raising=False)

    def open(self, path, mode):
        file, disk = open(path, mode), self

        class Handle:
            __enter__ = lambda self: self  # noqa: E731
            __exit__ = lambda self, *_: file.close()  # noqa: E731
            flush, fileno = file.flush, file.fileno

            def write(self, data):
                file.write(data[: disk.left])
                disk.left -= len(data)
                if disk.left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Handle()


class TestFailures:
    @pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
    def test_full_disk(self, tmp_path, monkeypatch, share):
        net, optimizer = make()
        train(net, optimizer, range(1))
        old = save(tmp_path, 1, net, optimizer)
        size = sum(f.stat().st_size for f in old.iterdir())
        with monkeypatch.context() as patch:
            FullDisk(patch, int(share * size))
            with pytest.raises(EnvironmentFailure, match="step 2 could not .* No space left"):
                save(tmp_path, 2, net, optimizer)
        assert latest_checkpoint(tmp_path) == old
        assert names(tmp_path) == [old.name]
        assert save(tmp_path, 2, net, optimizer) == latest_checkpoint(tmp_path)

    def test_run_folder_is_a_file(self, tmp_path):
        (tmp_path / "run").write_text("")
        net, optimizer = make()
        with pytest.raises(EnvironmentFailure, match="step 1 could not be written"):
            save(tmp_path / "run", 1, net, optimizer)

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_killed_at_every_call(self, tmp_path):
        """Children die at their n-th call that touches the disk, for every n, and at any time."""
        report = json.loads(run_python(KILLING, tmp_path).splitlines()[-1])
        assert report["calls"] > 20
        assert report["broken"] == []
        assert set(report["latest"]) == {"checkpoint-00000002", "checkpoint-00000003"}
        # Old first, then new: once it is there it stays.
        assert report["latest"] == sorted(report["latest"])
        assert len(report["timed"]) == 5
        assert all(later >= earlier for earlier, later in report["timed"])


KILLING = """
import json, os, pathlib, signal, sys
import torch
from torch import nn
from hebm_sample.training import checkpoint
run_dir = pathlib.Path(sys.argv[1])
net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW([{"params": net[0].parameters()}, {"params": net[3].parameters()}])
def save(step):
    with torch.no_grad():
        net[0].bias.fill_(step)
    checkpoint.save_checkpoint(
        run_dir, step, modules={"net": net}, optimizer=optimizer, state={"step": step}
    )

import shutil, time, warnings
def child(deadline):
    count = 0
    def tick():
        nonlocal count
        count += 1
        if count == deadline:
            os.kill(os.getpid(), signal.SIGKILL)
    def hooked(function):
        def call(*args, **kwargs):
            tick()
            result = function(*args, **kwargs)
            tick()
            return result
        return call
    class Torn:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *_): self.file.close()
        def __getattr__(self, name): return getattr(self.file, name)
        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            tick()
            self.file.write(data[len(data) // 2 :])
            tick()
    checkpoint.open = lambda path, mode: Torn(hooked(open)(path, mode))
    for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"):
        setattr(os, name, hooked(getattr(os, name)))
    save(3)
    os._exit(0)

report = {"calls": 0, "latest": [], "broken": [], "timed": []}
save(1)
save(2)
base = run_dir.rename(run_dir.with_name("base"))
while True:
    shutil.copytree(base, run_dir)
    report["calls"] += 1
    pid = os.fork()
    if pid == 0:
        child(report["calls"])
    status = os.waitpid(pid, 0)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = checkpoint.latest_checkpoint(run_dir)
    step = checkpoint.load_checkpoint(path, modules={"net": net}, optimizer=optimizer)["step"]
    if path.name != f"checkpoint-{step:08d}" or not bool((net[0].bias == step).all()):
        report["broken"].append(report["calls"])
    report["latest"].append(path.name)
    shutil.rmtree(run_dir)
    if status == 0:
        break
for delay in (0.01, 0.02, 0.035, 0.05, 0.08):
    shutil.copytree(base, run_dir)
    pid = os.fork()
    if pid == 0:
        for step in range(3, 10**6):
            save(step)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    path = checkpoint.latest_checkpoint(run_dir)
    step = checkpoint.load_checkpoint(path, modules={"net": net}, optimizer=optimizer)["step"]
    assert bool((net[0].bias == step).all())
    report["timed"].append((2, step))
    shutil.rmtree(run_dir)
print(json.dumps(report))
"""


def run_python(body, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", body, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
