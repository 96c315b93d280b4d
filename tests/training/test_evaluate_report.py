"""A report measures each part once, goes on where it was, and says what it could not measure.

Without this an interrupted evening of measurements is lost, or a page shows the figures of another
model.
"""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny import symbolic_pipeline, tiny_pipeline
from toy import draw_images

from hebm_sample.cli.evaluation.main import main as hebm_eval
from hebm_sample.cli.evaluation.report import _folders, _key_of
from hebm_sample.cli.train import main
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.evaluation import context as context_module
from hebm_sample.evaluation.context import EvaluationContext, fingerprint
from hebm_sample.evaluation.distances import make_context
from hebm_sample.evaluation.folders import compare_folders
from hebm_sample.evaluation.ood import chain_latents
from hebm_sample.evaluation.reference import build_set, write_set
from hebm_sample.evaluation.report import images as report_images
from hebm_sample.evaluation.report import latents as report_latents
from hebm_sample.evaluation.report import report as report_module
from hebm_sample.evaluation.report.ood import _about_combination, _advice, auroc_by_groups
from hebm_sample.evaluation.report.page import (
    Code,
    Heading,
    ReportImage,
    Table,
    Text,
    number,
    to_html,
    to_markdown,
    with_error,
)
from hebm_sample.evaluation.report.report import ReportPlan, shipped_gap, write_report
from hebm_sample.hub import save
from hebm_sample.io.written import check_report_folder
from hebm_sample.metrics.features import FeatureNet
from hebm_sample.metrics.frechet import FeatureStatistics
from hebm_sample.metrics.statistics import auroc
from hebm_sample.pipeline.pipeline import Pipeline

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

SHORT = {"num_images": 60, "batch_size": 30, "progress": False, "steps": 6}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("report")
    draw_images(home / "images", count=170)
    return home


@pytest.fixture(scope="module")
def sets(home):
    return load_images(home / "images", size=16, cache_dir=home / "cache", progress=False).split(
        120
    )


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def plan(**options) -> ReportPlan:
    return ReportPlan(chain_images=2, chain_steps=8, ood_images=20, **options)


@pytest.fixture(scope="module")
def written(home, pipe, sets):
    out = home / "out"
    context = make_context(pipe, *sets, folder=out / "draws", **SHORT)
    others = {"negatives": (255 - np.asarray(sets[1].images[:20]), "n")}
    return out, write_report(context, plan(others=others), out)


class TestPage:
    def test_every_part_is_on_it(self, written):
        out, found = written
        assert list(found) == ["gap", "hole", "ood", "memorisation", "diagnostics"]
        page, html = (out / "index.md").read_text(), (out / "index.html").read_text()
        for text in (page, html):
            for title in ("Distances", "Prior hole", "Out-of-distribution", "Memorisation"):
                assert title in text
        assert "control: the model has no symbols" in page
        for name in re.findall(r"!\[.*?\]\((.*?)\)", page):
            assert (out / name).is_file() and f'src="{name}"' in html
        results = json.loads((out / "results.json").read_text())
        assert results["parts"] == json.loads(json.dumps(found))
        assert results["not_measured"].keys() == {"control", "baselines"}

    def test_figures_are_what_they_say(self, written):
        _, found = written
        gap = found["gap"]
        (space,) = gap["gaps"]
        for name, fd in (("gaussian", "fd_gauss"), ("ebm", "fd_model")):
            assert gap["quality"][space][name]["frechet"] == gap["gaps"][space][fd]
        assert set(found["ood"]["auroc"]) == {
            "negatives",
            "noise",
            "blur",
            "one colour",
            "inverted",
        }
        inverted, negatives = (found["ood"]["auroc"][k] for k in ("inverted", "negatives"))
        assert len(inverted) == len(negatives) == 3 + 3 + 3 + (3 + 3 + 3 + 2) + 3
        assert found["ood"]["calibration"] is None  # of fewer than 200 held-out images
        assert found["ood"]["auroc"]["noise"]["energy after the chain, top 3 of 3"]["error"] >= 0
        assert found["ood"]["auroc"]["noise"]["compression"]["value"] > 0.9
        assert len(found["hole"]["ebm"]["groups"]) == 3
        assert found["memorisation"]["counts"]["training"] == 50
        assert len(found["diagnostics"]["levels"]) == pipe_levels()

    def test_densities_of_the_table_are_the_pipelines(self, home, pipe, sets, written):
        context = make_context(pipe, *sets, **SHORT)
        fitting, scored = context.scored_images(20)
        own, others = np.asarray(scored), 255 - np.asarray(sets[1].images[:20])
        config = pipe.sampling_config(steps=6)

        def floats(images):
            return torch.from_numpy(images.copy()).float() / 255

        def after_chain(images, tops):
            u = chain_latents(pipe, context.encode_images(images).u, config, batch_size=30)
            return pipe.log_density(latents=u, groups=tops)

        densities = {
            "": lambda x, tops: pipe.log_density(floats(x), groups=tops),
            " of means": lambda x, tops: pipe.log_density(floats(x), groups=tops, mode="mean"),
            " after the chain": after_chain,
        }
        table = written[1]["ood"]["auroc"]["negatives"]
        for k in (1, 3):
            for name, density in densities.items():
                a, b = (-density(x, slice(0, k)).numpy() for x in (own, others))
                found = table[f"negative log density{name}, top {k} of 3"]
                assert found["value"] == pytest.approx(auroc(a, b).value, abs=0.01)

    def test_scored_images_are_of_all_that_is_held_out(self, pipe, sets):
        """Fitting ones are not compared; the same every time; nothing is a matter of order."""
        small = SHORT | {"num_images": 20}
        contexts = [make_context(pipe, *sets, **small) for _ in range(2)]
        halves = [[np.asarray(x) for x in c.scored_images()] for c in contexts]
        for a, b in zip(*halves, strict=True):
            np.testing.assert_array_equal(a, b)
        every = [x.tobytes() for x in np.asarray(sets[1].images)]
        rows = [[every.index(x.tobytes()) for x in half] for half in halves[0]]
        assert len(set(rows[0]) | set(rows[1])) == 40
        for chosen in rows:
            assert len(chosen) == 20 and min(chosen) < 30 and max(chosen) > 90
        # Figures of distances keep their rows: the first of them, and those that follow.
        few = [np.asarray(x) for x in contexts[0].scored_images(5)]
        np.testing.assert_array_equal(few[0], halves[0][0])
        found = [every.index(x.tobytes()) for x in few[1]]
        assert set(found) < set(rows[1]) and found != sorted(rows[1])[:5]  # random ones, too
        reference = np.concatenate(list(contexts[0].stream("reference")))
        np.testing.assert_array_equal(reference, np.asarray(sets[1].some(40).images[20:40]))

    def test_a_second_call_measures_nothing(self, home, pipe, sets, written, monkeypatch):
        out, found = written
        monkeypatch.setattr(report_module._Report, "run", lambda *_: pytest.fail("measured again"))
        context = make_context(pipe, *sets, folder=out / "draws", **SHORT)
        others = {"negatives": (255 - np.asarray(sets[1].images[:20]), "n")}
        said = []
        again = write_report(context, plan(others=others), out, announce=said.append)
        assert json.dumps(again) == json.dumps(found)
        assert said == [f"{part}: kept from before" for part in found]

    def test_another_version_measures_again(self, pipe, sets, written, monkeypatch):
        out, found = written
        assert {part["version"] for part in found.values()} == {report_module.__version__}
        context = make_context(pipe, *sets, folder=out / "draws", **SHORT)
        before = report_module._Report(context, plan(), out, lambda _: None).key("hole")
        files = {path.name for path in (out / "draws").iterdir()}
        for module in (report_module, context_module):
            monkeypatch.setattr(module, "__version__", "99.0")
        assert report_module._Report(context, plan(), out, lambda _: None).key("hole") != before
        make_context(pipe, *sets, folder=out / "draws", **SHORT).samples("gaussian")
        assert len({path.name for path in (out / "draws").iterdir()} - files) == 1

    def test_other_settings_are_measured_anew(self, pipe, sets, written):
        out, _ = written
        context = make_context(pipe, *sets, folder=out / "draws", **SHORT | {"steps": 7})
        report = report_module._Report(context, plan(), out, lambda _: None)
        same = make_context(pipe, *sets, folder=out / "draws", **SHORT)
        before = report_module._Report(same, plan(), out, lambda _: None)
        assert report.key("hole") != before.key("hole")
        assert before.key("ood") != report_module._Report(
            same, plan(others={"x": (np.zeros(1), "y")}), out, lambda _: None
        ).key("ood")


class TestKeys:
    @pytest.fixture
    def report(self, pipe, sets, tmp_path):
        def make(given=pipe, without_data=False, **options):
            context = make_context(given, *sets, **SHORT)
            if without_data:
                context = EvaluationContext(given, 60, progress=False)
            return report_module._Report(context, plan(**options), tmp_path, lambda _: None)

        return make

    def test_how_a_baseline_is_sampled_counts(self, pipe, report, tmp_path):
        pipe.save_pretrained(tmp_path / "b")
        key = report(baselines={"b": tmp_path / "b"}).key("baselines")
        assert report(baselines={"b": tmp_path / "b"}).key("baselines") == key
        config = replace(pipe.config, sampling=replace(pipe.config.sampling, steps=9))
        save.write_config(tmp_path / "b", config)
        assert report(baselines={"b": tmp_path / "b"}).key("baselines") != key

    def test_a_baselines_run_counts_by_its_model(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path / "run/model")
        before = report_module._folder_keys({"a": tmp_path / "run"})
        assert before[0][1]
        (tmp_path / "run/model/config.json").write_text("{}")
        assert report_module._folder_keys({"a": tmp_path / "run"}) != before

    def test_the_encoder_counts_without_data(self, report):
        other = tiny_pipeline()
        key = report(other, without_data=True).key("gap")
        with torch.no_grad():
            next(other.encoder.parameters()).neg_()
        assert report(other, without_data=True).key("gap") != key

    def test_a_classifier_counts_by_its_content(self, tmp_path):
        path, keys = tmp_path / "classifier", set()
        for content in (b"one", b"another"):
            path.write_bytes(content)
            keys.add(_key_of("classifier_file", str(path)))
        assert len(keys) == 2 and _key_of("classifier_file", None) == "None"


def test_a_library_that_is_missing_is_found_out_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    report_module.check_extras(plan())
    with pytest.raises(EnvironmentFailure, match="inception"):
        report_module.check_extras(plan(inception=True))


def test_some_parts_of_a_report_leave_the_others(pipe, sets, tmp_path, monkeypatch):
    """Unasked, nothing that was measured leaves the page; and it says which weights it is of."""
    monkeypatch.setattr(report_module._Report, "run", lambda *_: {"value": 1.0})
    monkeypatch.setattr(
        report_module, "SHOW", {part: lambda _: [] for part in report_module.PARTS}
    )

    def write(given=pipe, parts=None, **options):
        write_report(make_context(given, *sets, **SHORT), plan(parts=parts), tmp_path, **options)
        return json.loads((tmp_path / "results.json").read_text())

    whole = write()
    assert write(parts=("hole",)) == whole | {"not_measured": {}}
    assert whole["weights"] == pipe.weights_hash
    assert whole["data"] == [sets[0].identity, sets[1].some(120).identity]
    other = tiny_pipeline()
    with torch.no_grad():
        next(other.generator.parameters()).neg_()
    with pytest.raises(UserInputError, match="gap, ood, memorisation, diagnostics would be lost"):
        write(other, parts=("hole",))
    assert json.loads((tmp_path / "results.json").read_text())["weights"] == pipe.weights_hash
    assert list(write(other, parts=("hole",), overwrite=True)["parts"]) == ["hole"]
    assert write()["weights"] == pipe.weights_hash


def pipe_levels() -> int:
    return tiny_pipeline().config.prior.num_levels


def test_p_values_that_are_not_uniform_are_said():
    found = {"fitted_on": 100, "ks_statistic": 0.9, "ks_p_value": 0.2}
    assert "not uniform" not in _about_combination(found)
    assert "not uniform" in _about_combination(found | {"ks_p_value": 0.001})


def test_panels_are_of_what_was_measured():
    """A ratio that takes off k groups is drawn where the others keep the rest."""
    table = {f"energy, top {k} of 3": {"value": k / 10} for k in (1, 2, 3)}
    table |= {f"LLR > {k}": {"value": k / 4} for k in (1, 2)}
    figures = {"groups": 3, "auroc": {"other": table}}
    panels = auroc_by_groups(figures, {"energy": "E", "rate": "R", "LLR": "L"})
    assert panels == {
        "E": {"other": ([1, 2, 3], [0.1, 0.2, 0.3])},
        "L": {"other": ([1, 2], [0.5, 0.25])},
    }


@pytest.mark.parametrize(
    "energy, chain, likelihood, compression, sentence",
    [
        (0.95, 0.90, 0.70, 0.60, "use energy, top 2 of 2 (0.950), against likelihood (0.700)"),
        (0.95, 0.96, 0.94, 0.60, "use likelihood (0.940), the simpler score; energies do no bet"),
        (0.80, 0.82, 0.95, 0.99, "use compression (0.990), the simpler score; no energy does as"),
        (0.55, 0.52, 0.50, 0.40, "none is of use, the best is energy, top 2 of 2 (0.550)"),
    ],
)
def test_the_simplest_of_equal_scores_is_advised(energy, chain, likelihood, compression, sentence):
    values = {
        "energy, top 1 of 2": 0.5,
        "energy, top 2 of 2": energy,
        "energy after the chain, top 2 of 2": chain,
        "likelihood": likelihood,
        "compression": compression,
        "likelihood less compression": 0.5,
    }
    table = {name: {"value": value, "error": 0.01} for name, value in values.items()}
    assert _advice("x", table).startswith(f"x: {sentence}")


def test_the_combination_is_advised_where_it_is_best():
    values = {"combination": 0.93, "energy, top 1 of 1": 0.6, "likelihood": 0.7}
    table = {name: {"value": v, "error": 0.01} for name, v in (values | COMPRESSED).items()}
    assert _advice("x", table).startswith("x: use combination (0.930), against likelihood (0.700)")
    table["likelihood"]["value"] = 0.98
    assert "no score by level does as well, the best is combination" in _advice("x", table)


COMPRESSED = {"compression": 0.5, "likelihood less compression": 0.5}


class TestContext:
    def test_latents_are_kept_and_are_the_pipelines(self, home, pipe, sets, monkeypatch):
        folder = home / "kept"
        first = make_context(pipe, *sets, folder=folder, **SHORT)
        u = first.samples("ebm").u
        drawn = pipe(seeds=range(60), steps=6, batch_size=30, output_type="torch")
        for a, b in zip(u, drawn.latents, strict=True):
            assert (a == b).all()
        images = np.concatenate(list(first.stream("ebm")))
        expected = (drawn.images * 255).round().numpy().astype(np.uint8)
        assert np.abs(images.astype(int) - expected).max() <= 1
        monkeypatch.setattr(
            EvaluationContext, "_sample_batch", lambda *_: pytest.fail("drawn again")
        )
        again = make_context(pipe, *sets, folder=folder, **SHORT).samples("ebm")
        assert all((a == b).all() for a, b in zip(again.u, u, strict=True))
        assert again.seconds == first.samples("ebm").seconds > 0

    def test_seconds_are_of_u_alone_for_every_prior(self, home, pipe, sets, monkeypatch):
        """A clock that gradients and decoding move on, and nothing else."""
        now, decode = [0.0], type(pipe.model).images
        monkeypatch.setattr(context_module.time, "perf_counter", lambda: now[0])

        def decoded(self, u, *decoder):
            now[0] += 1000.0
            return decode(self, u, *decoder)

        monkeypatch.setattr(type(pipe.model), "images", decoded)
        context = make_context(pipe, *sets, **SHORT)
        move = context_module.clock
        monkeypatch.setattr(
            context_module.tqdm, "update", lambda bar, n=1: now.__setitem__(0, now[0] + n)
        )
        assert context.samples("gaussian").seconds == 0
        # Two batches of six gradients; the time of the last one is taken before it is told.
        assert context.samples("ebm").seconds == 2 * (6 - 1)
        assert move(pipe.device) >= 2000

    def test_a_damaged_file_is_made_anew(self, home, pipe, sets):
        folder = home / "damaged"
        context = make_context(pipe, *sets, folder=folder, **SHORT)
        u = context.samples("gaussian").u
        (path,) = folder.iterdir()
        path.write_bytes(path.read_bytes()[:100])
        again = make_context(pipe, *sets, folder=folder, **SHORT).samples("gaussian").u
        assert all((a == b).all() for a, b in zip(again, u, strict=True))

    def test_a_fingerprint_is_of_the_weights(self, pipe):
        other = tiny_pipeline()
        assert fingerprint(other) == fingerprint(pipe) != fingerprint(pipe, encoder=True)
        next(other.generator.parameters()).data.add_(1e-3)
        assert fingerprint(other) != fingerprint(pipe)


def test_levels_without_steps_or_noise_have_a_dash():
    level = {"level": 1, "cum_sigma": 0.5, "energy": [1.0, None]}
    rows = [level | {"steps": n, "displacement": x} for n, x in ((0, []), (2, [None, None]))]
    found = {"levels": rows, "steps": [], "sampling": {"step_scale": 1.0}}
    assert [row[3] for row in report_latents.diagnostics_table(found).rows] == ["–", "–"]


class TestWithoutData:
    @pytest.fixture
    def context(self, pipe):
        return EvaluationContext(pipe, 60, batch_size=30, progress=False, sampling={"steps": 6})

    def test_nothing_known(self, context, tmp_path, monkeypatch):
        nothing = {"images": 2, "acceptance_from": "", "sampling": {"step_scale": 1.0}}
        nothing |= {"levels": [], "steps": []}
        monkeypatch.setattr(report_latents, "run_diagnostics", lambda *_, **__: nothing)
        found = write_report(context, plan(), tmp_path)
        assert list(found) == ["diagnostics"]
        page = (tmp_path / "index.md").read_text()
        assert "gap: the package has no evaluation set" in page and "hole: needs the data" in page
        with pytest.raises(UserInputError, match="hole cannot be measured.*--data"):
            write_report(context, plan(parts=("hole",)), tmp_path)

    def test_with_an_evaluation_set(self, context, sets, tmp_path, monkeypatch):
        net = FeatureNet({"a": 2}, widths=(8, 8)).eval()
        recipe = {"classifier": {"mean_accuracy": 0.7}, "training": "", "rows": [60, 120]}
        write_set(
            build_set("tiny", net, np.asarray(sets[1].some(120).images[60:]), recipe), tmp_path
        )
        from hebm_sample.evaluation.reference import find_set

        known = find_set("tiny", 16, tmp_path)
        monkeypatch.setattr(report_module, "find_set", lambda *_: known)
        found = write_report(context, plan(parts=("gap",)), tmp_path / "out")["gap"]
        space = {net.name: (known.net, {})}
        full = make_context(context.pipe, *sets, **SHORT)
        from hebm_sample.evaluation.distances import measure

        with_data = measure(full, space).gaps[net.name]
        quality = found["quality"][net.name]
        assert quality["ebm"]["frechet"] == pytest.approx(with_data.fd_model, rel=1e-6)
        assert quality["gaussian"]["frechet"] == pytest.approx(with_data.fd_gauss, rel=1e-6)
        assert "gap closed, bits and KL need --data" in (tmp_path / "out/index.md").read_text()
        known.recipe["reconstructions"] = {
            "model": fingerprint(context.pipe, encoder=True),
            "num_images": 60,
            "frechet": with_data.fd_recon,
            "frechet_error": with_data.fd_recon_error,
        }
        found = shipped_gap(context)
        if with_data.fd_gauss > with_data.fd_recon:
            assert found["gap_closed"]["value"] == pytest.approx(with_data.gap_closed, rel=1e-4)
            assert found["gap_closed"]["error"] > 0
        else:
            assert found["gap_closed"] is None

    def test_few_images_leave_the_hole_out_and_measure_the_rest(self, pipe, sets):
        context = make_context(pipe, *sets, **SHORT | {"num_images": 29})
        parts, reasons = report_module._chosen(context, plan())
        assert "ood" in parts and "hole" not in parts
        assert reasons["hole"] == "needs 30 images in each set, and there are to be fewer"

    def test_unknown_parts(self):
        with pytest.raises(
            UserInputError, match="no part holes; there are gap, baselines, control"
        ):
            plan(parts=("gap", "holes"))


def test_rows_held_out_by_name_are_of_all_classes(pipe, tmp_path):
    """Files in folders of classes are sorted by these; both halves have some of each."""
    for name, seed in (("cat", 1), ("dog", 2)):
        draw_images(tmp_path / "data" / name, count=150, seed=seed)
    images = load_images(tmp_path / "data", size=16, cache_dir=tmp_path / "c", progress=False)
    training, held_out = images.split(None)
    count = len(held_out) // 2
    context = make_context(pipe, training, held_out, num_images=count, progress=False)
    halves = np.split(context.held_out.labels["label"][: 2 * count], 2)
    assert all(0.2 < (half == 0).mean() < 0.8 for half in halves)
    assert len(set(context.held_out.some(10).labels["label"])) == 2


def test_chains_are_those_of_the_temperature(pipe, sets):
    context = make_context(pipe, *sets, **SHORT)
    u = context.encode_images(np.asarray(sets[1].images[:4])).u
    settings = ({}, {"temperature": 0}, {"step_decay": 0.5}, {"precondition": True})
    found = [chain_latents(pipe, u, pipe.sampling_config(steps=12, **own))[0] for own in settings]
    assert all(not torch.equal(found[0], other) for other in found[1:])


def test_the_gaussian_prior_is_of_variance_1_whatever_the_chains_temperature(pipe, sets):
    sampling = replace(pipe.config.sampling, temperature=0.5)
    cold = Pipeline(
        replace(pipe.config, sampling=sampling), pipe.generator, pipe.prior, pipe.encoder
    )
    found = [make_context(p, *sets, **SHORT).samples("gaussian").u for p in (pipe, cold)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_gap_without_data_knows_that_samples_are_paired():
    """Its error is the spread of repeats, which share their seeds between the priors."""
    reference = FeatureStatistics(np.zeros(3), np.eye(3), 10_000)
    recon, found = {"frechet": 0.05, "frechet_error": 0.0}, []
    for i in range(150):
        noise, own = np.random.default_rng(i).normal(size=(2, 120, 3))
        sets = {"gaussian": 1.6 * noise + 0.5, "ebm": 1.3 * noise + 0.2 + 0.1 * own}
        found.append(report_images._closed(sets, reference, recon))
    spread = np.std([gap["value"] for gap in found])
    assert np.mean([gap["error"] for gap in found]) == pytest.approx(spread, rel=0.15)
    # Another error of the reconstructions is added as that of independent images.
    more = report_images._closed(sets, reference, recon | {"frechet_error": 0.1})
    assert more["value"] == found[-1]["value"] and more["error"] > found[-1]["error"]


def test_what_is_kept_is_of_the_same_measurement(pipe, sets, tmp_path):
    """Of another batch the seconds, of another number format the latents are others."""
    how = {"folder": tmp_path, "num_images": 20, "progress": False, "steps": 6}
    first = make_context(pipe, *sets, **how).samples("ebm")
    assert make_context(pipe, *sets, **how).samples("ebm").seconds == first.seconds
    assert make_context(pipe, *sets, batch_size=5, **how).samples("ebm").seconds != first.seconds
    half = tiny_pipeline().to(torch.bfloat16)
    other = make_context(half, *sets, **how).samples("ebm")
    assert not torch.equal(other.u[0], first.u[0])
    other = tiny_pipeline()
    encoder = other.encoder
    following = {**how, "precondition": True}
    kept = make_context(other, *sets, **following).samples("ebm")
    with torch.no_grad():
        for value in encoder.parameters():
            value.mul_(1.5)
    fresh = make_context(
        Pipeline(other.config, other.generator, other.prior, encoder), *sets, **following
    )
    assert not torch.equal(fresh.samples("ebm").u[0], kept.u[0])


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])

    @pytest.mark.parametrize(
        "options, words",
        [
            ((), "a MODEL, or two folders"),
            (("x", "--compare", "a", "b"), "and not both"),
            (("x", "--parts", "gap"), "--parts"),
            (("x", "--size", 32), "--size"),
            (("x", "--inception"), "--inception"),
            (("x", "--control"), "Missing option '--data'"),
            (("x", "--data", "y", "--report", "z", "--control"), "leave --control out"),
            (("--compare", "a", "b", "-n", 3), "-n"),
            (("x", "--feature-steps", 3), "--feature-steps need --data"),
            (("x", "--report", "z", "--inception"), "--inception need --data"),
            (("x", "--report", "z", "--ood", "a=b"), "--ood need --data"),
            (("--compare", "no-such", "b"), "there is no folder no-such"),
            (("x", "--report", "/dev/null/out"), "cannot write to the folder /dev/null/out"),
        ],
    )
    def test_what_does_not_go_together(self, options, words):
        result = self.run(*options)
        assert result.exit_code == 2 and words in result.stderr

    @pytest.mark.slow
    def test_a_report_of_a_model_with_symbols(self, home, tmp_path, monkeypatch):
        model, cache = tmp_path / "model", home / "cli-cache"
        monkeypatch.setenv("HEBM_CACHE", str(cache))
        symbolic_pipeline().save_pretrained(model)
        draw_images(tmp_path / "data", count=60, labels=True)
        where = (model, "--data", tmp_path / "data", "--validation", 24, "-n", 12, "--quiet")
        options = ("--steps", 6, "--batch", 30, "--device", "cpu", "--report", tmp_path / "out")
        classifier = ("--judge-steps", 2, "--label-column", "Smiling=bright", "--guidance", 1)
        result = self.run(*where, *options, *classifier, "--held-out", 9, "--parts", "control")
        assert result.exit_code == 0, result.output
        results = json.loads((tmp_path / "out/results.json").read_text())
        assert "Smiling" in results["parts"]["control"]["table"]
        assert "Control" in (tmp_path / "out/index.html").read_text()

    def test_files_of_others_are_never_touched(self, home, tmp_path, monkeypatch):
        monkeypatch.setenv("HEBM_CACHE", str(home / "cli-cache"))
        symbolic_pipeline().save_pretrained(tmp_path / "model")
        line = ("report", tmp_path / "model", "--out", tmp_path / "out", "--parts", "diagnostics")
        for name in ("index.html", "index.md", "results.json", "nearest.png", "figures", "parts"):
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / name).write_text("mine")
            result = CliRunner().invoke(hebm_eval, [str(x) for x in line])
            assert result.exit_code == 2 and result.stderr.startswith("Error: "), result.stderr
            assert f"holds {name}, which no report of hebm_sample wrote" in result.stderr
            assert [p.name for p in (tmp_path / "out").iterdir()] == [name]
            assert (tmp_path / "out" / name).read_text() == "mine"
            (tmp_path / "out" / name).unlink()

    def test_another_models_report_is_replaced_when_asked(self, tmp_path):
        kept = {"format_version": 1, "version": "1", "model": "mine", "parts": {}}
        (tmp_path / "results.json").write_text(json.dumps(kept))
        check_report_folder(tmp_path, "mine")
        with pytest.raises(UserInputError, match="the report of mine.*add --overwrite"):
            check_report_folder(tmp_path, "other")
        check_report_folder(tmp_path, "other", overwrite=True)

    def test_a_name_may_have_an_equals_sign(self, tmp_path):
        assert _folders((f"T = 1={tmp_path}",)) == {"T = 1": tmp_path}
        (tmp_path / "lr=0.1").mkdir()
        found = _folders((f"ddpm={tmp_path}/lr=0.1", f"T = 1={tmp_path}/lr=0.1"))
        assert found == dict.fromkeys(("ddpm", "T = 1"), tmp_path / "lr=0.1")
        with pytest.raises(UserInputError, match="--baseline a was given twice"):
            _folders((f"a={tmp_path}", f"a={tmp_path}/lr=0.1"))
        with pytest.raises(UserInputError, match="there is no folder no-such"):
            _folders(("T = 1=no-such",))
        with pytest.raises(UserInputError, match="write NAME=DIR"):
            _folders((str(tmp_path),))

    def test_compare(self, home, tmp_path, monkeypatch):
        monkeypatch.setenv("HEBM_CACHE", str(home / "cli-cache"))
        draw_images(tmp_path / "a", count=12, seed=3)
        draw_images(tmp_path / "b", count=12, seed=4)
        result = self.run(
            "--compare", tmp_path / "a", tmp_path / "b", "--quiet", "--json", tmp_path / "f.json"
        )
        assert result.exit_code == 0, result.output
        assert "16x16" in result.output and "principal components" in result.output
        spaces = json.loads((tmp_path / "f.json").read_text())["spaces"]
        assert all(q["frechet"] > 0 for q in spaces.values())


def test_neither_folder_is_nearer_to_the_components(home, tmp_path):
    """Components of B alone would make B's images denser than others of the same law."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(60):
            pixels = np.clip(rng.normal(128, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    found = []
    for one, other in ("ab", "ba"):
        how = {"cache_dir": home / "cache", "progress": False}
        spaces = compare_folders(tmp_path / one, tmp_path / other, **how).spaces
        (name,) = (n for n in spaces if "components" in n)
        assert "of A and B" in name
        found.append(spaces[name])
    for one in found:
        assert one.neighbours.density.value == pytest.approx(1, abs=0.35)
    assert found[0].frechet.value == pytest.approx(found[1].frechet.value, rel=1e-6)


def test_a_folder_against_itself(home, tmp_path):
    draw_images(tmp_path / "a", count=12)
    found = compare_folders(
        tmp_path / "a", tmp_path / "a", cache_dir=home / "cache", progress=False
    )
    for q in found.spaces.values():
        assert q.frechet.value < 1e-6 and q.neighbours is not None
        assert q.neighbours.precision.value == q.neighbours.recall.value == 1
    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    with pytest.raises(UserInputError, match="there is no folder"):
        compare_folders(tmp_path / "one.png", tmp_path / "a")


def test_blocks_in_both_languages():
    blocks = [
        Heading("A & B", 1),
        Text("x < y"),
        Code("run --me"),
        Table(["a|b", "c"], [["1", "2"]]),
        ReportImage("f.png", 'a "figure"'),
    ]
    text, html = to_markdown(blocks), to_html(blocks)
    assert text.splitlines()[0] == "# A & B" and "| a\\|b | c |\n| --- | --- |\n| 1 | 2 |" in text
    assert "<h1>A &amp; B</h1>" in html and "x &lt; y" in html and "<td>2</td>" in html
    assert 'alt="a &quot;figure&quot;"' in html and "<title>A &amp; B</title>" in html
    assert (number(None), number(float("nan")), number(1.23456)) == ("–", "–", "1.235")
    assert with_error(1.0, None) == "1.000" and with_error(1.0, 0.25, 2) == "1.00 ± 0.25"
