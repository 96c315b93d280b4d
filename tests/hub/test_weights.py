"""Weights are loaded whole or not at all: a lenient loader samples from a half-random network and
says nothing."""

import io
import json
import os
import pickle
import struct

import pytest
import torch
from torch import nn

from hebm_sample.errors import EnvironmentFailure, WeightsError
from hebm_sample.hub import weights
from hebm_sample.hub.weights import load_weights, save_weights
from hebm_sample.io import files


def net(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width, track_running_stats=False))


def raw(tensors, body=None, pad=b""):
    """A safetensors file from {name: (dtype, shape, offsets)} and a body."""
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for name, (dtype, shape, offsets) in tensors.items()
    }
    text = json.dumps(header).encode() + pad
    end = max((offsets[1] for _, _, offsets in tensors.values()), default=0)
    return struct.pack("<Q", len(text)) + text + (bytes(end) if body is None else body)


def one(dtype, size):
    return raw({"weight": (dtype, [2], [0, 2 * size])})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.safetensors"
    save_weights(net(), path, torch.float32)
    return path


def unchanged(module, before):
    after = module.state_dict()
    return all(torch.equal(before[key], after[key]) for key in before | after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_round_trip(tmp_path, dtype):
    path = tmp_path / "net.safetensors"
    save_weights(net(), path, dtype)
    loaded = net(1)
    parameter = loaded[0].weight
    parameter.requires_grad_(False)
    load_weights(loaded, path)
    for key, value in net().state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value.to(dtype).float())
        assert loaded.state_dict()[key].dtype == torch.float32
    assert isinstance(loaded[0].weight, nn.Parameter) and not loaded[0].weight.requires_grad


def test_meta_device_dtype_and_prefix(tmp_path):
    path = tmp_path / "both.safetensors"
    save_weights(nn.ModuleDict({"a": net(1), "b": net(2)}), path, torch.float32)
    with torch.device("meta"):
        empty = net()
    load_weights(empty, path, prefix="b.", dtype=torch.bfloat16)
    assert torch.equal(empty[0].weight, net(2)[0].weight.bfloat16())
    half = net().half()
    load_weights(half, path, prefix="a.", dtype=None)
    assert half[0].weight.dtype == torch.float16


def test_same_weights_same_bytes_and_mode(tmp_path):
    mask = os.umask(0o022)
    try:
        for name in ("a", "b"):
            save_weights(net(), tmp_path / name)
    finally:
        os.umask(mask)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644 or os.name == "nt"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_transposed_and_shared_tensors_are_saved(tmp_path):
    module = net()
    module[0].weight = nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
    module.append(module[0])
    save_weights(module, tmp_path / "net")
    load_weights(module, tmp_path / "net")
    assert torch.equal(module[0].weight, torch.arange(12.0).reshape(3, 4).T)


def test_save_refuses(tmp_path, saved):
    before = saved.read_bytes()
    huge, lost = net(), net()
    huge[0].bias.data[1] = 1e6
    with pytest.raises(WeightsError, match="not written as float16: non-finite .*'0.bias'"):
        save_weights(huge, saved)
    lost[0].weight.data[0, 0] = float("nan")
    with pytest.raises(WeightsError, match="not written as float32: non-finite .*'0.weight'"):
        save_weights(lost, saved, torch.float32)
    with pytest.raises(WeightsError, match="'num_batches_tracked' is not float16.*non-persistent"):
        save_weights(nn.BatchNorm1d(2), saved)
    with pytest.raises(WeightsError, match="dtype is torch.int8"):
        save_weights(net(), saved, torch.int8)
    with pytest.raises(EnvironmentFailure, match="cannot write .*No such file"):
        save_weights(net(), tmp_path / "absent" / "net")
    assert saved.read_bytes() == before


HOSTILE = {
    "empty": b"",
    "three bytes": b"abc",
    "length beyond the file": struct.pack("<Q", 2**63) + b"{}",
    "huge header": struct.pack("<Q", 9_000_000) + b"{" + b" " * 9_000_000,
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a list": struct.pack("<Q", 2) + b"[]",
    "bad UTF-8": struct.pack("<Q", 4) + b'{"\xff"',
    "deep": struct.pack("<Q", 60_000) + b"[" * 60_000,
    "trailing bytes": one("F32", 4) + b"x",
    "hole": raw({"weight": ("F32", [1], [4, 8])}),
    "overlap": raw({"weight": ("F32", [2], [0, 8]), "bias": ("F32", [2], [4, 12])}),
    "short offsets": raw({"weight": ("F32", [2], [0, 4])}),
    "overflow": raw({"weight": ("F32", [2**62, 4], [0, 8])}),
    "unknown dtype": one("F99", 4),
    "negative shape": raw({"weight": ("F32", [-2], [0, 8])}),
    "duplicate key": raw({"weight": ("F32", [2], [0, 8])}).replace(
        b'"shape": [2]', b'"dtype": "F3'
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(HOSTILE[name])
    module = net()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(WeightsError, match="is no valid safetensors file: .+") as caught:
        load_weights(module, path)
    assert str(caught.value).isprintable() and unchanged(module, before)


def test_a_key_that_appears_twice(tmp_path):
    text = raw({"weight": ("F32", [1], [0, 4]), "weighu": ("F32", [1], [4, 8])})
    (tmp_path / "net").write_bytes(text.replace(b"weighu", b"weight"))
    with pytest.raises(WeightsError, match="'weight' appears twice"):
        load_weights(nn.LayerNorm(1, bias=False), tmp_path / "net")


@pytest.mark.parametrize(("dtype", "size"), [("I64", 8), ("F64", 8), ("BOOL", 1), ("U8", 1)])
def test_only_floats(dtype, size, tmp_path):
    (tmp_path / "net").write_bytes(one(dtype, size))
    with pytest.raises(WeightsError, match=r"not float16, bfloat16 or float32: \"'weight' \("):
        load_weights(nn.LayerNorm(2, bias=False), tmp_path / "net")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_finite(value, tmp_path):
    body = struct.pack("<ff", 1.0, value)
    (tmp_path / "net").write_bytes(raw({"weight": ("F32", [2], [0, 8])}, body))
    module = nn.LayerNorm(2, bias=False)
    with pytest.raises(WeightsError, match="non-finite values in 'weight'"):
        load_weights(module, tmp_path / "net")
    assert torch.equal(module.weight, torch.ones(2))


def test_overflow_on_narrowing(tmp_path):
    body = struct.pack("<ff", 1.0, 1e6)
    (tmp_path / "net").write_bytes(raw({"weight": ("F32", [2], [0, 8])}, body))
    with pytest.raises(WeightsError, match="non-finite values in 'weight'"):
        load_weights(nn.LayerNorm(2, bias=False), tmp_path / "net", dtype=torch.float16)


def test_keys_and_shapes_in_one_message(saved):
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(4, affine=False), nn.Linear(2, 2))
    module[1] = nn.Identity()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    message = (
        "missing '2.bias', '2.weight'; unexpected '1.bias', '1.weight'; "
        r"shapes: 0.bias is \(4,\), not \(5,\), 0.weight is \(4, 3\), not \(5, 3\)$"
    )
    with pytest.raises(WeightsError, match=message):
        load_weights(module, saved)
    assert unchanged(module, before)


def test_many_hostile_keys_stay_one_short_line(tmp_path):
    names = {f"\n\x1b[31m{i:05}": ("F32", [0], [0, 0]) for i in range(3000)}
    (tmp_path / "net").write_bytes(raw(names))
    with pytest.raises(WeightsError, match="unexpected .* and 2990 more") as caught:
        load_weights(nn.Identity(), tmp_path / "net")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_truncation_anywhere_is_noticed(saved, tmp_path):
    data = saved.read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(WeightsError, match="no valid safetensors file"):
            load_weights(net(), tmp_path / "cut")


def test_byte_cap_missing_and_folder(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_FILE_BYTES", 100)
    with pytest.raises(WeightsError, match="more than 100 bytes"):
        load_weights(net(), saved)
    with pytest.raises(WeightsError, match="there is no .*absent"):
        load_weights(net(), tmp_path / "absent")
    with pytest.raises(WeightsError, match="no regular file"):
        load_weights(net(), tmp_path)


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


def test_pickles_are_not_read(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a pickle was read")

    for owner, name in ((pickle, "loads"), (pickle, "load"), (torch, "load")):
        monkeypatch.setattr(owner, name, never)
    checkpoint = io.BytesIO()
    torch.save(net().state_dict(), checkpoint)
    for data in (pickle.dumps(Bomb()), checkpoint.getvalue()):
        (tmp_path / "generator.safetensors").write_bytes(data)
        with pytest.raises(WeightsError, match="no valid safetensors file"):
            load_weights(net(), tmp_path / "generator.safetensors")


def test_sha256_of_stops_at_the_limit(tmp_path):
    (tmp_path / "a").write_bytes(b"abcdef")
    (tmp_path / "b").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "a", 3) == files.sha256_of(tmp_path / "b")
