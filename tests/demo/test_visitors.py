"""Visitors of a page that is served as it always is, over HTTP: while one floods it, the others
are served, keep their images, and are stopped by nobody else.
"""

import base64
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (extra: demo)")

import httpx
from PIL import Image
from tiny import symbolic_pipeline

from hebm_sample.pipeline.pipeline import Pipeline

TOY = "tiny · 16×16"
API = "/gradio_api"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    symbolic_pipeline(steps=6).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder) -> Pipeline:
    return Pipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory) -> Iterator[tuple[str, dict[str, int], Path]]:
    """Its address, the number of each thing that a page asks for, and its scratch folder."""
    from hebm_sample.demo.page import build, launch
    from hebm_sample.demo.studio import Studio, offers

    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        page = build(Studio(offers([str(folder)], "cpu")))
        address = launch(page, "127.0.0.1", None)
        numbers = {getattr(fn.fn, "__name__", ""): i for i, fn in page.fns.items()}
        yield address.rstrip("/"), numbers, scratch
        page.close(verbose=False)


class Guest:
    """A session of the page, from an address as a proxy on this machine tells it."""

    def __init__(self, served, name: str, address: str) -> None:
        self.numbers, self.name = served[1], name
        self.client = httpx.Client(
            base_url=served[0] + API,
            headers={"X-Forwarded-For": address},
            timeout=60,
            verify=False,  # no certificates are read
        )

    def ask(self, route: str, what: str, *values: object, **event: object) -> httpx.Response:
        content = {"data": list(values), "fn_index": self.numbers[what], "trigger_id": None}
        content |= {"session_hash": self.name, "event_data": event or None}
        return self.client.post(route, json=content)

    def join(self, what: str, *values: object, **event: object) -> httpx.Response:
        """A job for the queue, after the click that arms Stop; or why there is no place."""
        armed = self.ask("/run/predict", "arm")
        if not armed.is_success:
            return armed
        ticket = armed.json()["data"][1]
        return self.ask("/queue/join", what, TOY, ticket, *values, **event)

    def draw(self, seeds: str, steps: int = 6) -> httpx.Response:
        return self.join("draw", seeds, 1, "", steps, "", "", 2, 2)

    def messages(self) -> Iterator[dict]:
        """What the queue tells this session, until all of its jobs are done."""
        with self.client.stream("GET", "/queue/data", params={"session_hash": self.name}) as sent:
            for line in sent.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    def results(self) -> list[list]:
        """What each of this session's jobs ended with."""
        done = [m for m in self.messages() if m["msg"] == "process_completed"]
        assert all(message["success"] for message in done), done
        return [message["output"]["data"] for message in done]

    def pick(self, index: int = 0) -> list:
        answer = self.ask("/run/predict", "pick", index=index)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


def shown(html: str) -> list[bytes]:
    """Pixels of the small images, or of the large one alone."""
    found = [base64.b64decode(text) for text in re.findall(r"image/png;base64,([^\"]+)", html)]
    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in found]
    return [image.tobytes() for image in (images[1:] or images)]


def own(pipe, seeds) -> list[bytes]:
    return [image.tobytes() for image in pipe(seeds=seeds).images]


def test_who_floods_the_queue_is_refused_and_the_other_is_served(served, pipe) -> None:
    flood, other = Guest(served, "flood", "10.0.0.1"), Guest(served, "other", "10.0.0.1")
    answers = [flood.draw("0-8", 200) for _ in range(12)]
    assert [a.status_code for a in answers] == [200] * 3 + [429] * 9
    assert "3 jobs of yours" in answers[-1].json()["detail"]
    assert other.draw("4,5").status_code == 200
    assert flood.ask("/run/predict", "stop").status_code == 200  # its own, and no other's
    messages = list(other.messages())
    ranks = [m["rank"] for m in messages if m["msg"] == "estimation"]
    assert all(rank <= 3 for rank in ranks)
    (last,) = [m for m in messages if m["msg"] == "process_completed"]
    status, html, *_ = last["output"]["data"]
    assert "done in" in status and shown(html) == own(pipe, [4, 5])
    assert all("stopped" in result[0] for result in flood.results())


@pytest.mark.slow
def test_a_crowd_from_one_address_leaves_places_and_images_to_others(served, pipe) -> None:
    other = Guest(served, "calm", "10.0.0.2")
    other.draw("6")
    assert "done in" in other.results()[0][0]
    crowd = [Guest(served, f"crowd{i}", "10.0.0.3") for i in range(40)]
    answers = [guest.draw("0-8", 200) for guest in crowd]
    assert {a.status_code for a in answers} == {200, 429}
    assert sum(a.status_code == 200 for a in answers) <= 10
    assert all("\n" not in a.json().get("detail", "") for a in answers)
    assert shown(other.pick()[1]) == own(pipe, [6])
    assert other.draw("7").status_code == 200
    for guest in crowd[:10]:
        guest.ask("/run/predict", "stop")
    status, html, *_ = other.results()[0]
    assert "done in" in status and shown(html) == own(pipe, [7])


def test_an_upload_is_its_senders_and_never_on_the_disk(served) -> None:
    sender, other = Guest(served, "sender", "10.0.0.4"), Guest(served, "thief", "10.0.0.4")
    file = io.BytesIO()
    Image.linear_gradient("L").resize((50, 40)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    assert sender.ask("/queue/join", "give", TOY, False, name="me.png", data=data).is_success
    assert "of your image" in sender.results()[0][0]
    mine = shown(sender.pick()[1])
    for event in ({"name": "me.png"}, {"name": "../me.png", "data": "/etc/passwd"}):
        assert other.ask("/queue/join", "give", TOY, False, **event).is_success
        status, html, *_ = other.results()[0]
        assert "is not a PNG" in status and html == ""
    assert other.pick()[1] == ""
    assert shown(sender.pick()[1]) == mine
    answer = other.client.post("/upload", files={"files": file.getvalue()})
    assert answer.status_code == 403 and "files are not kept" in answer.json()["detail"]
    assert [path for path in served[2].rglob("*") if path.is_file()] == []


def test_a_chain_that_was_stopped_while_it_waited_does_not_run(served, pipe) -> None:
    """Another click after Stop is another chain."""
    first, other = Guest(served, "first", "10.0.0.9"), Guest(served, "waits", "10.0.0.10")
    assert first.draw("0-8", 200).is_success and other.draw("0-8", 200).is_success
    assert other.ask("/run/predict", "stop").is_success
    assert other.draw("8").is_success
    assert first.ask("/run/predict", "stop").is_success
    (stopped, *_), (status, html, *_) = other.results()
    assert "stopped" in stopped and "done in" in status
    assert shown(html) == own(pipe, [8])
    first.results()


def test_an_image_that_comes_while_a_chain_runs_stays(served) -> None:
    guest, file = Guest(served, "hasty", "10.0.0.11"), io.BytesIO()
    Image.linear_gradient("L").resize((50, 40)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    assert guest.draw("0-8", 200).is_success
    assert guest.ask("/queue/join", "give", TOY, False, name="me.png", data=data).is_success
    answers = guest.results()
    assert len(answers) == 2 and any("of your image" in str(found[0]) for found in answers)
    assert len(shown(guest.pick()[1])) == 1  # of nine that the chain would have shown


def test_an_own_image_stays_when_a_model_is_chosen(served) -> None:
    """Read anew for that model; who looks at something else sees the model's average."""
    guest, file = Guest(served, "chooses", "10.0.0.12"), io.BytesIO()
    Image.linear_gradient("L").resize((50, 40)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()

    def opened() -> list:
        assert guest.ask("/queue/join", "open", TOY, False).is_success
        return guest.results()[0]

    assert ">ready<" in opened()[0]
    assert guest.ask("/queue/join", "give", TOY, False, name="me.png", data=data).is_success
    given = guest.results()[0]
    status, html, *_ = opened()
    assert "of your image" in status and shown(html) == shown(given[1])
    assert guest.join("reconstruct").is_success
    assert "done in" in guest.results()[0][0]
    assert shown(opened()[1]) == shown(given[1])  # what was made of it was another model's
    assert guest.draw("3").is_success
    guest.results()
    status, html, *_ = opened()
    assert ">ready<" in status and shown(html) != shown(given[1])


def test_images_that_come_too_often_are_refused_before_they_are_read(served) -> None:
    guest, other = Guest(served, "often", "10.0.0.5"), Guest(served, "once", "10.0.0.5")
    data = base64.b64encode(bytes(300_000)).decode()
    statuses = []
    for _ in range(14):
        answer = guest.ask("/queue/join", "give", TOY, False, name="a.png", data=data)
        statuses.append(answer.status_code)
        if answer.is_success:
            guest.results()
    assert statuses == [200] * 12 + [429] * 2
    assert "within a minute" in answer.json()["detail"]
    assert other.ask("/queue/join", "give", TOY, False, name="a.png", data=data).is_success


def test_no_chain_runs_beside_the_queue(served) -> None:
    guest = Guest(served, "beside", "10.0.0.6")
    assert (
        guest.ask("/run/predict", "draw", TOY, "", "0", 1, "", 6, "", "", 2, 2).status_code == 404
    )


def test_leaving_ends_the_chain_of_who_left(served, pipe) -> None:
    gone, other = Guest(served, "gone", "10.0.0.7"), Guest(served, "stays", "10.0.0.8")
    with gone.client.stream("GET", f"/heartbeat/{gone.name}") as beat:
        lines = beat.iter_lines()  # closed with its last reference
        assert "ALIVE" in next(lines)
        assert gone.draw("0-8", 200).is_success and other.draw("3").is_success
    status, html, *_ = other.results()[0]
    assert "done in" in status and shown(html) == own(pipe, [3])
    assert "stopped" in gone.results()[0][0]
