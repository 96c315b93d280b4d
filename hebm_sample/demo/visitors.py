"""Who is there, and what each of them has: an event that stops their chain, the images that they
see, the uploads that they sent. Nothing of one visitor can be reached, stopped or pushed out by
another.

A visitor is a session of the page: a random word that the page makes when it is opened and tells
to nobody else. Where it comes from counts only where places are short, because behind a proxy
many visitors have one address.
"""

import itertools
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hebm_sample.demo.handlers import Shown

__all__ = ["Full", "Visitor", "Visitors"]

MOST_VISITORS = 32
SECONDS = 3600.0  # after which a visitor who did nothing has left
MOST_TICKETS = 64  # of a visitor; three jobs of theirs wait at most
IDLE = 600.0  # after which one who did nothing makes room for another


class Full(Exception):
    """There is no room for another visitor."""


@dataclass
class Visitor:
    """One session.

    Arguments:
        address: Where it came from first.
        seen: When it last did something, in seconds of the clock.
        shown: The images in its page.
        own: Name and content of the image that they gave last.
        stops: Of the chains that wait, or come next, by their tickets.
        running: Of those that run now.
        opened: How many models and images of their own they have opened.
        uploads: When each upload of the last minute came, and its bytes.
        left: Whether its page was closed.
    """

    address: str
    seen: float
    shown: "Shown | None" = None
    own: tuple[str, bytes] | None = None
    stops: OrderedDict[str, threading.Event] = field(default_factory=OrderedDict)
    running: list[threading.Event] = field(default_factory=list)
    uploads: deque[tuple[float, int]] = field(default_factory=deque)
    left: bool = False
    opened: int = 0
    tickets: Iterator[int] = field(default_factory=itertools.count)

    def renew(self) -> str:
        """Another chain comes, which no earlier Stop means; its ticket."""
        ticket = str(next(self.tickets))
        self.stops[ticket] = threading.Event()
        while len(self.stops) > MOST_TICKETS:  # of clicks that came to nothing
            self.stops.popitem(last=False)
        return ticket

    def halt(self) -> None:
        """End all chains of theirs, at their next gradients, and those that wait."""
        for event in [*self.stops.values(), *self.running]:
            event.set()


class Visitors:
    """Those who are there, by session. Safe in threads.

    Arguments:
        most: How many at a time.
        clock: Seconds that only grow.

    Attributes:
        forgotten: Called with each session that has gone.
    """

    def __init__(
        self, most: int = MOST_VISITORS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._clock, self._lock = most, clock, threading.RLock()
        self._there: OrderedDict[str, Visitor] = OrderedDict()
        self.forgotten: Callable[[str], Any] = lambda session: None

    def __len__(self) -> int:
        return len(self._there)

    def __contains__(self, session: object) -> bool:
        return session in self._there

    def of(self, session: str, address: str = "") -> Visitor:
        """The visitor of a session, who comes in if there is room.

        Raises:
            Full: There is none.
        """
        with self._lock:
            now = self._clock()
            self._forget_expired(now)
            visitor = self._there.get(session)
            if visitor is None:
                self._make_room(address, now)
                visitor = self._there[session] = Visitor(address, now)
            visitor.seen, visitor.left = now, False
            self._there.move_to_end(session)
            return visitor

    def from_address(self, address: str) -> list[str]:
        """Sessions that came from an address."""
        with self._lock:
            return [name for name, each in self._there.items() if each.address == address]

    def leave(self, session: str) -> None:
        """The page was closed: its chain ends, and it is the first to make room."""
        with self._lock:
            visitor = self._there.get(session)
            if visitor is not None:
                visitor.halt()
                visitor.left = True

    @contextmanager
    def busy(self, visitor: Visitor, ticket: str = "") -> Iterator[threading.Event]:
        """While a visitor's chain runs they keep their place; the event that ends it.

        Arguments:
            ticket: Of `Visitor.renew`: a Stop that came while it waited means this chain.
        """
        with self._lock:
            stop = visitor.stops.pop(ticket, None) or threading.Event()
            visitor.running.append(stop)
        try:
            yield stop
        finally:
            with self._lock:
                visitor.running.remove(stop)
                visitor.seen = self._clock()

    def forget_expired(self) -> None:
        """Those who did nothing for an hour go, or ten minutes after they have left; also where
        nobody comes.
        """
        with self._lock:
            self._forget_expired(self._clock())

    def _forget_expired(self, now: float) -> None:
        for session, visitor in list(self._there.items()):
            # A telephone that sleeps has left, too, and may come back.
            most = IDLE if visitor.left else SECONDS
            if not visitor.running and now - visitor.seen > most:
                self._forget(session)

    def _forget(self, session: str) -> None:
        self._there.pop(session)
        self.forgotten(session)

    def _make_room(self, address: str, now: float) -> None:
        """Whoever has left goes first; then one from an address that has many more visitors than
        the newcomer's; then one who did nothing for long. Nobody goes whose chain runs.
        """
        if len(self._there) < self._most:
            return
        resting = [(name, each) for name, each in self._there.items() if not each.running]
        gone = [name for name, each in resting if each.left]
        counts = Counter(each.address for each in self._there.values())
        most = max(counts.values(), default=0)
        if not gone and most > counts[address] + 1:
            gone = [name for name, each in resting if counts[each.address] == most]
        if not gone:
            gone = [name for name, each in resting if now - each.seen > IDLE]
        if not gone:
            raise Full(f"{self._most} visitors are here already; come back in a few minutes")
        self._forget(gone[0])
