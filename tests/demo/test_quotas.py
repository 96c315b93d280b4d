"""What one visitor takes is not taken from another: their chain, their images, their place.

Without it a foreignr could stop other people's chains, push out their images, fill the queue, or
the disk.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest

from hebm_sample.demo.quotas import Door, Limits
from hebm_sample.demo.visitors import IDLE, MOST_TICKETS, SECONDS, Full, Visitors

LIMITS = Limits(
    small=100, request=1000, address=1500, total=4000, minute=2500, images=3, image_bytes=2000
)
JOIN, RUN = "/gradio_api/queue/join", "/gradio_api/run/predict"


class Clock:
    """Seconds that pass when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Waiting:
    """A job in the queue."""

    session_hash: str


class House:
    """A door with an app behind it that notes what came through, and keeps requests for as long
    as it is told to.
    """

    def __init__(self, limits: Limits = LIMITS, most: int = 32) -> None:
        self.clock, self.came, self.queue = Clock(), [], []
        self.visitors, self.open = Visitors(most, self.clock), asyncio.Event()
        self.open.set()
        self.door = Door(self.app, self.visitors, self.jobs, limits, self.clock)

    async def settled(self, *tasks: asyncio.Task) -> None:
        """When each of the requests was refused, or waits in the app."""
        while sum(task.done() for task in tasks) + len(self.came) < len(tasks):
            await asyncio.sleep(0.01)

    def jobs(self) -> Iterable[Waiting]:
        return self.queue

    async def app(self, scope, receive, send) -> None:
        body = (await receive()).get("body", b"")
        self.came.append((scope["path"], body))
        await self.open.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask(
        self, body: bytes = b"", path: str = JOIN, address: str = "a", **how
    ) -> tuple[int, str]:
        """Status and line of a request in chunks of 10 bytes."""
        pieces = [body[i : i + 10] for i in range(0, len(body), 10)] or [b""]
        self.taken = 0
        headers = how.get("headers", [])

        async def receive():
            self.taken += 1
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        sent = []

        async def send(message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": how.get("method", "POST"), "path": path}
        await self.door({**scope, "headers": headers, "client": (address, 1)}, receive, send)
        line = json.loads(sent[1]["body"]).get("detail", "")
        assert "\n" not in line
        return sent[0]["status"], line


def body(session: str, size: int = 0) -> bytes:
    return json.dumps({"session_hash": session, "data": "x" * size}).encode()


def run(coroutine):
    return asyncio.run(coroutine)


# Bytes


def test_what_says_that_it_is_too_large_is_refused_unread() -> None:
    house = House()
    headers = [(b"content-length", b"1001")]
    assert run(house.ask(body("s", 2000), headers=headers))[0] == 413
    assert house.taken == 0 and house.came == []


def test_what_does_not_say_so_is_counted_as_it_comes() -> None:
    house = House()
    status, line = run(house.ask(body("s", 100_000)))
    assert status == 413 and "give a smaller image" in line
    assert house.taken == 101 and house.came == []


def test_a_body_reaches_the_app_whole() -> None:
    house = House()
    assert run(house.ask(body("s", 300)))[0] == 200
    assert house.came == [(JOIN, body("s", 300))]


@pytest.mark.parametrize("length", [b"-1", b"x", b"1e9", b"9" * 5000])
def test_a_length_that_is_none_is_refused(length) -> None:
    assert run(House().ask(body("s"), headers=[(b"content-length", length)]))[0] == 413


def test_one_address_cannot_hold_what_all_share() -> None:
    async def crowd() -> tuple[list[int], int, int]:
        house = House()
        house.open.clear()
        held = [asyncio.create_task(house.ask(body(f"s{i}", 600))) for i in range(6)]
        await house.settled(*held)
        other = asyncio.create_task(house.ask(body("other", 600), address="b"))
        await house.settled(*held, other)
        house.open.set()
        statuses = [(await task)[0] for task in held]
        house.clock.now += 61
        return statuses, (await other)[0], (await house.ask(body("s9", 600)))[0]

    statuses, other, later = run(crowd())
    assert sorted(statuses) == [200, 200, 429, 429, 429, 429]
    assert other == 200 and later == 200


def test_all_together_are_bounded() -> None:
    async def crowd() -> list[int]:
        house = House()
        house.open.clear()
        tasks = [
            asyncio.create_task(house.ask(body(f"s{i}", 900), address=str(i))) for i in range(6)
        ]
        await house.settled(*tasks)
        house.open.set()
        return [(await task)[0] for task in tasks]

    assert sorted(run(crowd())) == [200] * 4 + [429] * 2


@pytest.mark.parametrize(("addresses", "most"), [(1, 1500 + 200), (90, 4000 + 200)])
def test_many_small_requests_are_bounded_together(addresses, most) -> None:
    """Each may stay open for minutes, and none of them is an image."""

    async def crowd() -> tuple[int, set[int], int]:
        limits = replace(LIMITS, spare=200, minute=10**6)
        house = House(limits, most=100)
        house.open.clear()
        whole = body("s0000", 60)
        tasks = [
            asyncio.create_task(
                house.ask(body(f"s{i:04}", 60), path=RUN, address=str(i % addresses))
            )
            for i in range(90)
        ]
        await house.settled(*tasks)
        held = sum(house.door._traffic.held.values())
        house.open.set()
        statuses = [(await task)[0] for task in tasks]
        assert len(whole) <= limits.small
        return held, set(statuses), statuses.count(200) * len(whole)

    held, statuses, passed = run(crowd())
    assert held <= most and statuses == {200, 429} and 0.8 * most < passed <= most


def test_clicks_go_through_where_images_take_the_rest() -> None:
    async def crowd() -> int:
        house = House()
        house.open.clear()
        tasks = [
            asyncio.create_task(house.ask(body(f"s{i}", 900), address=str(i))) for i in range(4)
        ]
        await house.settled(*tasks)
        click = asyncio.create_task(house.ask(body("c"), path=RUN, address="b"))
        await house.settled(*tasks, click)
        house.open.set()
        await asyncio.gather(*tasks)
        return (await click)[0]

    assert run(crowd()) == 200


def test_bytes_of_an_address_in_a_minute() -> None:
    house = House()

    async def send(count: int) -> list[int]:
        return [(await house.ask(body(f"s{i}", 700)))[0] for i in range(count)]

    assert run(send(5)) == [200, 200, 200, 429, 429]
    house.clock.now += 61
    assert run(send(1)) == [200]


def test_images_of_a_visitor_in_a_minute() -> None:
    house = House()

    async def send(session: str, count: int) -> list[int]:
        return [(await house.ask(body(session, 150)))[0] for _ in range(count)]

    assert run(send("s", 5)) == [200, 200, 200, 429, 429]
    assert run(send("t", 1)) == [200]  # another visitor of the same address
    assert run(house.ask(body("s")))[0] == 200  # what is no image
    house.clock.now += 61
    assert run(send("s", 1)) == [200]


def test_what_comes_too_slowly_ends() -> None:
    async def wait() -> int:
        house = House(Limits(seconds=0.02))
        sent = []

        async def never():
            await asyncio.sleep(60)

        async def send(message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": JOIN, "headers": []}
        await house.door({**scope, "client": ("a", 1)}, never, send)
        return sent[0]["status"]

    assert run(wait()) == 408


# Routes


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/gradio_api/upload", 403),
        ("POST", "/gradio_api/upload/", 403),
        ("POST", "/gradio_api/component_server", 403),
        ("POST", "/gradio_api/process_recording", 403),
        ("POST", "/gradio_api/call/draw", 404),
        ("POST", "/gradio_api/api/predict", 404),
        ("POST", "/gradio_api/run-history/connect", 404),
        ("POST", "/login", 404),
        ("PUT", "/gradio_api/vibe-edit", 404),
        ("GET", "/gradio_api/deep_link", 404),
        ("GET", "/gradio_api/upload_progress", 404),
        ("GET", "/gradio_api/file=/etc/passwd", 404),
        ("GET", "/gradio_api/run-history/buckets", 404),
        ("GET", "/gradio_api/queue/data", 200),
        ("GET", "/gradio_api/heartbeat/s", 200),
        ("GET", "/", 200),
        ("GET", "/config", 200),
        ("GET", "/assets/index.js", 200),
        ("GET", "/monitoring", 404),
        ("GET", "/monitoring/summary", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/docs", 404),
        ("HEAD", "/profiling/summary", 404),
        ("POST", "/gradio_api/run/predict", 200),
    ],
)
def test_only_what_the_page_asks_for_is_open(method, path, status) -> None:
    assert run(House().ask(body("s"), path, method=method))[0] == status


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"session_hash": 3}', b'{"session_hash": ""}']
)
def test_who_names_no_session_is_refused(data) -> None:
    assert run(House().ask(data))[0] == 403
    assert run(House().ask(json.dumps({"session_hash": "s" * 101}).encode()))[0] == 403


# Jobs


def test_a_visitor_has_few_jobs_and_an_address_not_all() -> None:
    house = House()
    house.queue = [Waiting("s")] * 3
    assert run(house.ask(body("s")))[0] == 429
    assert run(house.ask(body("t")))[0] == 200
    for i in range(3):
        assert run(house.ask(body(f"t{i}")))[0] == 200
        house.queue += [Waiting(f"t{i}")] * 3
    status, line = run(house.ask(body("u")))
    assert status == 429 and "from your address" in line
    assert run(house.ask(body("v"), address="b"))[0] == 200
    house.queue = []
    assert run(house.ask(body("s")))[0] == 200


def test_jobs_that_join_at_the_same_time_are_counted() -> None:
    async def crowd() -> list[int]:
        house = House()
        house.open.clear()
        tasks = [asyncio.create_task(house.ask(body("s"))) for _ in range(6)]
        await house.settled(*tasks)
        house.open.set()
        return [(await task)[0] for task in tasks]

    assert run(crowd()) == [200] * 3 + [429] * 3


# Visitors


def test_a_crowd_from_one_address_pushes_out_its_own() -> None:
    clock = Clock()
    visitors = Visitors(4, clock)
    gone: list[str] = []
    visitors.forgotten = gone.append
    mine = visitors.of("me", "home")
    for i in range(10):
        clock.now += 1
        with pytest.raises(Full) if i > 2 else contextlib.nullcontext():
            visitors.of(f"s{i}", "crowd")
    assert "me" in visitors and visitors.of("me", "home") is mine
    assert len(visitors) == 4 and "me" not in gone


def test_a_newcomer_takes_the_place_of_one_of_many() -> None:
    visitors = Visitors(4, Clock())
    for i in range(4):
        visitors.of(f"s{i}", "crowd")
    with visitors.busy(visitors.of("s0", "crowd")):
        visitors.of("me", "home")
    assert "me" in visitors and "s0" in visitors and "s1" not in visitors


def test_who_left_or_rested_makes_room() -> None:
    clock = Clock()
    visitors = Visitors(2, clock)
    visitors.of("a", "1")
    visitors.of("b", "2")
    with pytest.raises(Full, match="come back"):
        visitors.of("c", "3")
    visitors.leave("b")
    visitors.of("c", "3")
    assert "b" not in visitors
    clock.now += IDLE + 1
    visitors.of("c", "3")
    visitors.of("d", "4")
    assert "a" not in visitors and "c" in visitors
    clock.now += SECONDS + 1
    visitors.of("e", "5")
    assert len(visitors) == 1


def test_stop_is_of_a_visitor_alone() -> None:
    visitors = Visitors()
    mine, other = visitors.of("a"), visitors.of("b")
    with visitors.busy(mine) as first, visitors.busy(other) as foreign:
        waits = mine.renew()
        mine.halt()
        assert first.is_set() and not foreign.is_set()
        later = mine.renew()  # which that Stop did not mean
        with visitors.busy(mine, waits) as stopped, visitors.busy(mine, later) as runs:
            assert stopped.is_set() and not runs.is_set()
        visitors.leave("nobody")
        visitors.leave("a")
        assert not foreign.is_set()
    for _ in range(2 * MOST_TICKETS):
        mine.renew()
    assert len(mine.stops) == MOST_TICKETS


def test_nobody_needs_to_come_for_others_to_be_forgotten() -> None:
    """Of a photograph nothing is kept for longer than the page says."""
    clock = Clock()
    visitors = Visitors(4, clock)
    for name in "ab":
        visitors.of(name)
    visitors.leave("a")
    clock.now += IDLE + 1
    visitors.forget_expired()
    assert "a" not in visitors and "b" in visitors
    clock.now += SECONDS
    with visitors.busy(visitors._there["b"]):
        visitors.forget_expired()
        assert "b" in visitors
    visitors.forget_expired()
    assert "b" in visitors  # their chain has just ended
    clock.now += SECONDS + 1
    visitors.forget_expired()
    assert len(visitors) == 0
