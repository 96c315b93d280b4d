"""The page in a browser: what a visitor clicks is what the pipeline draws.

Nothing else would notice an input that is wired to another output, a control that does nothing, or
a page that does not fit a telephone.
"""

import base64
import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (extra: demo)")
pytest.importorskip("selenium", reason="selenium is not installed (extra: dev)")

from demo import browser
from demo.browser import Visitor
from demo.running import run_python
from PIL import Image
from tiny import symbolic_config, tiny_pipeline

from hebm_sample.align.faces import has_detector
from hebm_sample.demo.drawings import drawings
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.crops import CROPS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing())),
]

TOY = "tiny · 16×16"
SEEDS = "#hebm-seeds :is(input, textarea)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A toy that calls its images faces."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    config = replace(symbolic_config(steps=12), crop=CROPS["celebahq"])
    tiny_pipeline(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder) -> Pipeline:
    return Pipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory) -> Iterator[str]:
    """Of a page with the toy model and `cifar10`, which leaves no file behind."""
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        with browser.serve("--dataset", str(folder), "--dataset", "cifar10") as address:
            yield address
    assert [p for p in scratch.rglob("*") if p.is_file()] == []


@pytest.fixture(scope="module")
def one(address) -> Iterator[Visitor]:
    with browser.visitor(address) as visitor:
        yield visitor


@pytest.fixture
def page(one, address) -> Visitor:
    """The page as it is when it is opened."""
    one.driver.get(address)
    one.until(lambda: one.status == "ready")
    return one


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "me.png"
    Image.linear_gradient("L").resize((50, 40)).convert("RGB").save(path)
    return path


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB").tobytes()


def draw(page: Visitor, seeds: str) -> list[bytes]:
    page.write(SEEDS, seeds)
    assert page.do("#hebm-draw").startswith("done")
    return page.images


def test_a_seed_is_its_image_and_can_be_saved(page, pipe) -> None:
    draw(page, "5")
    name, data = page.save()
    assert name == "toy-seed0005.png"
    assert pixels(data) == pipe(seeds=[5]).images[0].tobytes()
    with Image.open(io.BytesIO(data)) as image:
        assert image.text["seed"] == "5" and image.text["model"] == "tiny"
    assert page.js("return document.querySelectorAll('.hebm-energies tr').length") == 3


def test_class_attribute_and_weight_reach_the_pipeline(page, pipe, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    page.choose("#hebm-draw-target-0", "not a")
    page.choose("#hebm-draw-target-1", "yes")
    page.write("#hebm-weight-1 input[type=number]", "4")
    found = draw(page, "3,8")
    asked = {"class": "~a", "Smiling": "yes"}
    own = pipe(seeds=[3, 8], symbols=asked, guidance={"class": 2.0, "Smiling": 4.0})
    assert [pixels(p) for p in found] == [p.tobytes() for p in own.images]
    made = run_python(page.lines("python"))["out"].images
    assert [p.tobytes() for p in made] == [p.tobytes() for p in own.images]


def test_an_image_is_varied(page, pipe) -> None:
    draw(page, "3,8")
    page.js("document.querySelector('[data-pick=\"1\"]').click()")
    page.until(lambda: page.find(".hebm-big figcaption").text == "seed 8")
    page.click("#hebm-to-vary")
    page.write("#hebm-keep input[type=number]", "2")
    page.write("#hebm-vary-seeds :is(input, textarea)", "1-3")
    assert page.do("#hebm-vary").startswith("done")
    own = pipe.vary(pipe(seeds=[8]), slice(0, 2), 3, seeds=[1, 2, 3])
    assert [pixels(p) for p in page.images[1:]] == [p.tobytes() for p in own.images]


def test_an_upload_is_edited(page, pipe, photo) -> None:
    page.tab("Edit")
    assert "its middle square" in page.give(photo)
    page.choose("#hebm-edit-target-1", "yes")
    page.write("#hebm-strength input[type=number]", "0.6")
    assert page.do("#hebm-edit").startswith("done")
    own = pipe.edit([photo], {"Smiling": "yes"}, strength=0.6, guidance=32.0)
    _, between, edited = page.images
    assert pixels(edited) == own.images[0].tobytes()
    assert pixels(between) == pipe.reconstruct([photo])[0].tobytes()


def test_a_drawn_image_is_edited(page, pipe) -> None:
    draw(page, "5")
    page.click("#hebm-to-edit")
    page.choose("#hebm-edit-target-0", "c")
    assert page.do("#hebm-edit").startswith("done")
    own = pipe.edit(pipe(seeds=[5]).images, {"class": "c"})
    assert pixels(page.images[-1]) == own.images[0].tobytes()


def test_what_is_no_image_is_one_line_and_the_page_goes_on(page, tmp_path) -> None:
    bad = tmp_path / "face.png"
    bad.write_bytes(b"<svg onload=alert(1)>")
    page.tab("Edit")
    assert "face.png: it is not a PNG, JPEG, WEBP" in page.give(bad)
    assert page.find("[role=alert]").is_displayed()
    page.tab("Draw")
    page.write(SEEDS, "0-9999")
    assert "at most 9 at a time" in page.do("#hebm-draw")
    assert len(draw(page, "1,2")) == 2


def test_stop_ends_a_chain(page) -> None:
    page.click("#hebm-advanced button")
    page.write("#hebm-steps input[type=number]", "200")
    page.write(SEEDS, "0-8")
    page.js("document.querySelector('.hebm-status').dataset.old = 1")
    page.click("#hebm-draw")
    page.click("#hebm-stop")
    assert page.wait() == "stopped"


def test_two_visitors_do_not_get_in_each_others_way(page, address, pipe) -> None:
    with browser.visitor(address) as other, ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(draw, who, seeds) for who, seeds in ((page, "0-3"), (other, "4-7"))]
        found = [job.result() for job in jobs]
    for images, seeds in zip(found, (range(4), range(4, 8)), strict=True):
        assert [pixels(p) for p in images] == [p.tobytes() for p in pipe(seeds=seeds).images]


def test_a_class_of_an_embedded_model(page) -> None:
    page.choose("#hebm-model", "cifar10 · 32×32")
    page.until(
        lambda: "10 " in page.find(".hebm-note").text or "32×32" in page.find(".hebm-note").text
    )
    page.until(lambda: page.status == "ready")
    page.choose("#hebm-draw-target-0", "horse")
    page.click("#hebm-advanced button")
    page.write("#hebm-steps input[type=number]", "12")
    (found,) = draw(page, "7")
    own = Pipeline.from_pretrained("cifar10")(
        seeds=[7], symbols={"class": "horse"}, guidance=2.0, steps=12
    )
    assert pixels(found) == own.images[0].tobytes()


WIDTHS = pytest.mark.parametrize("width", [1280, 390])
TABS = ("Draw", "Vary", "Edit", "Inpaint", "Mix", "Interpolate")


@pytest.fixture
def at(one, address, width) -> Iterator[Visitor]:
    """The page at a width."""
    one.resize(width, 844)
    one.driver.get(address)
    one.until(lambda: one.status == "ready")
    yield one
    one.resize(1280, 900)


@WIDTHS
def test_what_is_painted_over_is_filled_in(at, pipe) -> None:
    (drawn,) = draw(at, "5")
    at.click("#hebm-to-inpaint")
    assert "nothing is painted" in at.do("#hebm-inpaint")
    at.paint((0.3, 0.3), (0.6, 0.4), (0.6, 0.6))
    at.write("#hebm-inpaint-seeds :is(input, textarea)", "2,9")
    assert at.do("#hebm-inpaint").startswith("done")
    before, *found = at.images
    name, data = at.save("a[download='mask.png']")
    assert name == "mask.png" and before == drawn
    mask = Image.open(io.BytesIO(data))
    assert mask.getpixel((9, 7)) == 255 and mask.getpixel((1, 14)) == 0
    image = Image.open(io.BytesIO(drawn)).convert("RGB")
    own = pipe.inpaint([image, image], mask, seeds=[2, 9])
    assert [pixels(p) for p in found] == [p.tobytes() for p in own.images]
    # The paint rests while fillings are compared, and is seen again on what comes next.
    rests = "return document.documentElement.classList.contains('hebm-rest')"
    at.js("document.querySelector('[data-pick=\"2\"]').click()")
    at.until(lambda: at.find(".hebm-big figcaption").text.endswith("9"))
    assert at.js(rests)
    at.tab("Draw")
    draw(at, "6")
    assert not at.js(rests)
    at.tab("Inpaint")
    at.click("#hebm-clear")
    assert "nothing is painted" in at.do("#hebm-inpaint")


@WIDTHS
def test_a_stroke_can_be_erased(at) -> None:
    draw(at, "5")
    at.tab("Inpaint")
    at.paint((0.2, 0.5), (0.8, 0.5))
    at.click("#hebm-erase input")
    at.write("#hebm-brush input[type=number]", "50")
    at.paint((0.1, 0.5), (0.9, 0.5))
    assert "nothing is painted" in at.do("#hebm-inpaint")


@WIDTHS
def test_images_are_mixed_and_interpolated(at, pipe) -> None:
    draw(at, "5")
    at.tab("Mix")
    at.write("#hebm-mix-1 :is(input, textarea)", "3")
    at.write("#hebm-cut input[type=number]", "1")
    assert at.do("#hebm-mix").startswith("done")
    both = pipe(seeds=[3, 8])
    own = pipe.mix(both[:1], both[1:], 1)
    assert [pixels(p) for p in at.images] == [p.tobytes() for p in (*both, own[0])]
    at.tab("Interpolate")
    at.write("#hebm-way-1 :is(input, textarea)", " ")  # the chosen image: the mixture
    at.write("#hebm-frames input[type=number]", "4")
    assert at.do("#hebm-interpolate").startswith("done")
    between = pipe.interpolate(list(own.images), list(pipe(seeds=[8]).images), 4)
    assert [pixels(p) for p in at.images] == [p.tobytes() for p in between.images]
    at.write("#hebm-way-2 :is(input, textarea)", "  ")
    assert "the same image" in at.do("#hebm-interpolate")


def test_a_file_can_be_dropped_anywhere_on_the_page(page, photo) -> None:
    page.js("document.querySelector('.hebm-status').dataset.old = 1")
    kept = page.js(
        "const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));"
        "const dataTransfer = new DataTransfer();"
        "dataTransfer.items.add(new File([bytes], 'dropped.png'));"
        "const how = {dataTransfer, bubbles: true, cancelable: true};"
        "return document.querySelector('#hebm-stage').dispatchEvent(new DragEvent('drop', how))",
        base64.b64encode(photo.read_bytes()).decode(),
    )
    assert kept is False  # the browser does not open it in the page's place
    assert "its middle square" in page.wait()


@WIDTHS
def test_all_images_are_saved_together(at) -> None:
    found = draw(at, "4-6")
    name, data = at.save(".hebm-all")
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        files = {file: packed.read(file) for file in packed.namelist()}
    assert name == "images.zip"
    assert files == {f"toy-seed000{i}.png": png for i, png in zip((4, 5, 6), found, strict=True)}


@pytest.mark.skipif(not has_detector(), reason="mtcnn is not installed (extra: align)")
@WIDTHS
def test_a_drawn_face_is_aligned_edited_and_put_back(at, pipe) -> None:
    at.click("#hebm-own button")
    assert at.do("[data-sample='1']") == "the face of your image, aligned"
    photo = Image.open(io.BytesIO(drawings(faces=True, places=False)[1]))
    (face,) = pipe.align(photo)
    assert pixels(at.images[0]) == face.image.tobytes()
    assert not at.find("#hebm-stage").find_elements("css selector", "#hebm-paste")
    at.tab("Edit")
    at.choose("#hebm-edit-target-1", "yes")
    assert at.do("#hebm-edit").startswith("done")
    assert at.do("#hebm-paste").startswith("done")
    own = pipe.edit([photo], {"Smiling": "yes"}, align=True, paste_back=True)
    assert pixels(at.images[-1]) == own.images[0].tobytes()
    assert "a whole photograph is shown" in at.do("#hebm-edit")
    at.click("#hebm-align input")
    assert "turn on Align the face" in at.do("[data-sample='1']")


@WIDTHS
def test_the_main_button_stays_where_it_is(at) -> None:
    code = (
        "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [b.left, b.top + window.scrollY, b.width, b.height]"
    )
    places = []
    for tab in TABS:
        at.tab(tab)
        button = at.find(f"#hebm-{tab.lower()}")
        at.until(button.is_displayed)
        places.append(at.js(code, f"#hebm-{tab.lower()}"))
    assert all(place == places[0] for place in places), places


def test_on_a_telephone_the_image_stays_in_view(address) -> None:
    code = (
        "const e = document.querySelector('.hebm-big img').getBoundingClientRect();"
        "const f = document.elementFromPoint((e.left + e.right) / 2, (e.top + e.bottom) / 2);"
        "return [e.top, e.bottom, f.closest('.hebm-big') !== null]"
    )
    with browser.visitor(address, (390, 844)) as visitor:
        draw(visitor, "0-8")
        for tab in TABS:
            visitor.tab(tab)
            visitor.js("window.scrollTo(0, document.body.scrollHeight)")
            top, bottom, seen = visitor.js(code)
            assert top >= 0 and 200 < bottom - top < 0.4 * 844 and seen


@WIDTHS
def test_the_page_fits_its_window_and_asks_nobody_else(address, width) -> None:
    with browser.visitor(address, (width, 844)) as visitor:
        draw(visitor, "0-8")
        visitor.lines("python")
        visitor.click("#hebm-own button")
        for tab in TABS:
            visitor.tab(tab)
            assert visitor.overflow <= 0
        code = "return performance.getEntriesByType('resource').map(e => e.name)"
        asked = [str(name) for name in visitor.js(code)]
        assert asked and all(name.startswith((address, "data:", "blob:")) for name in asked)
