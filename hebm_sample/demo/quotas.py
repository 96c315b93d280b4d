"""The door that every request to the page passes: what one visitor can take of what all share.

    bytes     of a request, of one address at a time and in a minute, and of all at a time, counted
              while they come in
    images    that a visitor uploads in a minute
    jobs      of a visitor, and of an address, that run or wait

Nothing of a visitor is ever written to a disk: uploads travel in the requests of their session,
and the routes by which files could be left on the machine are closed. What is refused is one line,
with the status 403, 404, 408, 413 or 429; the page shows it. The door is an ASGI middleware.
"""

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from hebm_sample.demo.visitors import Full, Visitor, Visitors

__all__ = ["Door", "Job", "Limits", "Refused"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MIB = 2**20
_API, _JOIN = "/gradio_api/", "queue/join"
_READING = ("GET", "HEAD", "OPTIONS")
# All that the page asks for. Gradio has more: routes that write files, or ask other machines.
_POST = (_JOIN, "run", "cancel", "reset")
_GET = ("queue/data", "heartbeat", "info", "app_id", "startup-events", "theme.css")
_PAGE = ("", "assets", "config", "favicon.ico", "robots.txt", "static", "svelte", "theme.css")
_FILES = ("upload", "component_server", "process_recording")
_NAMELESS = ("cancel", "reset")
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Limits:
    """How much is enough.

    Arguments:
        small: Requests of no more bytes are no images.
        spare: Bytes of an address and of all that are left to small requests where images take
            the rest, so that clicks go through.
        request: Bytes of one request.
        address: Bytes of an address that are being read or worked on.
        total: Bytes of all.
        minute: Bytes of an address in a minute.
        images: Uploads of a visitor in a minute.
        image_bytes: Their bytes together.
        jobs: Of a visitor, running and waiting.
        address_jobs: Of an address.
        seconds: How long a request can take to come in.
    """

    small: int = MIB // 4
    spare: int = 16 * MIB
    request: int = 14 * MIB  # an image of 10 MB in base64
    address: int = 48 * MIB
    total: int = 160 * MIB
    minute: int = 160 * MIB
    images: int = 12
    image_bytes: int = 60 * MIB
    jobs: int = 3
    address_jobs: int = 10
    seconds: float = 120.0


class Job(Protocol):
    """What runs or waits in gradio's queue."""

    session_hash: str


class Refused(Exception):
    """A request that goes no further; its line, and the status that says so."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class Door:
    """Lets requests in, or refuses them.

    Arguments:
        app: What is behind it.
        visitors: Who is there.
        jobs: All that run or wait.
        limits: How much is enough.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        app: App,
        visitors: Visitors,
        jobs: Callable[[], Iterable[Job]],
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._visitors, self._jobs, self._clock = app, visitors, jobs, clock
        self._limits = limits or Limits()
        self._traffic = _Traffic(self._limits, clock)
        self._joining: Counter[str] = Counter()  # sessions whose job is on its way to the queue

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("", 0))[0]
        held = _Held(self._traffic, address)
        try:
            route = _allowed(scope["method"], scope["path"])
            if scope["method"] in _READING:
                await self._app(scope, receive, send)
                return
            _check_declared(scope, self._limits)
            body = await self._read(receive, held)
            session = self._known(route, body, address)
            await self._pass(scope, _replay(body, receive), send, route, session)
        except Refused as refused:
            await _answer(send, refused)
        finally:
            held.release()

    async def _read(self, receive: Receive, held: "_Held") -> bytes:
        """The body, counted as it comes in."""
        end, body = self._clock() + self._limits.seconds, bytearray()
        while True:
            left = end - self._clock()
            try:
                message = await asyncio.wait_for(receive(), max(0.01, left))
            except asyncio.TimeoutError:
                raise Refused(408, "the request took too long to come in; send it again") from None
            if message["type"] == "http.disconnect":
                raise Refused(408, "the request ended before it was whole")
            chunk = message.get("body", b"")
            held.add(len(chunk))
            body += chunk
            if not message.get("more_body", False):
                return bytes(body)

    def _known(self, route: str, body: bytes, address: str) -> str:
        """Whose request it is: a visitor's, who may send this."""
        session = _session(body)
        if session is None:
            if route in _NAMELESS:
                return ""
            raise Refused(403, "the request names no session; open the page anew")
        try:
            visitor = self._visitors.of(session, address)
        except Full as full:
            raise Refused(429, str(full)) from None
        if len(body) > self._limits.small:
            self._check_uploads(visitor, len(body))
        if route == _JOIN:
            self._check_jobs(session, visitor.address)
        return session

    async def _pass(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        route: str,
        session: str,
    ) -> None:
        """To the app. No other request is looked at between `_known` and the count."""
        joins = Counter({session: int(route == _JOIN)})
        self._joining += joins
        try:
            await self._app(scope, receive, send)
        finally:
            self._joining -= joins

    def _check_uploads(self, visitor: Visitor, size: int) -> None:
        now, limits, sent = self._clock(), self._limits, visitor.uploads
        _forget_before(sent, now - 60)
        total = size + sum(count for _, count in sent)
        if len(sent) >= limits.images or total > limits.image_bytes:
            raise Refused(
                429,
                f"{len(sent)} images came from you within a minute; wait a little before the next",
            )
        sent.append((now, size))

    def _check_jobs(self, session: str, address: str) -> None:
        limits, counts = self._limits, Counter(job.session_hash for job in self._jobs())
        counts += self._joining
        if counts[session] >= limits.jobs:
            raise Refused(
                429, f"{counts[session]} jobs of yours run or wait; wait for them, or press Stop"
            )
        of_address = sum(counts[name] for name in self._visitors.from_address(address))
        if of_address >= limits.address_jobs:
            raise Refused(
                429, f"{of_address} jobs from your address run or wait; wait for some of them"
            )


class _Traffic:
    """Bytes of requests by address: those in memory, and those of the last minute."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits, self._clock = limits, clock
        self.held: Counter[str] = Counter()
        self._sent: dict[str, deque[tuple[float, int]]] = {}

    def in_minute(self, address: str, more: int) -> int:
        """Bytes of an address in the last minute, with so many more."""
        now = self._clock()
        mine = self._sent.setdefault(address, deque())
        if mine and now - mine[-1][0] < 1:  # tiny pieces take no memory of their own
            then, before = mine.pop()
            mine.append((then, before + more))
        else:
            mine.append((now, more))
        for name, times in list(self._sent.items()):
            _forget_before(times, now - 60)
            if not times:
                del self._sent[name]
        return sum(count for _, count in mine)


class _Held:
    """Bytes of one request that are in memory."""

    def __init__(self, traffic: _Traffic, address: str) -> None:
        self._traffic, self._address, self._size = traffic, address, 0

    def add(self, count: int) -> None:
        """So many more.

        Raises:
            Refused: They are too many.
        """
        traffic, limits, address = self._traffic, self._traffic.limits, self._address
        self._size += count
        traffic.held[address] += count
        if self._size > limits.request:
            raise _too_large(limits)
        is_small = self._size <= limits.small
        more = limits.spare if is_small else 0
        in_minute = 0 if is_small else traffic.in_minute(address, count)
        if traffic.held[address] > limits.address + more or in_minute > limits.minute:
            raise Refused(429, "too much is coming from your address at once; wait a minute")
        if sum(traffic.held.values()) > limits.total + more:
            raise Refused(429, "too much is coming in at once; try again in a minute")

    def release(self) -> None:
        """They are gone."""
        self._traffic.held -= Counter({self._address: self._size})


def _forget_before(times: deque[tuple[float, int]], moment: float) -> None:
    while times and times[0][0] <= moment:
        times.popleft()


def _allowed(method: str, path: str) -> str:
    """The route within the page.

    Raises:
        Refused: The page has no such route, or not for visitors.
    """
    before, api, route = path.rpartition(_API)
    route = route.rstrip("/")
    reads = method in _READING
    if reads and not api and route.strip("/").partition("/")[0] in _PAGE:
        return before
    if route in _FILES and not reads:
        raise Refused(403, "files are not kept on this machine; give an image in the page")
    allowed = _GET if reads else _POST
    if not api or not any(route == name or route.startswith(f"{name}/") for name in allowed):
        raise Refused(404, "there is no such thing here")
    return route


def _check_declared(scope: MutableMapping[str, Any], limits: Limits) -> None:
    """Refuse what says itself that it is too large, before a byte of it is read."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared[:20]) > limits.request:
        raise _too_large(limits)


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"a request has at most {limits.request // MIB} MB; give a smaller image")


def _session(body: bytes) -> str | None:
    """Whose request it is."""
    try:
        found = json.loads(body).get("session_hash")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) and 0 < len(found) <= _LONGEST_NAME else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, and then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


async def _answer(send: Send, refused: Refused) -> None:
    """The line as the page's scripts read it."""
    body = json.dumps({"detail": str(refused), "error": str(refused)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
