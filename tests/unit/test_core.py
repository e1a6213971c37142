"""The pool as a whole: connecting, limits, draining, lifetimes, watching, on a core with fake connections."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool import PoolClosed
from otel_pgpool.pool.checkout import Attempt
from otel_pgpool.pool.core import State
from otel_pgpool.pool.slots import ORPHAN_AFTER, ORPHAN_AFTER_CHECK
from tests.support.fakes import STALE, Desk, agree, awake, filled, lent_out, served

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_pgpool.pool.checkout import Slot

# Connecting


def test_the_minimum_is_wanted_and_no_more() -> None:
    """With nobody waiting, as many connections as ``minconn`` are claimed; those being made count."""
    desk = Desk(2, 5)
    slots = [desk.claim(), desk.claim()]
    assert None not in slots
    assert desk.claim() is None
    assert len(desk.core.opening) == 2


def test_a_pool_that_is_not_open_wants_nothing() -> None:
    """Neither before it is opened nor after it is closed."""
    desk = Desk(2, 5)
    desk.core.state = State.NEW
    assert desk.claim() is None
    desk.core.close()
    assert desk.claim() is None


def test_one_connect_for_each_waiter_within_the_limit() -> None:
    """Connects that are under way count against the demand, and ``maxconn`` bounds them."""
    desk = Desk(0, 3)
    waiters = [desk.join() for _ in range(2)]
    assert [slot.asked_by for slot in (desk.claim(), desk.claim()) if slot] == [w.checkout for w in waiters]
    assert desk.claim() is None
    desk.join()
    desk.join()
    assert desk.claim() is not None
    assert desk.claim() is None, "maxconn"


def test_demand_is_looked_at_again() -> None:
    """A waiter served by a return does not get a connect any more."""
    desk = Desk(0, 2)
    first = desk.join()
    desk.connect()
    second = desk.join()
    desk.give_back(first.checkout, first.conn)
    assert served(second)
    assert desk.claim() is None


def test_a_caller_that_does_not_wait_asks_for_growth_once() -> None:
    """``ask_to_grow`` wants one more connection, until one is claimed for it."""
    desk = filled(1, 2)
    desk.hold()
    asking = desk.ask()
    desk.core.request_growth(asking)
    assert asking.expected_path == "new"
    slot = desk.claim()
    assert slot is not None
    assert slot.asked_by is None
    assert desk.claim() is None


def test_a_full_pool_does_not_grow() -> None:
    """At ``maxconn`` the wish is dropped: it would be granted long after it was made."""
    desk, checkout, conn = lent_out()
    asking = desk.ask()
    desk.core.request_growth(asking)
    assert asking.expected_path == "idle", "it has not queued"
    desk.core.resize(0, 1)
    desk.give_back(checkout, conn, "broken")
    assert desk.claim() is None


def test_a_caller_that_has_queued_before_says_so() -> None:
    """One whose time was over when the connection that it had waited for turned out dead."""
    desk, checkout, conn = lent_out()
    asking = desk.ask()
    desk.join(asking)
    desk.core.request_growth(asking)
    assert asking.expected_path == "queued"
    desk.core.leave(asking, None)
    desk.give_back(checkout, conn)


def test_connections_are_numbered() -> None:
    """Serials count from 1 in the order of their making."""
    desk = filled(3, 3)
    assert [slot.serial for slot in desk.idle] == [1, 2, 3]
    assert desk.core.created == 3


def test_a_failed_connect_is_counted_by_every_waiter() -> None:
    """Each waiter's retries and last error, and the pool's total; the place is free again."""
    desk = Desk(0, 2)
    waiters = [desk.join() for _ in range(3)]
    error = OSError("no server")
    assert desk.miss(desk.claim(), error) is True
    assert [waiter.checkout.retries for waiter in waiters] == [1, 1, 1]
    assert all(waiter.checkout.error is error for waiter in waiters)
    assert waiters[0].checkout.attempts == (Attempt(desk.now, "OSError", 0.5),)
    assert desk.core.retries == 3
    assert desk.core.members == set()
    assert not any(awake(waiter) for waiter in waiters)


def test_an_outage_begins_once_and_ends_with_a_connection() -> None:
    """It counts its attempts, keeps its beginning and the last error, and is told of once at either end."""
    desk = Desk(0, 2)
    desk.join()
    began = desk.now
    assert desk.miss(desk.claim(), OSError("first"), delay=0.1) is True
    desk.now += 1
    last = OSError("second")
    assert desk.miss(desk.claim(), last, delay=0.2) is False
    outage = desk.core.outage
    assert outage is not None
    assert outage == (began, 2, last, "", pytest.approx(desk.now + 0.2), False)
    slot = desk.claim()
    slot.key = 1
    reason, change = desk.core.connect_succeeded(slot, object(), desk.now)
    assert (reason, change.ended) == (None, outage)
    assert desk.core.outage is None


def test_a_refusal_is_no_outage() -> None:
    """A server that refuses was reached: no outage begins, one ends, and the attempts are paced as in an outage."""
    desk = Desk(0, 2)
    desk.join()

    def miss(*, is_refusal: bool) -> tuple[bool, object]:
        attempt = Attempt(desk.now, "OperationalError", 0.5)
        change = desk.core.connect_failed(desk.claim(), attempt, OSError(), is_refusal=is_refusal)
        return change.has_begun, change.ended

    assert miss(is_refusal=True) == (False, None)
    assert desk.core.outage is not None
    assert desk.core.outage.next_attempt == desk.now + 0.5
    desk.now += 1
    assert miss(is_refusal=False) == (True, None)
    outage = desk.core.outage
    assert outage.since == desk.now
    assert miss(is_refusal=True) == (False, outage)
    assert miss(is_refusal=True) == (False, None)


@pytest.mark.parametrize(("max_attempts", "survives"), [(1, 0), (2, 1), (3, 2), (None, 9)])
def test_a_waiter_gives_up_after_max_attempts(max_attempts: int | None, survives: int) -> None:
    """0 and 1 both give up at the first failure; None never does. The error that did it comes along."""
    desk = Desk(0, 2, max_attempts=max_attempts)
    waiter = desk.join()
    for _ in range(survives):
        desk.miss(desk.claim())
        assert not awake(waiter)
    if max_attempts is not None:
        error = OSError("the last")
        desk.miss(desk.claim(), error)
        assert waiter.error is error
        assert awake(waiter)
        assert list(desk.core.queue.values()) == []
        assert desk.core.has_exhausted_attempts(waiter.checkout)


def test_only_those_who_have_had_enough_give_up() -> None:
    """A caller that joined later lives on, and is next."""
    desk = Desk(0, 2, max_attempts=2)
    early = desk.join()
    desk.miss(desk.claim())
    late = desk.join()
    desk.miss(desk.claim())
    assert awake(early)
    assert list(desk.core.queue.values()) == [late]


# Waiting for the minimum


def test_a_filler_wakes_when_the_minimum_is_there() -> None:
    """``fill`` gives a sleeper until ``minconn`` connections are there, then None."""
    desk = Desk(2, 2)
    sleeper = desk.core.register_fill_waiter()
    assert sleeper is not None
    desk.connect()
    assert not awake(sleeper)
    desk.connect()
    assert awake(sleeper)
    assert sleeper.error is None
    assert desk.core.register_fill_waiter() is None


def test_fillers_wake_with_an_error() -> None:
    """The first failure of a connect ends every filler's sleep, and so does a close, with ``PoolClosed``."""
    desk = Desk(2, 2)
    sleepers = [desk.core.register_fill_waiter(), desk.core.register_fill_waiter()]
    error = OSError("refused")
    desk.miss(desk.claim(), error)
    assert all(sleeper is not None and awake(sleeper) and sleeper.error is error for sleeper in sleepers)
    late = desk.core.register_fill_waiter()
    desk.core.close()
    assert late is not None
    assert isinstance(late.error, PoolClosed)


def test_lent_connections_count_toward_the_minimum() -> None:
    """``wait()`` waits for connections, not for idle ones."""
    desk = filled(1, 2)
    desk.hold()
    assert desk.core.register_fill_waiter() is None


def test_a_filler_wakes_when_the_minimum_is_lowered() -> None:
    """A resize may make the minimum be there; nothing else may come to tell the filler."""
    desk = Desk(2, 2)
    desk.connect()
    sleeper = desk.core.register_fill_waiter()
    desk.core.resize(1, 2)
    assert sleeper is not None
    assert awake(sleeper)


# Limits


def test_resize_down_closes_the_longest_idle_now_and_the_lent_on_return() -> None:
    """Surplus idle ones are given to be closed; of the lent, as many as are too many go when they come back."""
    desk = filled(4, 4)
    oldest_idle = desk.idle[0]
    holds = [desk.hold() for _ in range(3)]
    shed = desk.core.resize(1, 2)
    assert shed == [oldest_idle]
    desk.discard(shed, "resized")
    assert [desk.give_back(*hold) for hold in holds] == ["resized", None, None]
    assert desk.core.discarded == {"resized": 2}
    assert len(desk.core.members) == 2
    agree(desk.core)


def test_resize_up_lets_waiters_have_new_connections() -> None:
    """The new room is wanted by those who wait already."""
    desk = filled(1, 1)
    desk.hold()
    waiter = desk.join()
    assert desk.claim() is None
    desk.core.resize(1, 2)
    desk.connect()
    assert served(waiter)


def test_resize_down_and_up_again_closes_nothing_more() -> None:
    """What was too many is judged when it comes back, by the limits of that moment."""
    desk = filled(2, 2)
    holds = [desk.hold(), desk.hold()]
    desk.core.resize(0, 1)
    desk.core.resize(0, 2)
    assert [desk.give_back(*hold) for hold in holds] == [None, None]


def test_a_connect_under_way_when_the_limit_falls_is_closed_on_arrival() -> None:
    """It is counted as created and as discarded, and lent to nobody."""
    desk = Desk(2, 2)
    slots = [desk.claim(), desk.claim()]
    desk.core.resize(0, 1)
    assert [desk.deliver(slot) for slot in slots] == ["resized", None]
    assert desk.core.created == 2
    assert desk.core.discarded == {"resized": 1}
    agree(desk.core)


def test_a_place_is_taken_until_its_connection_is_closed() -> None:
    """Between the decision to close and the close no other connection takes the place."""
    desk = filled(1, 1)
    idle = desk.core.drain("drained")
    desk.join()
    assert desk.claim() is None
    desk.discard(idle, "drained")
    assert desk.claim() is not None


# Draining and closing


def test_drain_lets_every_connection_go_once() -> None:
    """Idle ones now, lent ones and those being made when they come; what is made afterwards stays."""
    desk = Desk(3, 4)
    desk.connect(2)
    opening = desk.claim()
    checkout, conn = desk.hold()
    desk.discard(desk.core.drain("drained"), "drained")
    assert desk.give_back(checkout, conn) == "drained"
    assert desk.deliver(opening) == "drained"
    assert desk.core.members == set()
    desk.connect()
    assert desk.give_back(*desk.hold()) is None
    agree(desk.core)


def test_close_gives_the_idle_and_condemns_the_rest() -> None:
    """What is out, or being made, is closed when it comes."""
    desk = Desk(3, 3)
    desk.connect(2)
    opening = desk.claim()
    checkout, conn = desk.hold()
    idle = desk.core.close()
    assert len(idle) == 1
    desk.discard(idle, "closed")
    assert desk.give_back(checkout, conn) == "closed"
    assert desk.deliver(opening) == "closed"
    assert desk.core.members == set()


def test_a_closed_pool_does_not_open() -> None:
    """``open`` after ``close`` raises ``PoolClosed``."""
    desk = Desk()
    desk.core.close()
    with pytest.raises(PoolClosed):
        desk.core.open()


def test_opening_that_failed_leaves_the_pool_as_before() -> None:
    """It is new again, knows of no outage, and gives back what it had opened."""
    desk = Desk(2, 2)
    desk.connect()
    desk.miss(desk.claim())
    idle = desk.core.rollback_open()
    assert (desk.core.state, desk.core.outage, len(idle)) == (State.NEW, None, 1)
    desk.discard(idle, "closed")
    desk.core.open()
    desk.connect(2)
    agree(desk.core)


def test_quiet_wakes_when_nothing_is_lent_or_being_made() -> None:
    """The last of holders and connects ends the wait of ``close``."""
    desk = Desk(2, 2)
    desk.connect()
    opening = desk.claim()
    checkout, conn = desk.hold()
    desk.discard(desk.core.close(), "closed")
    sleeper = desk.core.register_idle_waiter()
    assert sleeper is not None
    desk.deliver(opening)
    assert not awake(sleeper)
    desk.give_back(checkout, conn)
    assert awake(sleeper)
    assert desk.core.register_idle_waiter() is None


# Idle connections


def test_idle_above_the_minimum_are_retired_when_idle_too_long() -> None:
    """The longest idle first, as many as are above ``minconn``, and none before ``max_idle``."""
    desk = filled(3, 3)
    desk.core.resize(1, 3)
    desk.now += 9
    desk.give_back(*desk.hold())
    eldest = desk.idle[:2]
    assert desk.core.evict_expired(desk.now, 10) == {"expired": [], "idle": []}
    desk.now += 1
    assert desk.core.evict_expired(desk.now, 10) == {"expired": [], "idle": eldest}
    desk.discard(eldest, "idle")
    desk.now += 100
    assert desk.core.evict_expired(desk.now, 10) == {"expired": [], "idle": []}, "minconn stay"
    agree(desk.core)


def test_the_aged_are_retired_below_the_minimum_too() -> None:
    """A lifetime ends whatever ``minconn`` says; the minimum is then wanted anew."""
    desk = Desk(1, 2)
    desk.connect(lifetime=60)
    desk.now += 59
    assert desk.core.evict_expired(desk.now, math.inf)["expired"] == []
    desk.now += 1
    expired = desk.core.evict_expired(desk.now, math.inf)["expired"]
    assert len(expired) == 1
    desk.discard(expired, "expired")
    assert desk.claim() is not None


def test_connections_lent_are_not_retired() -> None:
    """Age is asked for when they come back."""
    desk = Desk(1, 2)
    desk.connect(lifetime=60)
    checkout, conn = desk.hold()
    desk.now += 100
    assert desk.core.evict_expired(desk.now, 10) == {"expired": [], "idle": []}
    assert desk.give_back(checkout, conn) == "expired"


def test_inspect_leaves_those_that_were_lent_meanwhile() -> None:
    """What was used since the look is not suspect any more, lent or idle again."""
    desk = filled(3, 3)
    suspects = desk.core.idle_slots()
    desk.now += 1
    desk.give_back(*desk.hold())
    desk.hold()
    lent_again = desk.core.members - set(desk.idle)
    aside = desk.core.begin_check(suspects)
    assert len(aside) == 2
    assert not lent_again & set(aside)
    assert desk.core.checking == set(aside)


def test_the_healthy_go_back_and_the_dead_go() -> None:
    """``restore`` offers a connection again, to a waiter first; ``reject`` sets it aside to be closed."""
    desk = filled(2, 2)
    well, dead = desk.core.begin_check(desk.core.idle_slots())
    waiter = desk.join()
    assert desk.core.check_passed(well, desk.now) is None
    assert waiter.conn is well.ref()
    desk.core.check_failed(dead)
    desk.discard([dead], "check_failed")
    assert desk.core.discarded == {"check_failed": 1}
    agree(desk.core)


def test_one_condemned_while_it_was_looked_at_is_closed() -> None:
    """``restore`` answers why."""
    desk = filled(1, 1)
    [slot] = desk.core.begin_check(desk.core.idle_slots())
    desk.core.drain("drained")
    assert desk.core.check_passed(slot, desk.now) == "drained"
    assert slot in desk.core.closing


# Watching


def test_a_long_hold_is_flagged_once_while_it_lasts() -> None:
    """At the threshold, and not before; the time of the flag is kept."""
    desk = filled(1, 1, long_hold=1.0)
    checkout, conn = desk.hold()
    desk.now += 0.75
    assert desk.core.flag_long_holds(desk.now) == []
    desk.now += 0.25
    assert desk.core.flag_long_holds(desk.now) == [checkout]
    assert (checkout.flagged, checkout.flagged_at) == (True, desk.now)
    assert desk.core.flag_long_holds(desk.now + 5) == []
    desk.give_back(checkout, conn)
    assert desk.core.long_holds == 1


def test_a_long_hold_that_nobody_saw_is_flagged_on_return() -> None:
    """The watcher may come late: the count and the flag are right all the same."""
    desk = filled(1, 1, long_hold=1.0)
    checkout, conn = desk.hold()
    desk.now += 1
    desk.give_back(checkout, conn)
    assert checkout.flagged
    assert desk.core.long_holds == 1


def test_long_holds_are_given_longest_first() -> None:
    """As holders are."""
    desk = filled(2, 2, long_hold=1.0)
    first, _conn = desk.hold()
    desk.now += 0.5
    second, _conn_2 = desk.hold()
    desk.now += 2
    assert desk.core.flag_long_holds(desk.now) == [first, second]
    assert desk.core.holds_now() == [first, second]
    assert desk.core.oldest_hold(desk.now) == pytest.approx(2.5)


def test_the_next_deadline() -> None:
    """The first of: a hold's threshold, an idle one's lifetime, and its ``max_idle`` where it is above the minimum."""
    desk = Desk(2, 2, long_hold=5.0)
    assert desk.core.next_deadline(60) == math.inf
    desk.connect(lifetime=100)
    desk.connect(lifetime=90)
    assert desk.core.next_deadline(60) == desk.now + 90
    desk.core.resize(1, 2)
    assert desk.core.next_deadline(60) == desk.now + 60
    checkout, _conn = desk.hold()
    assert desk.core.next_deadline(60) == desk.now + 5
    desk.core.flag_long_holds(desk.now + 5)
    assert checkout.flagged
    assert desk.core.next_deadline(math.inf) == desk.now + 100


def test_the_maintenance_parks_when_nothing_is_out() -> None:
    """``park`` answers whether it may sleep until the next checkout, which then looks before it takes, and wakes it."""
    desk, checkout, conn = lent_out()
    assert desk.core.park() is False
    assert not desk.core.parked
    desk.give_back(checkout, conn)
    assert desk.core.park() is True
    assert desk.core.parked
    following = desk.ask()
    assert desk.core.try_acquire_idle(following) is conn
    assert following.path is None


def test_a_checkout_just_under_way_is_not_parked_over() -> None:
    """Popped and not yet marked, it counts as out."""
    desk = filled(1, 1)
    answers = []
    desk.idle.interrupt("after pop", lambda: answers.append(desk.core.park()))
    desk.hold()
    assert answers == [False]
    assert not desk.core.parked


# Lost connections


def test_a_dropped_connection_is_reclaimed() -> None:
    """Its place is free, its hold counted, its checkout told; others stay."""
    desk = filled(2, 2)
    checkout, conn = desk.hold()
    other, _other_conn = desk.hold()
    desk.now += 3
    del conn
    assert desk.reclaim() == [checkout]
    assert desk.core.discarded == {"reclaimed": 1}
    assert desk.core.total_hold() == pytest.approx(3)
    assert desk.core.members == {other.slot}
    assert desk.claim() is not None
    agree(desk.core)


def test_connections_the_pool_itself_dropped_are_not_reclaimed() -> None:
    """A closed connection's finalizer comes too, and finds nobody's checkout."""
    desk = filled(1, 1)
    shed = desk.core.drain("drained")
    desk.discard(shed, "drained")
    assert desk.dropped == [shed[0].ref]
    assert desk.reclaim() == []
    assert desk.core.discarded == {"drained": 1}


def lose(desk: Desk) -> None:
    """Raise an asynchronous exception between ``idle`` and the holder."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    desk.idle.interrupt("after pop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        desk.core.try_acquire_idle(desk.ask())


def test_a_slot_lost_between_idle_and_borrower_is_recovered() -> None:
    """In nobody's hands for `ORPHAN_AFTER`, it is set aside to be closed; two looks close together are not enough."""
    desk = filled(1, 1)
    lose(desk)
    assert desk.core.collect_orphans(desk.now) == []
    assert desk.core.collect_orphans(desk.now + ORPHAN_AFTER / 2) == []
    [lost] = desk.core.collect_orphans(desk.now + ORPHAN_AFTER)
    desk.discard([lost], "reclaimed")
    assert desk.core.members == set()
    assert desk.claim() is not None
    agree(desk.core)


def test_one_that_was_only_on_its_way_is_not_recovered() -> None:
    """A slot that has been lent and returned between two looks is a new case."""
    desk = filled(1, 1)
    desk.idle.interrupt("after pop", lambda: desk.core.collect_orphans(desk.now))
    checkout, conn = desk.hold()
    assert desk.core.collect_orphans(desk.now) == []
    desk.now += ORPHAN_AFTER
    desk.give_back(checkout, conn)
    desk.idle.interrupt("after pop", lambda: desk.core.collect_orphans(desk.now))
    desk.hold()
    assert desk.idle.calm()
    assert desk.core.collect_orphans(desk.now) == []


def recover_twice(desk: Desk) -> list[Slot]:
    """Recover what is lost if the holder stands still for long."""
    assert desk.core.collect_orphans(desk.now) == []
    return desk.core.collect_orphans(desk.now + ORPHAN_AFTER)


def test_a_borrower_that_was_only_slow_finds_nothing() -> None:
    """Its slot was recovered and closed while it stood still: it has no connection, and may queue for another."""
    desk = filled(1, 1)
    slow = desk.ask()
    desk.idle.interrupt("after pop", lambda: desk.discard(recover_twice(desk), "reclaimed"))
    assert desk.core.try_acquire_idle(slow) is None
    assert slow.path is None
    waiter = desk.join(slow)
    desk.connect()
    assert served(waiter)
    assert desk.give_back(slow, waiter.conn) is None
    agree(desk.core)


@pytest.mark.parametrize("aside", ["closed", "looked at"])
def test_a_slot_that_was_set_aside_and_left_is_recovered(aside: str) -> None:
    """Nobody came back to look at it, or to close it, for `ORPHAN_AFTER_CHECK`; until then that may take its time."""
    desk = filled(1, 1)
    [slot] = desk.core.begin_check(desk.core.idle_slots()) if aside == "looked at" else desk.core.drain("drained")
    assert not desk.core.park()
    assert desk.core.collect_orphans(desk.now) == []
    assert desk.core.collect_orphans(desk.now + ORPHAN_AFTER) == []
    assert desk.core.collect_orphans(desk.now + ORPHAN_AFTER_CHECK) == [slot]
    desk.discard([slot], "reclaimed")
    assert not desk.core.park()  # there is one too few
    desk.connect()
    assert desk.core.park()
    agree(desk.core)


def test_whoever_comes_back_late_to_a_recovered_slot_finds_it_gone() -> None:
    """Neither its look nor its closing counts any more, whatever it was about to say."""
    desk = Desk(2, 2)
    desk.connect()
    desk.connect()
    aside = desk.core.begin_check(desk.core.idle_slots())
    assert desk.core.collect_orphans(desk.now) == []
    lost = desk.core.collect_orphans(desk.now + ORPHAN_AFTER_CHECK)
    assert {*lost} == {*aside}
    desk.core.check_failed(aside[0])
    assert desk.core.check_passed(aside[1], desk.now) is None
    assert desk.core.idle == []
    desk.discard(lost, "reclaimed")
    desk.core.check_failed(aside[0])
    assert desk.core.remove_closed(lost, "broken") == []
    assert desk.core.discarded == {"reclaimed": 2}
    agree(desk.core)


def test_a_recovered_slot_never_comes_back() -> None:
    """The slow caller takes the connection just before it would have been closed: its return closes the connection."""
    desk = filled(1, 1)
    lost = []
    desk.idle.interrupt("after pop", lambda: lost.extend(recover_twice(desk)))
    checkout, conn = desk.hold()
    assert len(lost) == 1
    desk.discard(lost, "reclaimed")
    assert desk.give_back(checkout, conn) == "reclaimed"
    assert conn.closed
    assert desk.idle == []
    agree(desk.core)


def test_keys_are_forgotten_on_return() -> None:
    """A key names a slot only while it is lent."""
    desk, checkout, conn = lent_out()
    assert desk.core.enter_key("mine", checkout.slot, conn) is conn
    assert desk.core.by_key("mine") == (checkout.slot, conn)
    desk.give_back(checkout, conn)
    assert desk.core.by_key("mine") == (None, None)


def test_of_two_with_one_key_the_first_counts() -> None:
    """The second is told which connection the key goes by, and its own return does not forget the first's key."""
    desk = filled(2, 2)
    first, conn_1 = desk.hold()
    second, conn_2 = desk.hold()
    desk.core.enter_key("mine", first.slot, conn_1)
    assert desk.core.enter_key("mine", second.slot, conn_2) is conn_1
    desk.give_back(second, conn_2)
    assert desk.core.by_key("mine") == (first.slot, conn_1)


def test_a_key_keeps_its_connection() -> None:
    """Its borrower can ask for it again, and needs no reference of its own: it is not dropped."""
    desk, checkout, conn = lent_out()
    desk.core.enter_key("mine", checkout.slot, conn)
    del conn
    assert desk.reclaim() == []
    assert desk.core.by_key("mine")[1] is checkout.slot.ref()


def test_a_stale_one_taken_counts_as_used_until_confirmed_or_withdrawn() -> None:
    """Nobody lends it twice, and no limit is exceeded, while its borrower looks at it."""
    desk = filled(1, 1)
    desk.now += STALE
    checkout = desk.ask()
    desk.core.try_acquire_idle(checkout)
    assert (desk.core.used, desk.idle) == (1, [])
    desk.join()
    assert desk.claim() is None
    desk.core.accept(checkout, desk.now)
    assert desk.core.used == 1


def test_slots_that_a_thread_still_works_on_are_no_orphans() -> None:
    """Many are set aside together and checked, or closed, one after the other, each for as long as it may take."""
    desk = filled(3, 3)
    aside = desk.core.begin_check(desk.core.idle_slots())
    for _ in range(3):
        assert desk.core.collect_orphans(desk.now) == []
        desk.now += ORPHAN_AFTER_CHECK / 2
        desk.core.keep_aside(aside, desk.now)
    assert desk.core.collect_orphans(desk.now) == []
    assert {*desk.core.collect_orphans(desk.now + ORPHAN_AFTER_CHECK)} == {*aside}


class Stalled:
    """A lock before which a thread stands still once, while another does something."""

    def __init__(self, lock: Any, meanwhile: Callable[[], object]) -> None:
        self._lock = lock
        self._meanwhile: Callable[[], object] | None = meanwhile

    def __enter__(self) -> None:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_release_that_was_only_slow_is_a_release() -> None:
    """Its slot was taken for an orphan while it stood still: the connection is closed, and the checkout has ended."""
    desk, checkout, conn = lent_out()
    desk.core.lock = Stalled(desk.core.lock, lambda: desk.discard(recover_twice(desk), "reclaimed"))
    assert desk.give_back(checkout, conn, "broken") == "reclaimed"
    assert conn.closed
    assert desk.core.members == set()
    assert desk.core.discarded == {"reclaimed": 1}
