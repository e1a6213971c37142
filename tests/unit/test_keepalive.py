"""Which idle connections are pinged, when, and where they are afterwards: on fakes, with a clock set by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from tests.support.fakes import Desk, agree, filled, served

if TYPE_CHECKING:
    from otel_pgpool.pool.checkout import Slot


def kept_alive(minconn: int, maxconn: int, ping_after: float = 60.0) -> Desk:
    """Return a desk with idle connections that are pinged after so many seconds; each is a second younger."""
    desk = Desk(minconn, maxconn)
    for _ in range(minconn):
        desk.connect()
        desk.now += 1.0
    for slot in desk.idle:
        slot.ping_after = ping_after
    return desk


def ping(desk: Desk) -> Slot:
    slot = desk.core.begin_ping(desk.now)
    assert slot is not None
    desk.now += 0.1
    assert desk.core.ping_passed(slot, desk.now) is None
    return slot


def test_without_keepalive_none_is_due() -> None:
    """However long it has been idle."""
    desk = filled(2, 2)
    desk.now += 1e9
    assert desk.core.next_ping() == math.inf
    assert desk.core.begin_ping(desk.now) is None


def test_the_longest_idle_first() -> None:
    """Each is due when it has been idle for its time, and again when the same time has passed since the ping."""
    desk = kept_alive(3, 3)
    order, began = list(desk.idle), desk.now
    assert desk.core.next_ping() == order[0].idle_since + 60.0
    desk.now = desk.core.next_ping() - 0.1
    assert desk.core.begin_ping(desk.now) is None
    desk.now += 10.0
    pings = [ping(desk) for _ in range(3)]
    assert pings == order
    assert desk.core.begin_ping(desk.now) is None
    assert desk.core.next_ping() == order[0].pinged + 60.0 > began + 60.0
    agree(desk.core)


def test_a_pinged_connection_keeps_its_place() -> None:
    """The one that was used last is handed out first, and ``max_idle`` counts from the last use."""
    desk = kept_alive(3, 3)
    desk.core.resize(0, 3)
    order, since = list(desk.idle), [slot.idle_since for slot in desk.idle]
    desk.now += 100.0
    for _ in range(3):
        ping(desk)
    assert list(desk.idle) == order
    assert [slot.idle_since for slot in desk.idle] == since
    newest = desk.hold()[0].slot
    assert newest is order[-1]
    assert desk.core.evict_expired(since[0] + 200.0, 200.0)["idle"] == order[:1]


def test_a_connection_used_during_a_ping_stays_behind_the_pinged_one() -> None:
    """Its release makes it the one that was used last."""
    desk = kept_alive(3, 3)
    first, second, third = desk.idle
    desk.now += 100.0
    slot = desk.core.begin_ping(desk.now)
    assert slot is first
    desk.give_back(*desk.hold())
    assert desk.core.ping_passed(slot, desk.now) is None
    assert list(desk.idle) == [first, second, third]


def test_none_is_pinged_while_a_caller_waits() -> None:
    """A release at this moment serves the caller, and not the ping."""
    desk = kept_alive(1, 1)
    checkout, conn = desk.hold()
    waiter = desk.join()
    desk.now += 100.0
    checkout.slot.conn = conn
    desk.core.idle.append(checkout.slot)  # the moment of a release at which its thread is suspended
    assert desk.core.begin_ping(desk.now) is None
    assert not served(waiter)


def test_a_caller_that_queues_during_a_ping_is_served_after_it() -> None:
    """With the connection that was pinged, if no other is released before."""
    desk = kept_alive(1, 1)
    desk.now += 100.0
    slot = desk.core.begin_ping(desk.now)
    assert slot is not None
    waiter = desk.join()
    assert not served(waiter)
    assert desk.core.ping_passed(slot, desk.now) is None
    conn = desk.accept(waiter)
    assert conn is not None
    desk.give_back(waiter.checkout, conn)
    agree(desk.core)


@pytest.mark.parametrize("change", ["close", "drain", "resize", "expire"])
def test_what_happens_to_a_connection_during_its_ping(change: str) -> None:
    """It is closed after the ping, for that reason."""
    desk = kept_alive(2, 2)
    desk.now += 100.0
    slot = desk.core.begin_ping(desk.now)
    assert slot is not None
    if change == "close":
        desk.discard(desk.core.close(), "closed")
    elif change == "drain":
        desk.discard(desk.core.drain("drained"), "drained")
    elif change == "resize":
        kept, conn = desk.hold()
        assert desk.core.resize(0, 1) == []
    else:
        slot.expires = slot.review_at = desk.now
    reason = desk.core.ping_passed(slot, desk.now)
    assert reason == {"close": "closed", "drain": "drained", "resize": "resized", "expire": "expired"}[change]
    desk.discard([slot], reason)
    if change == "resize":
        desk.give_back(kept, conn)
    assert slot.conn is None
    agree(desk.core)


def test_a_failed_ping() -> None:
    """The connection is closed, and one more is wanted."""
    desk = kept_alive(1, 1)
    desk.now += 100.0
    slot = desk.core.begin_ping(desk.now)
    assert slot is not None
    assert desk.core.check_failed(slot)
    desk.discard([slot], "broken")
    assert desk.core.is_connection_wanted()
    agree(desk.core)


def test_an_abandoned_ping() -> None:
    """If its thread has died, the connection is an orphan, and its late end changes nothing."""
    desk = kept_alive(1, 1)
    desk.now += 100.0
    slot = desk.core.begin_ping(desk.now)
    assert slot is not None
    desk.core.keep_aside([slot], desk.now)
    assert desk.core.collect_orphans(desk.now + 1.0) == []
    assert desk.core.collect_orphans(desk.now + 30.0) == [slot]
    desk.discard([slot], "reclaimed")
    assert desk.core.ping_passed(slot, desk.now + 31.0) is None
    agree(desk.core)


def test_a_caller_that_the_pinged_connection_is_for() -> None:
    """One caller for each connection that is pinged, unless the pool is suspended or the queue is full."""
    desk = kept_alive(1, 1)
    assert not desk.core.has_check_for_caller()
    desk.now += 60.0
    slot = desk.core.begin_ping(desk.now)
    assert slot is not None
    assert desk.core.has_check_for_caller()
    desk.core.suspend(desk.now)
    assert not desk.core.has_check_for_caller()
    desk.core.resume(desk.now)
    waiter = desk.join()
    assert not desk.core.has_check_for_caller(), "another caller gets it"
    assert desk.core.ping_passed(slot, desk.now) is None
    assert served(waiter)


def test_a_ping_that_is_abandoned() -> None:
    """Nobody gets its connection, even if the server answers after all; a ping that has ended cannot be abandoned."""
    desk = kept_alive(1, 1)
    desk.now += 60.0
    slot = desk.core.begin_ping(desk.now)
    assert slot is not None
    waiter = desk.join()
    assert desk.core.abandon_check(slot, "broken")
    assert desk.core.ping_passed(slot, desk.now) == "broken"
    desk.discard([slot], "broken")
    assert not served(waiter)
    assert not desk.core.abandon_check(slot, "broken")
    agree(desk.core)
