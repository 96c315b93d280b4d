"""The page in a browser: what a visitor clicks is what the pipeline draws.

Nothing else would notice an input that is wired to another output, a control that does nothing, or
a page that does not fit a telephone.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (extra: demo)")
pytest.importorskip("selenium", reason="selenium is not installed (extra: dev)")

from demo import browser
from demo.browser import Visitor
from demo.running import run_python
from PIL import Image
from tiny import symbolic_pipeline

from hebm_sample.pipeline.pipeline import Pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing())),
]

TOY = "tiny · 16×16"
SEEDS = "#hebm-seeds :is(input, textarea)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    symbolic_pipeline(steps=12).save_pretrained(folder)
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
    assert page.give(photo).startswith("your image")
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


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window_and_asks_nobody_else(address, width) -> None:
    with browser.visitor(address, (width, 844)) as visitor:
        draw(visitor, "0-8")
        visitor.lines("python")
        for tab in ("Draw", "Vary", "Edit"):
            visitor.tab(tab)
            assert visitor.overflow <= 0
        code = "return performance.getEntriesByType('resource').map(e => e.name)"
        asked = [str(name) for name in visitor.js(code)]
        assert asked and all(name.startswith((address, "data:", "blob:")) for name in asked)
