"""Who sleeps in which order, and who wakes whom."""

from __future__ import annotations

import pytest

from otel_pgpool.pool.checkout import Checkout, ManualCheckout, begin
from otel_pgpool.pool.waiters import OneShotEvent, Queue, Waiter
from tests.support.fakes import FakeConnection, awake, lent_out, served


def asked_at(started: float) -> Checkout:
    return begin(started, (asked_at.__code__, 0))


def test_the_queue_is_in_the_order_of_the_requests() -> None:
    """Not of the arrivals: one that comes back later stands where it first asked."""
    queue = Queue()
    joined = {started: queue.join(asked_at(started)) for started in (2.0, 5.0, 1.0, 3.0)}
    assert list(queue.values()) == [joined[started] for started in (1.0, 2.0, 3.0, 5.0)]


def test_requests_of_one_moment_keep_the_order_of_their_arrival() -> None:
    """Equal times do not overtake each other."""
    queue = Queue()
    waiters = [queue.join(asked_at(1.0)) for _ in range(4)]
    assert list(queue.values()) == waiters


def test_a_sleeper_sleeps_until_it_is_woken() -> None:
    """With an error or without."""
    quiet, failed = OneShotEvent(), OneShotEvent()
    assert not awake(quiet)
    quiet.set()
    assert awake(quiet)
    assert quiet.error is None
    error = OSError()
    failed.set(error)
    assert failed.error is error


def test_leaving_gives_up_the_place() -> None:
    """Only that waiter's."""
    queue = Queue()
    first, second = queue.join(asked_at(1.0)), queue.join(asked_at(2.0))
    queue.leave(first.checkout)
    assert list(queue.values()) == [second]


@pytest.mark.parametrize("end", ["served", "failed"])
def test_leaving_after_the_end_of_the_wait_changes_nothing(end: str) -> None:
    """Whoever was served or failed is out of the queue already."""
    queue = Queue()
    waiter, other = queue.join(asked_at(1.0)), queue.join(asked_at(2.0))
    if end == "served":
        waiter.conn = FakeConnection()  # type: ignore[assignment]
        waiter.lock.release()
        assert queue.first() is other
    else:
        queue.fail(waiter, OSError())
    queue.leave(waiter.checkout)
    assert list(queue.values()) == [other]


def test_failing_takes_one_out_and_wakes_it() -> None:
    """The others sleep on."""
    queue = Queue()
    first, second = queue.join(asked_at(1.0)), queue.join(asked_at(2.0))
    error = OSError()
    queue.fail(second, error)
    assert list(queue.values()) == [first]
    assert second.error is error
    assert awake(second)
    assert not awake(first)


def test_a_crowd_leaves_in_linear_time() -> None:
    """Leaving takes the same steps for each, however many wait: no checkout is compared with another."""
    compared = 0

    class Counted(ManualCheckout):
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return self is other

    queue = Queue()
    checkouts = []
    for number in range(2000):
        checkout = Counted()
        checkout.started = float(number)
        queue.join(checkout)
        checkouts.append(checkout)
    for checkout in reversed(checkouts):
        queue.leave(checkout)
    assert not queue
    assert compared < 2000


@pytest.mark.parametrize("ends_suspended", [True, False])
def test_a_waiter_that_joins_while_a_signal_handler_suspends(
    monkeypatch: pytest.MonkeyPatch,
    ends_suspended: bool,
) -> None:
    """It is in the queue afterwards, and gets the next connection of a pool that is resumed."""
    desk, holder, conn = lent_out()
    joined = Queue.join

    def interrupted(queue: Queue, checkout: Checkout) -> Waiter:
        desk.core.suspend(desk.now)
        if not ends_suspended:
            desk.core.resume(desk.now)
        return joined(queue, checkout)

    monkeypatch.setattr(Queue, "join", interrupted)
    waiter = desk.join()
    if ends_suspended:
        desk.core.resume(desk.now)
    desk.give_back(holder, conn)
    assert served(waiter)
