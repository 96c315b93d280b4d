"""What strangers can put into a description, a weights file or an image ends in one line.

A model folder may come from anybody. What is believed too easily takes gigabytes before it is
refused, ends in a traceback that says nothing, or in a network that nobody described.

`HEBM_FUZZ` sets the number of examples of each slow test, 3000 if it is not set.
"""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import symbolic_config, tiny_config, tiny_modules
from torch import nn

from hebm_sample import Pipeline
from hebm_sample.cli.sample import main
from hebm_sample.config import GeneratorConfig, ModelConfig, ScaleConfig
from hebm_sample.errors import EnvironmentFailure, UserInputError, WeightsError
from hebm_sample.hub import load
from hebm_sample.hub.load import build_model, read_config
from hebm_sample.hub.manifest import Manifest, list_models, write_row
from hebm_sample.hub.resolve import EMBEDDED, resolve
from hebm_sample.hub.save import write_model_folder
from hebm_sample.hub.sizes import least_bytes
from hebm_sample.hub.weights import load_weights, save_weights
from hebm_sample.io.files import parse_json
from hebm_sample.io.images import MAX_PIXELS, open_image, prepare

EXAMPLES = int(os.environ.get("HEBM_FUZZ", "3000"))
FEW = settings(max_examples=40, deadline=None)
MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HEBM_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
CONFIG = symbolic_config()
TEXT = json.dumps(CONFIG.to_dict())
WEIGHTS = ("generator.safetensors", "prior.safetensors", "encoder.safetensors")


def one_line(error):
    return str(error).isprintable() and len(str(error)) < 1500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole tiny model; tests change its description and write its row anew."""
    path = tmp_path_factory.mktemp("hostile") / "model"
    generator, encoder, prior = tiny_modules(CONFIG)
    write_model_folder(path, CONFIG, generator, prior, encoder)
    return path


@pytest.fixture
def described(folder):
    """Puts a description into the folder, with a row that agrees with it."""

    def write(text):
        (folder / "config.json").write_text(text)
        write_row(folder, name="tiny", resolution=16, licence="CC0-1.0")
        return folder

    yield write
    write(TEXT)


# ---- descriptions


def changed(path, value, text=TEXT):
    data = json.loads(text)
    *way, last = path
    target = data
    for key in way:
        target = target[key]
    target[last] = value
    return json.dumps(data)


def paths(value, way=()):
    """Ways to everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*way, key)
        if isinstance(inner, (dict, list)):
            yield from paths(inner, (*way, key))


PATHS = list(paths(json.loads(TEXT)))
odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3000)
    | st.sampled_from([2**31, 2**63, 10**400, -(10**400), 1e308, 1e-320, 0.0, -0.0])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def read(text):
    """A description, or None where it is refused in one line."""
    try:
        config = ModelConfig.from_dict(parse_json(text.encode("utf-8", "surrogatepass")))
    except (UserInputError, ValueError) as error:
        assert str(error).isprintable()
        return None
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for name in WEIGHTS:
        if config.prior is not None or not name.startswith("prior"):
            assert least_bytes(config, name) > 0
    return config


@FEW
@given(st.sampled_from(PATHS), odd)
def test_any_value_anywhere_is_read_or_refused(path, value):
    read(changed(path, value))


@pytest.mark.slow
@MANY
@given(st.lists(st.tuples(st.sampled_from(PATHS), odd), min_size=1, max_size=3), st.data())
def test_fuzzed_descriptions(changes, data):
    text = TEXT
    for path, value in changes:
        try:
            text = changed(path, value, text)
        except (KeyError, IndexError, TypeError):
            continue
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 9)))
    middle = data.draw(st.text(max_size=4) | st.sampled_from(["", "[" * 3000, '{"a":' * 999]))
    read(text)
    read(text[:start] + middle + text[stop:])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (changed(["sampling", "step_scale"], 10**400), "step_scale is a whole number of too many"),
        (TEXT.replace('"steps": 12', f'"steps": {"9" * 5000}'), "is not a description"),
        (TEXT.replace('"steps": 12', '"steps": ' + "[" * 60_000), "nested too deeply"),
        (changed(["name"], "x" * 900_000), r"name is 'xxx.*\.\.\.; it must have"),
        (changed(["prior", "levels"], [1.0] * 150_000), r"levels \[1\.0, .*\.\.\.$"),
        (TEXT + " " * 1_000_000, "more than 1000000 bytes"),
        (TEXT.replace('"tiny"', '"\\ud800"'), r"name is '\\ud800'"),
    ],
)
def test_absurd_descriptions_end_in_one_short_line(described, text, match):
    with pytest.raises(WeightsError, match=match) as caught:
        build_model(described(text))
    assert one_line(caught.value)


def test_a_newer_description_says_so_whatever_else_it_holds(described):
    """Its new keys are not called typing errors."""
    data = json.loads(TEXT) | {"format_version": 2, "tokens": 7}
    data["generator"]["scales"] = "elsewhere"
    with pytest.raises(WeightsError, match=r"format_version is 2; this release reads 1: upgrade"):
        read_config(resolve(described(json.dumps(data))))
    data = {"format_version": 2, "models": [], "signature": "x"}
    path = described(TEXT) / "weights_manifest.json"
    path.write_text(json.dumps(data))
    with pytest.raises(WeightsError, match=r"format_version is 2; it must be 1, or else upgrade"):
        Manifest.load(path)


@pytest.mark.parametrize("version", [None, True, 1.5, "1", [1]])
def test_a_version_is_a_number(version):
    with pytest.raises(UserInputError, match="format_version is"):
        ModelConfig.from_dict(json.loads(TEXT) | {"format_version": version})


def test_what_cannot_be_folded_is_refused_before_it_fails_in_a_network():
    config = tiny_config()
    generator = GeneratorConfig(image_size=18, scales=(ScaleConfig(9, 1, 2, 8),))
    with pytest.raises(UserInputError, match="max_resolution is 4; groups of resolution 9"):
        replace(config, generator=generator, prior=replace(config.prior, max_resolution=4))
    replace(config, generator=generator, prior=replace(config.prior, max_resolution=3))


# ---- more than the files hold


def test_least_bytes_is_a_little_less_than_the_files_have(folder):
    """Of the embedded models and of one with symbols; else good models would be refused."""
    rows = [(row, EMBEDDED / row.folder) for row in list_models() if row.folder]
    for row, place in [*rows, (resolve(folder).row, folder)]:
        config = ModelConfig.from_dict(json.loads((place / "config.json").read_text()))
        for name in WEIGHTS:
            size, least = row.files[name].size, least_bytes(config, name)
            assert 0.85 * size < least <= size, (row.name, name)


SYMBOLS = [{"name": f"v{i}", "values": [str(j) for j in range(999)]} for i in range(100)]
LARGE_SCALES = [
    {"resolution": 2 * 2**i, "groups": 64, "latent_channels": 256, "width": 2048, "cells": 32}
    for i in range(2)
]


@pytest.mark.parametrize(
    ("path", "value", "file"),
    [
        (["generator", "scales"], LARGE_SCALES, "generator"),
        (["generator", "scales", 0, "cells"], 32, "generator"),
        (["generator", "decoder"], [{"resolution": 8, "width": 2048, "cells": 32}], "generator"),
        (["prior", "width"], 2048, "prior"),
        (["prior", "cells"], 32, "prior"),
        (["prior", "symbols"], SYMBOLS, "prior"),
    ],
)
def test_networks_that_the_files_cannot_hold_are_never_made(
    described, monkeypatch, path, value, file
):
    made = []
    monkeypatch.setattr(load, "new_generator", made.append)
    monkeypatch.setattr(load, "JointEnergy", lambda *_: made.append(_))
    with pytest.raises(
        WeightsError, match=rf"{file}\.safetensors does not fit its config.* at least;"
    ) as caught:
        build_model(described(changed(path, value)))
    assert one_line(caught.value) and not made


def test_an_encoder_that_its_file_cannot_hold_is_never_made(described, monkeypatch):
    pipe = Pipeline.from_pretrained(described(changed(["generator", "encoder_cells"], 32)))
    monkeypatch.setattr(load, "new_encoder", lambda _: pytest.fail("made"))
    with pytest.raises(WeightsError, match=r"encoder\.safetensors does not fit its config"):
        pipe.encode(torch.zeros(1, 3, 16, 16))


# ---- weights


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good weights file, and where to put bad ones."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_weights(net(), path, torch.float32)
    return path.read_bytes(), path


def load_or_refuse(data, path):
    """Loaded whole and finite, or refused in one line with the module as it was."""
    module = net()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    path.write_bytes(data)
    try:
        load_weights(module, path)
    except WeightsError as error:
        assert one_line(error)
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    else:
        assert all(bool(torch.isfinite(v).all()) for v in module.state_dict().values())
        assert {k: v.shape for k, v in module.state_dict().items()} == {
            k: v.shape for k, v in before.items()
        }


def damaged(data, draw):
    """The bytes with some replaced, in the header mostly, and the length put right or not."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(header)))
        until = draw(st.integers(at, min(len(header), at + 12)))
        new = draw(st.binary(max_size=6) | st.sampled_from(TOKENS))
        header = header[:at] + new + header[until:]
    if draw(st.booleans()):
        at = draw(st.integers(0, len(body) - 4))
        body = body[:at] + draw(st.sampled_from(VALUES)) + body[at + 4 :]
    size = len(header) if draw(st.integers(0, 9)) else draw(st.integers(0, 2**64 - 1))
    return struct.pack("<Q", size) + header + body


TOKENS = [b"F16", b"BF16", b"I64", b"F8_E4M3", b"F4", b"C64", b"[]", b"-1", b"0", b"null", b"1e9"]
TOKENS += [b"18446744073709551615", b'"__metadata__":{"a":1},', b'"0.bias":', b"[2,2,2]", b"[0,0]"]
VALUES = [struct.pack("<f", x) for x in (float("nan"), float("inf"), -1e38, 0.0)]


@settings(FEW, max_examples=60)
@given(data=st.data())
def test_damaged_weights_are_loaded_whole_or_refused(whole, data):
    good, path = whole
    load_or_refuse(damaged(good, data.draw), path)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_fuzzed_weights(whole, data):
    good, path = whole
    load_or_refuse(damaged(good, data.draw), path)


def test_no_pickle_is_read_on_the_way_to_an_image(described, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a pickle was read")

    for owner, name in ((pickle, "loads"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, never)
    monkeypatch.setattr(torch, "load", never)
    pipe = Pipeline.from_pretrained(described(TEXT), device="cpu")
    pipe(seeds=[0], sampler="flow", steps=2)
    pipe.encode(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model.pt2", "model.ckpt"])
def test_foreign_checkpoints_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    result = CliRunner().invoke(main, ["--dataset", str(tmp_path / name), "-n", "1"])
    assert result.exit_code == 2 and "is a file; give the model folder" in result.stderr
    (tmp_path / "generator.bin").write_bytes(b"")
    (tmp_path / "config.json").write_text(TEXT)
    with pytest.raises(WeightsError, match="there is no .*weights_manifest.json"):
        resolve(tmp_path)
    with pytest.raises(UserInputError, match="files lacks generator.safetensors"):
        write_row(tmp_path, name="tiny", resolution=16, licence="CC0-1.0")


# ---- images


def encoded(kind, size=(9, 7), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


IMAGES = [encoded("PNG"), encoded("JPEG"), encoded("WEBP"), encoded("PNG", optimize=True)]


def opened_or_refused(data):
    try:
        image = open_image(io.BytesIO(data))
    except (UserInputError, EnvironmentFailure) as error:
        assert one_line(error)
    else:
        assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS


def damaged_image(draw):
    data = draw(st.sampled_from(IMAGES))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 5)))
        data = data[:at] + draw(st.binary(max_size=5)) + data[until:]
    if data[:4] == b"\x89PNG" and draw(st.booleans()):
        data = with_right_sums(data)
    return data


def with_right_sums(data):
    """A PNG whose chunks have the checksums of what they hold: else the reader stops there."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at + 4 : at + 8 + size]
        out += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + size
    return out


@settings(FEW, max_examples=60)
@given(data=st.data())
def test_damaged_images_are_read_or_refused(data):
    opened_or_refused(damaged_image(data.draw))


@pytest.mark.slow
@MANY
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it found
def test_fuzzed_images(data):
    opened_or_refused(damaged_image(data.draw))


MODES = ["1", "L", "P", "LA", "PA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"]
MODES += ["HSV", "I", "F", "I;16", "I;16B", "I;16L"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_is_read_or_refused(mode):
    image = Image.new(mode, (4, 4))
    if mode in ("F", "La"):
        with pytest.raises(UserInputError, match="convert it to 8-bit RGB first"):
            prepare(image, 4)
    else:
        x = prepare(image, 4)
        assert x.shape == (1, 3, 4, 4) and bool(((x >= -1) & (x <= 1)).all())


@pytest.mark.parametrize("size", [(0, 0), (0, 4), (4, 0)])
def test_an_image_without_pixels_is_not_a_black_one(size):
    with pytest.raises(UserInputError, match=rf"has {size[0]} x {size[1]} pixels"):
        prepare(Image.new("RGB", size), 4)


def test_text_that_unpacks_to_a_bomb_is_not_unpacked():
    """Texts are not read, so the image is one like any other."""
    text = zlib.compress(b"x" * (256 << 20), 9)
    chunk = b"zTXtcomment\0\0" + text
    data = encoded("PNG")
    bomb = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    tracemalloc.start()
    try:
        image = open_image(io.BytesIO(data[:33] + bomb + data[33:]))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert image.tobytes() == open_image(io.BytesIO(data)).tobytes()
    assert most < 32 << 20
