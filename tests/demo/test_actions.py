"""What the page does is what its lines of Python and shell do, to the bit, and what a stranger
types or uploads ends in one line.

Without it the page could show lines that make other images than those above them.
"""

import io
import os
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from demo.running import run_python, run_shell
from PIL import Image
from spots import CROP, face_at, find_spots, spots
from tiny import symbolic_config, symbolic_pipeline, tiny_config, tiny_pipeline

from hebm_sample.align.faces import default_detector, has_detector
from hebm_sample.config import SymbolConfig
from hebm_sample.demo import actions, composing, options, photos, recipes, steps, view
from hebm_sample.demo.actions import Stopped, Watch
from hebm_sample.demo.drawings import drawings
from hebm_sample.demo.images import MAX_IMAGES, DemoImage
from hebm_sample.demo.steps import (
    Draw,
    Edit,
    Inpaint,
    Interpolate,
    Mix,
    ModelName,
    Origin,
    PasteBack,
    Reconstruct,
    Settings,
    Upload,
    Vary,
)
from hebm_sample.demo.studio import Offer, Studio, offers
from hebm_sample.errors import EnvironmentFailure, HebmError, UserInputError
from hebm_sample.io.images import png_bytes
from hebm_sample.pipeline import alignment
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.crops import CROPS

NOTHING = Settings({}, {})
STEERED = Settings(
    {"class": "~a", "Smiling": "yes"}, {"class": 1.0, "Smiling": 2.5}, temperature=0.85
)


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> ModelName:
    folder = tmp_path_factory.mktemp("models") / "toy"
    symbolic_pipeline(steps=6).save_pretrained(folder)
    return ModelName(str(folder))


@pytest.fixture(scope="module")
def pipe(name) -> Pipeline:
    return Pipeline.from_pretrained(name.dataset)


@pytest.fixture
def photo(tmp_path, monkeypatch) -> Path:
    """Neither square nor of the model's size, with a name that wants quoting; in the folder where
    lines are run.
    """
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "it's me.png"
    Image.linear_gradient("L").resize((50, 40)).convert("RGB").save(path)
    return path


def sampled(pipe, step) -> list[DemoImage]:
    *_, last = actions.draw(pipe, step, Watch())
    return last


def pixels(image) -> bytes:
    return (image.image if isinstance(image, DemoImage) else image).tobytes()


# The lines


def test_lines_of_samples(pipe, name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = sampled(pipe, Draw(name, STEERED, (7, 3)))
    made = run_python(recipes.python_lines(found[1].origin))
    assert [pixels(p) for p in found] == [pixels(p) for p in made["out"].images]
    grid = Path("images.png").read_bytes()
    Path("images.png").unlink()
    run_shell(recipes.shell_lines(found[1].origin))
    with Image.open(io.BytesIO(grid)) as a, Image.open("images.png") as b:
        assert a.tobytes() == b.tobytes()


def test_lines_of_variations_of_one_of_several(pipe, name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = sampled(pipe, Draw(name, STEERED, (7, 3)))[1]
    step = Vary(name, STEERED, (0, 1), 2, source.origin)
    watch = Watch()
    before, *found = actions.vary(pipe, step, source, watch)
    assert before is source and watch.done == watch.total
    made = run_python(recipes.python_lines(found[1].origin))
    assert [pixels(p) for p in found] == [pixels(p) for p in made["out"].images]
    run_shell(recipes.shell_lines(found[1].origin))
    assert Path("varied/seed0001.png").read_bytes() == found[1].png


def test_variations_keep_the_top_layers(pipe, name) -> None:
    (source,) = sampled(pipe, Draw(name, NOTHING, (7,)))
    _, *found = actions.vary(pipe, Vary(name, NOTHING, (1, 2), 2, source.origin), source, Watch())
    for image in found:
        same = [a.equal(b) for a, b in zip(image.latents, source.latents, strict=True)]
        assert same == [True, True, False]
    assert pixels(found[0]) != pixels(found[1])


def test_lines_of_edits_of_edits_of_a_sample(pipe, name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = sampled(pipe, Draw(name, NOTHING, (7, 3)))[1]
    sources = [image]
    for method, target in (("flow", "yes"), ("noise", "no")):
        step = Edit(
            name, Settings({"Smiling": target}, {"Smiling": 8.0}), 0.6, method, image.origin
        )
        before, _, image = actions.edit(pipe, step, image, Watch())
        assert before is sources[-1] and pixels(before) != pixels(image)
        sources.append(image)
    made = run_python(recipes.python_lines(image.origin))
    assert pixels(made["out"].images[0]) == pixels(image)
    run_shell(recipes.shell_lines(image.origin))
    files = ("drawn/seed0003.png", "edited/seed0003.png", "edited1/seed0003.png")
    assert [Path(file).read_bytes() for file in files] == [p.png for p in sources]


def test_lines_of_an_edited_upload(pipe, name, photo) -> None:
    source = photos.upload(pipe, photo.name, photo.read_bytes())[0]
    assert source.image.size == (16, 16)
    step = Edit(
        name, Settings({"class": "b"}, {"class": 32.0}, steps=8), 0.77, "flow", source.origin
    )
    _, between, found = actions.edit(pipe, step, source, Watch())
    made = run_python(recipes.python_lines(found.origin))
    assert pixels(made["out"].images[0]) == pixels(found)
    run_shell(recipes.shell_lines(found.origin))
    assert (Path("edited") / photo.name).read_bytes() == found.png
    assert pixels(run_python(recipes.python_lines(between.origin))["image"]) == pixels(between)


def test_lines_of_what_no_command_does(pipe, name, photo) -> None:
    source = photos.upload(pipe, photo.name, photo.read_bytes())[0]
    _, between = actions.reconstruct(pipe, Reconstruct(name, source.origin), source)
    for begin in (source, between):
        step = Vary(name, NOTHING, (0, 1), 1, begin.origin)
        found = actions.vary(pipe, step, begin, Watch())[2]
        again = Vary(name, NOTHING, (5,), 1, found.origin)
        last = actions.vary(pipe, again, found, Watch())[1]
        made = run_python(recipes.python_lines(last.origin))
        assert pixels(made["out"].images[0]) == pixels(last)
        assert recipes.shell_lines(last.origin).startswith("# no command")


@pytest.fixture
def mask() -> Image.Image:
    """Of the toy's size: a corner is to be filled in."""
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 9, 7))
    return image


def test_lines_of_inpaintings_of_a_sample_and_of_one_of_them(
    pipe, name, mask, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image, found = sampled(pipe, Draw(name, NOTHING, (7, 3)))[1], []
    for seeds in ((0, 5), (2,)):
        step = Inpaint(name, Settings({}, {}, steps=6), seeds, 0.8, image.origin)
        before, *found = composing.inpaint(pipe, step, image, mask, Watch())
        assert before is image and len(found) == len(seeds)
        image = found[-1]
    assert [file for file, _ in image.files] == ["mask.png", "mask1.png"]
    for file, data in image.files:
        Path(file).write_bytes(data)
    made = run_python(recipes.python_lines(image.origin))["out"]
    assert [pixels(p) for p in made.images] == [pixels(p) for p in found]
    run_shell(recipes.shell_lines(image.origin))
    written = Path("inpainted1") / "seed0003-seed0005-seed0002.png"
    assert written.read_bytes() == image.png
    kept = np.asarray(mask) == 0
    assert (np.asarray(image.image)[kept] == np.asarray(before.image)[kept]).mean() > 0.8


def test_lines_of_a_mixture_of_two_seeds(pipe, name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = composing.sampled(pipe, Draw(name, STEERED, (7, 3)), Watch())
    *_, found = composing.mix(pipe, Mix(name, a.origin, b.origin, 2), a, b)
    assert [g.equal(h) for g, h in zip(found.latents, a.latents, strict=True)] == [1, 1, 0]
    assert found.latents[2].equal(b.latents[2])
    made = run_python(recipes.python_lines(found.origin))["out"]
    assert [pixels(p) for p in made.images] == [pixels(found)]
    run_shell(recipes.shell_lines(found.origin))
    with Image.open("mixed.png") as image:
        assert image.convert("RGB").tobytes() == pixels(found)
        with Image.open(io.BytesIO(found.png)) as ours:
            assert {**ours.text, "command": image.text["command"]} == image.text


def test_lines_of_a_mixture_with_an_upload(pipe, name, photo) -> None:
    source = photos.upload(pipe, photo.name, photo.read_bytes())[0]
    (other,) = composing.sampled(pipe, Draw(name, NOTHING, (3,)), Watch())
    for a, b in ((source, other), (other, source)):
        *_, found = composing.mix(pipe, Mix(name, a.origin, b.origin, 1), a, b)
        made = run_python(recipes.python_lines(found.origin))["out"]
        assert [pixels(p) for p in made.images] == [pixels(found)]
        assert recipes.shell_lines(found.origin).startswith("# no command")


def test_lines_of_the_way_between_two_images(pipe, name, photo) -> None:
    source = photos.upload(pipe, photo.name, photo.read_bytes())[0]
    a, b = composing.sampled(pipe, Draw(name, STEERED, (7, 3)), Watch())
    for first, second in ((a, b), (source, b), (b, source)):
        step = Interpolate(name, first.origin, second.origin, 4)
        found = composing.interpolate(pipe, step, first, second)
        made = run_python(recipes.python_lines(found[1].origin))["out"]
        assert [pixels(p) for p in made.images] == [pixels(p) for p in found]
        run_shell(recipes.shell_lines(found[1].origin))
        with Image.open("interpolated.png") as grid:
            assert grid.convert("RGB").tobytes() == made.grid().tobytes()
        for path in Path().glob("drawn*/*"):
            path.unlink()
    ends = [pixels(found[i]) for i in (0, -1)]
    assert ends == [pixels(pipe.reconstruct([p.image])[0]) for p in (b, source)]


needs_detector = pytest.mark.skipif(
    not has_detector(), reason="mtcnn is not installed (extra: align)"
)


@needs_detector
def test_lines_of_a_face_that_is_put_back(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(symbolic_config(steps=6), crop=CROPS["celebahq"])
    tiny_pipeline(config).save_pretrained("faces")
    name, pipe = ModelName("faces"), Pipeline.from_pretrained("faces")
    with Image.open(io.BytesIO(drawings(faces=True, places=False)[0])) as image:
        data = png_bytes(image.resize((360, 270)))
    Path("me.png").write_bytes(data)
    source, line = photos.upload(pipe, "me.png", data, name)
    assert line == "the face of your image, aligned" and photos.aligns(pipe.config)
    step = Edit(name, Settings({"Smiling": "yes"}, {"Smiling": 8.0}), 0.6, "flow", source.origin)
    *_, edited = actions.edit(pipe, step, source, Watch())
    pasting = PasteBack(name, edited.photo.upload, edited.origin)
    _, found = photos.paste_back(pipe, pasting, edited)
    assert found.image.size == (360, 270)
    assert pixels(run_python(recipes.python_lines(found.origin))["image"]) == pixels(found)
    run_shell(recipes.shell_lines(found.origin))
    assert Path("pasted/me.png").read_bytes() == found.png
    assert pixels(run_python(recipes.python_lines(source.origin))["image"]) == pixels(source)


def test_of_a_filled_face_the_mask_is_put_back(mask, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(alignment, "default_detector", lambda: find_spots)
    monkeypatch.setattr(alignment, "detector_works", lambda: True)
    tiny_pipeline(replace(symbolic_config(steps=6), crop=CROP)).save_pretrained("faces")
    name, pipe = ModelName("faces"), Pipeline.from_pretrained("faces")
    scene = spots(face_at(210, 130))
    scene.save("me.png")
    source, _ = photos.upload(pipe, "me.png", Path("me.png").read_bytes(), name)
    step = Inpaint(name, Settings({}, {}, steps=6), (1, 2), 0.8, source.origin)
    *_, filled = composing.inpaint(pipe, step, source, mask, Watch())
    _, found = photos.paste_back(pipe, PasteBack(name, step.source.step, filled.origin), filled)
    (cut,) = pipe.align(scene)
    assert pixels(found) == cut.paste_back(filled.image, mask=mask).tobytes()
    same = np.asarray(found.image)[200:] == np.asarray(scene)[200:]
    assert same.all() and pixels(found) != scene.tobytes()
    for file, data in filled.files:
        Path(file).write_bytes(data)
    assert pixels(run_python(recipes.python_lines(found.origin))["image"]) == pixels(found)
    run_shell(recipes.shell_lines(found.origin))
    assert Path("pasted/me-seed0002.png").read_bytes() == found.png


def test_a_face_at_an_end_of_the_way_is_the_file_that_the_page_saves(name) -> None:
    face, drawn = Origin(Upload("me.png", name)), Origin(Draw(name, NOTHING, (7,)))
    lines = recipes.shell_lines(Origin(Interpolate(name, face, drawn, 3))).splitlines()
    assert lines[0] == "# me-face.png is the face of your own image"
    assert "interpolate me-face.png drawn-second/seed0007.png" in lines[-1]


@pytest.mark.parametrize("own", [1.0, 0.85, (0.5, 1.0, 0.6)])
def test_the_slider_starts_at_the_models_temperature_and_1_can_be_had(own) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (extra: demo)")
    from hebm_sample.demo.handlers import _drawing

    offer = Offer(ModelName("toy"), symbolic_config(temperature=own), "none")
    start = offer.temperature
    assert start == (pytest.approx(0.7) if isinstance(own, tuple) else own)
    assert _drawing(offer, [start, "", 0]).temperature is None
    for asked in (1.0, 0.5):
        found = _drawing(offer, [asked, "", 0]).temperature
        assert (asked if found is None else found) == asked and (found is None) == (asked == start)


def test_a_model_that_knows_nothing_to_change_says_so() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (extra: demo)")
    from hebm_sample.demo.handlers import _nothing_chosen

    bare, rich = (Offer(ModelName("toy"), c(), "none") for c in (tiny_config, symbolic_config))
    assert "knows no attributes" in _nothing_chosen(bare)
    assert "nothing is chosen yet" in _nothing_chosen(rich)


def test_an_image_without_a_face_is_its_middle_square(pipe, name, monkeypatch) -> None:
    def align(_images):
        raise UserInputError("no face was found in the image")

    monkeypatch.setattr(pipe, "align", align, raising=False)
    data = drawings(faces=False, places=True)[0]
    found, line = photos.upload(pipe, "church.png", data, name)
    assert line == "no face was found in church.png, so this is its middle square"
    assert pixels(found) == pixels(photos.upload(pipe, "church.png", data)[0])
    assert found.photo is None and found.origin.step.aligned_to is None


@needs_detector
def test_drawn_faces_are_found_off_centre_and_turned() -> None:
    turned = []
    for png in drawings(faces=True, places=False):
        (face,) = default_detector()(Image.open(io.BytesIO(png)))
        (left, right, mouth), (width, height) = face.points, (720, 540)
        assert np.abs(mouth - np.array([width, height]) / 2).max() > 40
        turned.append(np.degrees(np.arctan2(*(left - right)[::-1])) % 360 - 180)
    assert turned == pytest.approx([-9, 12, -4], abs=3)


def test_masks_that_ask_for_nothing_or_for_everything_are_one_line(mask) -> None:
    for image, says in (
        (Image.new("L", (16, 16)), "nothing is painted"),
        (Image.new("L", (16, 16), 255), "everything is painted"),
        (Image.new("L", (8, 8), 255), "of another size"),
    ):
        with pytest.raises(UserInputError, match=says):
            composing.stated_mask(png_bytes(image), 16)
    with pytest.raises(UserInputError, match="nothing is painted"):
        composing.stated_mask(b"", 16)
    with pytest.raises(UserInputError, match="the mask"):
        composing.stated_mask(b"<svg>", 16)
    assert composing.stated_mask(png_bytes(mask), 16).tobytes() == mask.tobytes()


def test_words_with_two_settings_are_read_as_meant(name) -> None:
    settings = Settings({"Smiling": "no"}, {"Smiling": 3.0}, "annealed", 12, 0.5)
    step = Draw(ModelName(name.dataset, 16, "cpu"), settings, (1, 2, 9))
    found = options.sample_options(step)
    assert found.symbols == {"Smiling": "no"} and found.weights == {"Smiling": 3.0}
    settings = {key: value for key, value in found.settings.items() if value is not None}
    assert settings == {"sampler": "annealed", "steps": 12, "temperature": 0.5}
    assert found.chosen_seeds == (1, 2, 9)
    assert (found.resolution, found.device) == (16, "cpu")


# Streaming, stopping


def test_a_draw_streams_a_level_at_a_time(pipe, name) -> None:
    shares: list[float] = []
    states = list(actions.draw(pipe, Draw(name, NOTHING, (7,)), Watch(tell=shares.append)))
    steps = list(pipe.stream(seeds=[7]))
    assert [pixels(s[0]) for s in states] == [pixels(s.images[0]) for s in steps]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert states[-1][0].energies == tuple(steps[-1].energies[0].tolist())


@pytest.mark.parametrize("what", ["draw", "vary", "edit"])
def test_stop_ends_a_chain_at_its_next_gradient(pipe, name, what) -> None:
    (source,) = sampled(pipe, Draw(name, NOTHING, (7,)))
    stop = threading.Event()
    watch = Watch(stop, lambda share: stop.set())
    with pytest.raises(Stopped):
        if what == "draw":
            list(actions.draw(pipe, Draw(name, NOTHING, (7,)), watch))
        elif what == "vary":
            actions.vary(pipe, Vary(name, NOTHING, (0,), 1, source.origin), source, watch)
        else:
            settings = Settings({"Smiling": "yes"}, {"Smiling": 8.0})
            actions.edit(pipe, Edit(name, settings, 0.6, "flow", source.origin), source, watch)
    assert 0 < watch.done < watch.total


# What strangers give


def jpeg(size) -> bytes:
    file = io.BytesIO()
    Image.new("L", size).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<svg onload=alert(1)>", "is not a PNG, JPEG, WEBP"),
        (b"", "is not a PNG, JPEG, WEBP"),
        (jpeg((64, 64))[:300], "the file is damaged"),
        (jpeg((9000, 4000)), "36 megapixels"),
        (b"\xff\xd8" + bytes(photos.MAX_UPLOAD_BYTES), "larger than 10 MB"),
    ],
    ids=["markup", "empty", "torn", "many pixels", "many bytes"],
)
def test_a_bad_upload_is_one_line(pipe, data, says) -> None:
    with pytest.raises(HebmError) as caught:
        photos.upload(pipe, "../me/face.jpg", data)
    assert says in str(caught.value) and "face.jpg" in str(caught.value)
    assert "me/" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\me\\face.png", "face.png"),
        ("it's <me>.png", "it's <me>.png"),
        ("--out.png", "out.png"),
        ("...", "image.png"),
        ("a\nb.png", "ab.png"),
        ("a" * 30 + "-" + "b" * 75 + ".png", "b" * 75 + ".png"),
    ],
)
def test_names_of_uploads(given, kept) -> None:
    assert steps.safe_name(given) == kept


def test_what_is_given_wrongly_is_one_line(pipe, name) -> None:
    for step in (
        Draw(name, NOTHING, tuple(range(MAX_IMAGES + 1))),
        Draw(name, Settings({"Smiling": "perhaps"}, {}), (1,)),
        Draw(name, Settings({"Smiling": "yes"}, {"Smiling": 1e9}), (1,)),
        Draw(name, Settings({}, {}, steps=-1), (1,)),
    ):
        with pytest.raises(UserInputError):
            sampled(pipe, step)


# What is shown


def test_all_images_are_one_archive(pipe, name, mask) -> None:
    (source,) = sampled(pipe, Draw(name, NOTHING, (7,)))
    step = Inpaint(name, Settings({}, {}, steps=6), (0, 1), 0.8, source.origin)
    found = composing.inpaint(pipe, step, source, mask, Watch())
    data = view.archive([*found, found[1], replace(found[1], png=source.png)])
    assert data == view.archive([*found, found[1], replace(found[1], png=source.png)])
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        files = {file: packed.read(file) for file in packed.namelist()}
    assert files == {
        "toy-seed0007.png": source.png,
        "toy-filled-seed0000.png": found[1].png,
        "mask.png": found[1].files[0][1],
        "toy-filled-seed0001.png": found[2].png,
        "toy-filled-seed0000-2.png": source.png,
    }
    assert "Save all 3 as a ZIP" in view.facts(found, 0, (4, 4, 8))
    assert "ZIP" not in view.facts([replace(p, finished=False) for p in found], 0, (4, 4, 8))


def test_nobody_says_no_twice() -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (extra: demo)")
    from hebm_sample.demo.controls import target_values

    config = symbolic_config()
    symbols = (SymbolConfig("No_Beard", ("no", "yes")), SymbolConfig("Nose", ("no", "yes")))
    config = replace(config, prior=replace(config.prior, symbols=symbols))
    pipe = tiny_pipeline(config)
    offer = Offer(ModelName("toy"), config, "none")
    shown = {box["label"]: box["choices"] for box in (target_values(offer, i) for i in (0, 1))}
    assert shown["Beard"] == [("any", ""), ("no", "yes"), ("yes", "no")]
    assert shown["Nose"] == [("any", ""), ("no", "no"), ("yes", "yes")]
    feeble = replace(offer, weak=("No_Beard",))
    labels = [target_values(feeble, i)["label"] for i in (0, 1)]
    assert labels == ["Beard (weak)", "Nose"]
    (found,) = sampled(pipe, Draw(ModelName("toy"), NOTHING, (7,)))
    probability = pipe.classify(latents=found.latents)["No_Beard"][0, 0].item()
    assert found.predictions[0] == ("Beard", pytest.approx(probability))


def test_the_stage_shows_every_image_and_a_bar_a_layer(pipe, name) -> None:
    found = sampled(pipe, Draw(name, NOTHING, (7, 3)))
    assert view.stage(found, 1).count("data-pick=") == 2
    html = view.facts(found, 1, (4, 4, 8))
    density = pipe.log_density(latents=found[1].latents).item()
    assert f"Log density {density:.1f}," in html
    energies, predictions = html.split("hebm-predictions")
    assert energies.count("<tr>") == len(found[1].energies) == 3
    assert predictions.count("<tr>") == 4  # three classes, and Smiling
    assert 'download="toy-seed0003.png"' in html


def test_what_visitors_write_is_escaped() -> None:
    words = '"><script>alert(1)</script>'
    image = DemoImage(b"", words)
    for html in (view.stage([image], 0), view.status(words)):
        assert "<script" not in html and "&lt;script&gt;" in html


def test_bars_begin_at_a_common_zero() -> None:
    html = view.energy_chart((-3.0, 1.0), (4, 8))
    assert "left:0.0%;width:75.0%" in html and "left:75.0%;width:25.0%" in html


# Models


def test_a_studio_keeps_the_last_few_models(name, pipe) -> None:
    offer = Offer(name, pipe.config, "none")
    studio = Studio([offer, offer], most=1)
    assert len(studio.offers) == 2  # two models of one name can be told apart
    first = studio.pipeline(name)
    assert studio.pipeline(name) is first
    studio.pipeline(ModelName(name.dataset, device="cpu"))
    assert studio.pipeline(name) is not first


def test_the_embedded_models_are_offered() -> None:
    found = {offer.label: offer for offer in offers([], "cpu")}
    assert {"celeba64 · 64×64", "celebahq · 256×256", "celebahq · 64×64"} <= set(found)
    assert found["celebahq · 64×64"].name == ModelName("celebahq", 64, "cpu")
    assert "class" in found["cifar10 · 32×32"].symbols


# The command


def test_without_gradio_there_is_one_line(monkeypatch) -> None:
    from hebm_sample.demo import cli as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    done = CliRunner().invoke(command.main, [])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert "this needs gradio" in done.stderr and "[demo]" in done.stderr


def test_a_model_that_is_not_there_is_named(monkeypatch) -> None:
    from hebm_sample.demo import cli as command

    monkeypatch.setattr(command, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "environ", dict(os.environ))
    done = CliRunner().invoke(command.main, ["--dataset", "celebahk"])
    assert done.exit_code == 2 and "did you mean celebahq?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_lack_of_memory_is_told_in_the_page(pipe, name, monkeypatch) -> None:
    def stream(**_options):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(pipe, "stream", stream)
    with pytest.raises(EnvironmentFailure, match="too little memory"):
        sampled(pipe, Draw(name, NOTHING, (7,)))
