"""Callers of a pool that can only say no, and take queue."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from psycopg2.pool import PoolError

from otel_pgpool.instrumentation import fair_queue
from otel_pgpool.instrumentation.adapters.psycopg2.failures import EXHAUSTED, is_exhausted
from otel_pgpool.instrumentation.fair_queue import FairQueue
from otel_pgpool.runtime.wakeup import Wakeup
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future


class Shelf:
    """A pool of plain objects, as unhelpful as the stock one."""

    def __init__(self, *things: object) -> None:
        self.things = list(things)
        self.askers: list[threading.Thread] = []

    @property
    def asked(self) -> int:
        return len(self.askers)

    def ask(self) -> object:
        self.askers.append(threading.current_thread())
        if not self.things:
            raise PoolError(EXHAUSTED)
        return self.things.pop()


class Line(deque[Any]):
    """A queue that knows how many have come, gone or not."""

    come = 0

    def append(self, turn: Any) -> None:
        super().append(turn)
        self.come += 1


def make_queue() -> FairQueue:
    return FairQueue(is_exhausted, lambda: PoolError(EXHAUSTED))


@pytest.fixture(autouse=True)
def called_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is first asks when it is called, and never unasked."""
    monkeypatch.setattr(fair_queue, "RETRY_INTERVAL", 10 * PATIENCE)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as threads:
        yield threads


def wait(threads: ThreadPoolExecutor, queue: FairQueue, ask: Any, seconds: float = PATIENCE) -> Future[object]:
    """Let a thread wait, and go on once it stands in the queue."""
    if not isinstance(queue._waiters, Line):
        queue._waiters = Line(queue._waiters)
    line, before = queue._waiters, queue._waiters.come
    future = threads.submit(queue.wait_for, ask, seconds)
    assert wait_until(lambda: line.come > before)
    return future


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PoolError(EXHAUSTED), True),
        (PoolError("connection pool is closed"), False),
        (psycopg2.Error(EXHAUSTED), False),
        (ValueError(EXHAUSTED), False),
    ],
)
def test_exhausted(error: BaseException, expected: bool) -> None:
    """A stock pool has only its words for it."""
    assert is_exhausted(error) is expected


def test_served_at_once() -> None:
    """Who comes first and finds something does not wait."""
    queue = make_queue()
    assert queue.wait_for(Shelf("thing").ask, 0) == "thing"
    assert not queue


def test_no_time() -> None:
    """Without time it asks once, and says what the pool says."""
    queue, shelf = make_queue(), Shelf()
    with pytest.raises(PoolError, match=EXHAUSTED):
        queue.wait_for(shelf.ask, -1)
    assert (shelf.asked, bool(queue)) == (1, False)


def test_in_the_order_of_coming(threads: ThreadPoolExecutor) -> None:
    """Each call serves the one who has waited longest, and nobody else asks."""
    queue, shelf = make_queue(), Shelf()
    futures = [wait(threads, queue, shelf.ask) for _ in range(5)]
    assert wait_until(lambda: shelf.asked)
    assert shelf.asked == 1  # the others do not: it is not their turn
    for number, future in enumerate(futures):
        shelf.things.append(number)
        queue.wake_next()
        assert future.result(PATIENCE) == number
    assert not queue


def test_one_call_for_several_returns(threads: ThreadPoolExecutor) -> None:
    """Who is served lets the next one ask, so that no return is lost on a call that came too early."""
    queue, shelf = make_queue(), Shelf()
    futures = [wait(threads, queue, shelf.ask) for _ in range(5)]
    shelf.things += range(5)
    queue.wake_next()
    assert sorted(future.result(PATIENCE) for future in futures) == list(range(5))  # type: ignore[type-var]


def test_wake_in_vain(threads: ThreadPoolExecutor) -> None:
    """Somebody outside the queue may have been faster: the first goes on waiting, as the first."""
    queue, shelf = make_queue(), Shelf()
    future = wait(threads, queue, shelf.ask)
    queue.wake_next()
    assert wait_until(lambda: shelf.asked == 2)
    assert not future.done()
    shelf.things.append("thing")
    queue.wake_next()
    assert future.result(PATIENCE) == "thing"


def test_only_the_first_asks_unasked(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first asks the pool at intervals; the others sleep until it is their turn or their time is over."""
    sleeps: list[float] = []

    class Recorded(Wakeup):
        def wait(self, seconds: float) -> bool:
            sleeps.append(seconds)
            return super().wait(seconds)

    monkeypatch.setattr(fair_queue, "Wakeup", Recorded)
    monkeypatch.setattr(fair_queue, "RETRY_INTERVAL", 0.01)
    queue, shelf = make_queue(), Shelf()
    futures = [wait(threads, queue, shelf.ask) for _ in range(3)]
    assert wait_until(lambda: shelf.asked > 10 and len([seconds for seconds in sleeps if seconds > 1]) == 2)
    assert set(shelf.askers) == {shelf.askers[0]}
    shelf.things += range(3)
    assert sorted(future.result(PATIENCE) for future in futures) == [0, 1, 2]  # type: ignore[type-var]


def test_timeout_of_the_first(threads: ThreadPoolExecutor) -> None:
    """Who gives up lets the next one ask."""
    queue, shelf = make_queue(), Shelf()
    first = wait(threads, queue, shelf.ask, 0.2)
    second = wait(threads, queue, shelf.ask)
    with pytest.raises(PoolError, match=EXHAUSTED):
        first.result(PATIENCE)
    assert wait_until(lambda: shelf.asked >= 2)
    shelf.things.append("thing")
    queue.wake_next()
    assert second.result(PATIENCE) == "thing"


def test_timeout_behind_the_first(threads: ThreadPoolExecutor) -> None:
    """One that was never first has not asked, and leaves no gap."""
    queue, shelf = make_queue(), Shelf()
    first = wait(threads, queue, shelf.ask)
    with pytest.raises(PoolError, match=EXHAUSTED):
        queue.wait_for(shelf.ask, 0.02)
    assert threading.current_thread() not in shelf.askers
    shelf.things.append("thing")
    queue.wake_next()
    assert first.result(PATIENCE) == "thing"


@pytest.mark.parametrize("error", [PoolError("connection pool is closed"), KeyboardInterrupt(), ValueError("other")])
def test_other_errors(threads: ThreadPoolExecutor, error: BaseException) -> None:
    """Whatever else the pool raises ends the wait of the one who asked, and the next one asks."""
    queue, answers = make_queue(), [PoolError(EXHAUSTED), error]

    def ask() -> object:
        raise answers.pop(0)

    first = wait(threads, queue, ask)
    second = wait(threads, queue, lambda: "thing")
    queue.wake_next()
    assert type(first.exception(PATIENCE)) is type(error)
    assert second.result(PATIENCE) == "thing"


def test_interrupt_before_the_queue() -> None:
    """It leaves no place that nobody stands in."""
    queue = make_queue()

    class Interrupted:
        def append(self, _turn: object) -> None:
            raise KeyboardInterrupt

        def remove(self, turn: object) -> None:
            raise ValueError(turn)

        def __len__(self) -> int:
            return 0

    waiters, queue._waiters = queue._waiters, Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        queue.wait_for(Shelf().ask, PATIENCE)
    queue._waiters = waiters
    assert queue.wait_for(Shelf("thing").ask, 0) == "thing"


def test_end(threads: ThreadPoolExecutor) -> None:
    """Each asks once more, in turn, and takes the answer: some are served, the others hear the pool's own words."""
    queue, shelf = make_queue(), Shelf()
    futures = [wait(threads, queue, shelf.ask) for _ in range(4)]
    shelf.things += ["a", "b"]
    queue.end()
    assert [future.result(PATIENCE) for future in futures[:2]] == ["b", "a"]
    for future in futures[2:]:
        with pytest.raises(PoolError, match=EXHAUSTED):
            future.result(PATIENCE)
    with pytest.raises(PoolError, match=EXHAUSTED):
        queue.wait_for(shelf.ask, PATIENCE)  # nobody would call


def test_wake_inside_the_queue() -> None:
    """The garbage collector may return a connection while the queue is being changed: the same thread may call then."""
    queue = make_queue()
    with queue._lock:
        done = threading.Event()
        queue.wake_next()
        done.set()
    assert done.is_set()
