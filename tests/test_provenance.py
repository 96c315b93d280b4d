"""What a file says of how it came about has one owner, and the defaults in it are those used."""

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_pipeline

from hebm_sample import __version__
from hebm_sample.cli.requests.edit import EditOptions
from hebm_sample.config import EDIT_GUIDANCE, MAX_GUIDANCE, LangevinConfig
from hebm_sample.errors import EnvironmentFailure
from hebm_sample.hub import weights
from hebm_sample.hub.weights import content_digest
from hebm_sample.io import extras
from hebm_sample.pipeline.identity import description_hash
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.pipeline.provenance import Provenance


@pytest.fixture
def pipe():
    return tiny_pipeline(tiny_config(steps=6, temperature=0.9), dtype=torch.bfloat16)


def test_what_was_not_given_is_the_models_own(pipe):
    found = Provenance.of_samples(pipe, steps=9, prior="ebm")
    assert found.facts == {
        "model": "tiny",
        "resolution": 16,
        "revision": None,
        "version": f"hebm_sample {__version__}",
        "sampler": "recovery",
        "steps": 9,
        "temperature": 0.9,
        "decoder": "likelihood",
        "prior": "ebm",
        "weights": content_digest(pipe.generator, pipe.prior),
        "description": description_hash(pipe.config),
        "dtype": "bfloat16",
        "sampling": found.facts["sampling"],
    }
    own = {"sampler", "steps", "temperature", "particles"}
    assert {*found.facts["sampling"], *own} == {f.name for f in fields(LangevinConfig)}
    assert found.facts["sampling"]["step_scale"] == pipe.config.sampling.step_scale
    gaussian = Provenance.of_samples(pipe, prior="gaussian").facts
    assert "sampling" not in gaussian and "encoder" not in gaussian
    read = Provenance.of_samples(pipe, encoder=True).facts
    assert read["encoder"] == content_digest(pipe.encoder)
    assert (gaussian["sampler"], gaussian["steps"], gaussian["temperature"]) == (None, None, 0.9)


def test_text_is_as_it_is_typed(pipe):
    found = Provenance.of_model(pipe).saying(
        symbols={"Smiling": "yes", "class": ["a", "b"]}, temperature=(1.0, 0.8), best_of=None
    )
    text = found.of_seeds(0, 1, 2, 9).text()
    assert (text["seeds"], text["symbols"]) == ("0-2,9", "Smiling=yes class=a,b")
    assert text["temperature"] == "1.0,0.8"
    assert "best_of" not in text and "revision" not in text
    assert found.of_seeds(7).text(single=True)["seed"] == "7"
    assert not {"seed", "seeds"} & set(found.text())


def in_place(p):
    with torch.no_grad():
        p.neg_()


def through_data(p):
    p.data.mul_(2)


def other_storage(p):
    p.data = p.data.neg()


def rounded(p):
    p.data = p.data.half()
    p.data = p.data.float()


@pytest.mark.parametrize("change", [in_place, through_data, other_storage, rounded])
@pytest.mark.parametrize("part", ["generator", "prior"])
def test_hashes_follow_the_weights(pipe, change, part):
    first = pipe.weights_hash
    change(next(p for p in getattr(pipe, part).parameters() if p.abs().max() > 0))
    changed = pipe.weights_hash
    assert changed == content_digest(pipe.generator, pipe.prior) != first
    before = {k: v.clone() for k, v in pipe.prior.state_dict().items()}
    pipe.prior.load_state_dict({k: v + 1 for k, v in before.items()})
    assert pipe.weights_hash != changed
    pipe.prior.load_state_dict(before)
    assert pipe.weights_hash == changed


def test_weights_that_stay_are_hashed_once(pipe, monkeypatch):
    known, calls = pipe.weights_hash, []
    monkeypatch.setattr(
        weights,
        "content_digest",
        lambda *parts, **how: calls.append(parts) or content_digest(*parts, **how),
    )
    for _ in range(3):
        assert Provenance.of_model(pipe).facts["weights"] == pipe.weights_hash == known
    assert calls == []
    pipe.generator = tiny_pipeline().generator
    assert pipe.weights_hash == known and len(calls) == 1


def test_a_stream_is_hashed_once(pipe, monkeypatch):
    asked = []
    real = Provenance.of_model.__func__
    monkeypatch.setattr(
        Provenance, "of_model", classmethod(lambda cls, m: asked.append(1) or real(cls, m))
    )
    states = list(pipe.stream(seeds=[3], steps=12))
    assert len(states) > 2 and len(asked) == 1
    # Images on their way say so, and are the finished one's otherwise.
    for state in states:
        assert state.provenance[0].facts.get("level", 0) == state.level
        assert state.provenance[0].saying(level=None).text() == states[-1].provenance[0].text()


def test_weights_made_in_inference_mode_are_hashed_each_time(pipe):
    with torch.inference_mode():
        pipe.prior.nets[0].out.weight = torch.nn.Parameter(
            pipe.prior.nets[0].out.weight.clone(), requires_grad=False
        )
    first = pipe.weights_hash
    with torch.inference_mode():
        pipe.prior.nets[0].out.weight.neg_()
    assert pipe.weights_hash == content_digest(pipe.generator, pipe.prior) != first


def test_an_edits_guidance_is_the_same_in_shell_and_python():
    assert EditOptions.default_guidance == EDIT_GUIDANCE <= MAX_GUIDANCE
    assert inspect.signature(Pipeline.edit).parameters["guidance"].default == EDIT_GUIDANCE


# The extras


def test_a_missing_extra_names_a_command_that_works(monkeypatch, tmp_path):
    with pytest.raises(EnvironmentFailure, match="this needs no-such-thing, which") as caught:
        monkeypatch.setitem(extras._NAMES, "no_such_thing", "no-such-thing")
        extras.import_extra("no_such_thing.part", "eval")
    assert f'pip install -e "{extras._SOURCE}[eval]"' in str(caught.value)
    monkeypatch.setattr(extras, "_SOURCE", tmp_path)
    url, git = "file:///src/hebm_sample", "https://example.org/hebm.git"
    for origin, command in (
        (None, 'pip install "hebm-sample[demo]"'),
        ({"url": url}, f'pip install "hebm-sample[demo] @ {url}"'),
        (
            {"url": git, "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            f'pip install "hebm-sample[demo] @ git+{git}@abc"',
        ),
    ):
        monkeypatch.setattr(extras, "distribution", lambda _, o=origin: Distribution(o))
        assert extras.install_hint("demo") == command
        again = command.replace("[demo]", "").replace(
            "install", "install --force-reinstall --no-deps"
        )
        assert extras.reinstall_hint() == f"reinstall the package: {again}"


def test_files_that_are_lost_are_brought_back_from_where_they_came(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "_SOURCE", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    assert extras.reinstall_hint() == f"unpack the package's archive again into {tmp_path}"
    (tmp_path / ".git").touch()  # a file in a work tree
    assert f'git -C "{tmp_path}" checkout -- hebm_sample/weights' in extras.reinstall_hint()


def test_pages_name_no_command_that_finds_nothing():
    """The package is on no index, and its metadata name no address: a clone has it."""
    root = Path(__file__).parents[1]
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    bad = re.compile(r"pip install [^`\n&]*hebm-sample")
    found = [(p.name, m[0]) for p in pages for m in bad.finditer(p.read_text(encoding="utf-8"))]
    assert found == []


class Distribution:
    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)
