"""Who gets which connection, and who is next: checkout, queue and return on a core with fake connections."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool import PoolClosed, TooManyRequests
from otel_pgpool.pool.checkout import Attempt, Checkout
from otel_pgpool.pool.core import NOT_HELD, Core
from otel_pgpool.pool.slots import ORPHAN_AFTER, ORPHAN_AFTER_CHECK
from otel_pgpool.pool.waiters import Queue
from tests.support.fakes import STALE, Desk, FakeConnection, agree, awake, filled, lent_out, served

if TYPE_CHECKING:
    from otel_pgpool.pool.checkout import Slot

# Checkout


def test_the_connection_used_last_is_lent_first() -> None:
    """Idle connections are lent last in, first out."""
    desk = filled(2, 2)
    first, conn_1 = desk.hold()
    second, conn_2 = desk.hold()
    desk.give_back(first, conn_1)
    desk.give_back(second, conn_2)
    assert desk.hold()[1] is conn_2
    assert desk.hold()[1] is conn_1


def test_a_fresh_connection_is_lent_without_a_look() -> None:
    """One used within the last 50 ms is handed over at once, on the path ``idle``."""
    desk = filled(1)
    checkout = desk.ask()
    assert desk.core.try_acquire_idle(checkout) is not None
    assert checkout.path == "idle"
    assert desk.core.checkouts() == {"idle": 1, "queued": 0, "new": 0}


def test_a_stale_connection_is_looked_at_first() -> None:
    """One idle for longer has no path, and counts as no checkout, until the borrower confirms it."""
    desk = filled(1)
    desk.now += STALE
    checkout = desk.ask()
    assert desk.core.try_acquire_idle(checkout) is not None
    assert checkout.path is None
    assert desk.core.holds_now() == []
    assert desk.core.oldest_hold(desk.now) == 0.0
    desk.core.accept(checkout, desk.now + 0.25)
    assert (checkout.path, checkout.acquired) == ("idle", desk.now + 0.25)
    assert desk.core.wait_seconds == pytest.approx(0.25)
    assert desk.core.checkouts()["idle"] == 1


def test_nothing_idle_gives_nothing() -> None:
    """``take`` neither waits nor asks for a connection."""
    desk = Desk(0)
    assert desk.core.try_acquire_idle(desk.ask()) is None
    assert desk.claim() is None


@pytest.mark.parametrize("has_run", [False, True])
def test_a_waiter_whose_timeout_has_changed_keeps_its_place(has_run: bool) -> None:
    """It is woken, and served before a newcomer, whether its thread has run since or not."""
    desk, checkout, conn = lent_out()
    waiter = desk.join()
    desk.core.renew_waits()
    assert waiter.lock.acquire(blocking=False)
    if not has_run:
        desk.core.renew_waits()
        desk.core.renew_waits()
    newcomer = desk.join()
    assert len(desk.core.queue) == 2
    desk.give_back(checkout, conn)
    assert (served(waiter), awake(waiter), served(newcomer)) == (True, True, False)
    agree(desk.core)


def test_a_newcomer_does_not_overtake_the_queue() -> None:
    """While somebody queues, nobody takes an idle connection past them."""
    desk, checkout, conn = lent_out()
    waiter = desk.join()
    newcomer = desk.ask()
    desk.give_back(checkout, conn)
    assert served(waiter)
    assert desk.core.try_acquire_idle(newcomer) is None


def test_a_newcomer_passes_by_what_lies_idle_while_somebody_queues() -> None:
    """A connection just put down, before the return looks at the queue again, belongs to the waiter that joined."""
    desk, checkout, conn = lent_out()
    newcomer, taken, waiters = desk.ask(), [], []

    def meanwhile() -> None:
        waiters.append(desk.join())
        desk.idle.interrupt("after append", lambda: taken.append(desk.core.try_acquire_idle(newcomer)))

    desk.idle.interrupt("before append", meanwhile)
    desk.give_back(checkout, conn)
    assert desk.idle.calm()
    assert taken == [None]
    assert waiters[0].conn is conn


def test_a_dead_connection_counts_as_a_failed_attempt() -> None:
    """``withdraw`` with an attempt counts it for checkout and pool; the slot stays a member until it is closed."""
    desk = filled(1, 1)
    desk.now += STALE
    checkout = desk.ask()
    conn = desk.core.try_acquire_idle(checkout)
    error = OSError("reset by peer")
    desk.core.set_aside_for_closing(checkout, Attempt(desk.now, "OSError", 0.0), error)
    assert (checkout.retries, checkout.error, desk.core.retries) == (1, error, 1)
    assert not desk.core.holds(checkout)
    assert len(desk.core.members) == 1
    assert desk.claim() is None, "its place is not free before it is closed"
    checkout.slot.conn = conn
    desk.discard([checkout.slot], "broken")
    assert desk.core.discarded == {"broken": 1}
    agree(desk.core)


def test_an_expired_connection_is_no_failed_attempt() -> None:
    """``withdraw`` without an attempt counts nothing."""
    desk = filled(1)
    desk.now += STALE
    checkout = desk.ask()
    desk.core.try_acquire_idle(checkout)
    desk.core.set_aside_for_closing(checkout)
    assert (checkout.retries, desk.core.retries) == (0, 0)


# The queue


def test_waiters_are_served_first_come_first_served() -> None:
    """Each returned connection goes straight to whoever has waited longest, and is never idle in between."""
    desk, holder, conn = lent_out()
    waiters = []
    for _ in range(5):
        desk.now += 1
        waiters.append(desk.join())
    for turn, waiter in enumerate(waiters):
        desk.now += 1
        desk.give_back(holder, conn)
        assert [served(other) for other in waiters] == [n <= turn for n in range(5)]
        assert desk.accept(waiter) is conn
        assert waiter.checkout.path == "queued"
        assert waiter.checkout.acquired == desk.now
        assert desk.idle == []
        holder = waiter.checkout
    assert desk.core.queued == 5
    assert desk.core.checkouts() == {"idle": 1, "queued": 5, "new": 0}
    assert desk.core.wait_seconds == pytest.approx(5 * 5)


def test_one_that_comes_back_keeps_its_turn() -> None:
    """A caller whose connection turned out dead queues ahead of those who asked later than it did."""
    desk = filled(1, 1)
    desk.now += STALE
    unlucky = desk.ask()
    conn = desk.core.try_acquire_idle(unlucky)
    desk.now += 1
    later = desk.join()
    desk.core.set_aside_for_closing(unlucky, Attempt(desk.now, "OSError", 0.0), OSError())
    unlucky.slot.conn = conn
    desk.discard([unlucky.slot], "broken")
    returned = desk.join(unlucky)
    assert list(desk.core.queue.values()) == [returned, later]
    desk.connect()
    assert served(returned)
    assert not served(later)
    assert desk.core.queued == 2, "the same checkout queued once, however often it joined"


def test_a_waiter_that_timed_out_leaves_the_queue_at_once() -> None:
    """Its place is gone: the connection goes to the next, and no dead waiter counts toward ``max_waiting``."""
    desk = filled(1, 1, max_waiting=2)
    holder, conn = desk.hold()
    first, second = desk.join(), desk.join()
    assert desk.core.leave(first.checkout, first) is None
    assert list(desk.core.queue.values()) == [second]
    third = desk.join()
    desk.give_back(holder, conn)
    assert served(second)
    assert not served(first)
    assert not served(third)


def test_a_waiter_that_was_served_as_it_gave_up_has_the_connection() -> None:
    """Leaving after the hand-over gives the connection: it is neither lost nor offered to another."""
    desk, holder, conn = lent_out()
    waiter = desk.join()
    desk.give_back(holder, conn)
    assert desk.core.leave(waiter.checkout, waiter) is conn
    assert desk.core.holds(waiter.checkout)
    desk.give_back(waiter.checkout, conn)
    assert desk.core.used == 0


def test_a_full_queue_refuses_at_once() -> None:
    """With ``max_waiting`` in the queue the next is refused, in words that say how many wait and what is in use.

    It counts as an error, and not as one that has queued.
    """
    desk = filled(1, 1, max_waiting=1)
    desk.hold()
    desk.join()
    refused = desk.ask()
    with pytest.raises(TooManyRequests, match=r"1 waiting \(max_waiting=1\), 1 of 1 connections in use"):
        desk.join(refused)
    assert len(desk.core.queue) == 1
    assert (refused.queued, refused.expected_path) == (None, "idle")
    assert desk.core.queued == 1


def test_a_waiter_knows_whom_it_waits_for() -> None:
    """Up to five of the longest holds, the longest first, each with its age at that moment."""
    desk = filled(7, 7)
    holders = []
    for _ in range(7):
        holders.append(desk.hold()[0])
        holders[-1].observer_data = object()
        desk.now += 1
    asking = desk.ask()
    asking.observer_data = object()
    blockers = desk.join(asking).checkout.blockers
    assert [blocker.observer_data for blocker in blockers] == [holder.observer_data for holder in holders[:5]]
    assert [blocker.connection_id for blocker in blockers] == [holder.slot.serial for holder in holders[:5]]
    assert [blocker.held for blocker in blockers] == [7, 6, 5, 4, 3]
    assert [blocker.pid for blocker in blockers] == [holder.slot.pid for holder in holders[:5]]
    assert [blocker.path_to for blocker in blockers] == [holder.path_to for holder in holders[:5]]


def test_a_waiter_keeps_no_checkout_of_those_it_waits_for() -> None:
    """They may have waited themselves, for others that have: all that ever queued would be kept."""
    desk = filled(1, 1)
    desk.hold()[0].observer_data = object()
    asking = desk.ask()
    asking.observer_data = object()
    (blocker,) = desk.join(asking).checkout.blockers
    assert not [part for part in blocker if isinstance(part, Checkout)]


def test_a_waiter_that_nobody_observes_collects_no_names() -> None:
    """Whom it waits for is gathered for an observer only."""
    desk = filled(1, 1)
    desk.hold()
    assert desk.join().checkout.blockers == ()


def test_a_waiter_says_what_it_waits_for() -> None:
    """``new`` while there is room or a connection is being made, else ``queued``."""
    desk = Desk(0, 1)
    first = desk.join()
    assert first.checkout.expected_path == "new"
    desk.claim()
    assert desk.join().checkout.expected_path == "new"
    full = Desk(1, 1)
    full.connect()
    full.hold()
    assert full.join().checkout.expected_path == "queued"


def test_a_waiter_that_finds_a_stale_connection_looks_at_it_first() -> None:
    """As without the queue; confirmed, its path is ``queued``, and until then it is no checkout served."""
    desk = filled(1, 1)
    desk.now += STALE
    waiter = desk.join()
    assert served(waiter)
    assert waiter.checkout.path is None
    assert sum(desk.core.checkouts().values()) == 0
    desk.core.accept(waiter.checkout, desk.now + 1)
    assert (waiter.checkout.path, waiter.checkout.acquired) == ("queued", desk.now + 1)
    assert desk.core.checkouts() == {"idle": 0, "queued": 1, "new": 0}
    assert desk.core.wait_seconds == pytest.approx(1)


@pytest.mark.parametrize(("hold", "path"), [(STALE, None), (STALE / 10, "queued")])
def test_one_that_was_held_for_long_is_looked_at_by_the_next(hold: float, path: str | None) -> None:
    """Nobody has seen it alive since it was lent: whoever gets it next, waiter or not, looks first."""
    desk, holder, conn = lent_out()
    waiter = desk.join()
    desk.now += hold
    desk.give_back(holder, conn)
    assert (waiter.conn, waiter.checkout.path) == (conn, path)
    assert desk.accept(waiter) is conn
    desk.now += hold
    desk.give_back(waiter.checkout, conn)
    checkout = desk.ask()
    assert desk.core.try_acquire_idle(checkout) is conn
    assert checkout.path == (None if path is None else "idle")


def test_a_waiter_handed_a_dead_connection_is_first_again() -> None:
    """It looked, found it dead, and stands where it stood."""
    desk, holder, conn = lent_out()
    first = desk.join()
    desk.now += STALE
    second = desk.join()
    desk.give_back(holder, conn)
    desk.core.set_aside_for_closing(first.checkout, Attempt(desk.now, "OSError", 0.0), OSError())
    first.checkout.slot.conn = conn
    desk.discard([first.checkout.slot], "broken")
    again = desk.join(first.checkout)
    assert list(desk.core.queue.values()) == [again, second]
    desk.connect()
    assert served(again)
    assert desk.core.checkouts() == {"idle": 1, "queued": 0, "new": 1}


def test_a_new_connection_goes_to_the_first_waiter() -> None:
    """On the path ``new``; with nobody waiting it becomes idle."""
    desk = Desk(0, 2)
    waiter = desk.join()
    slot = desk.claim()
    assert slot is not None
    assert slot.asked_by is waiter.checkout
    desk.now += 1
    assert desk.deliver(slot) is None
    assert served(waiter)
    assert waiter.checkout.path == "new"
    assert slot.asked_by is None
    assert slot.serial == 1


def test_a_returned_connection_may_come_before_the_new_one() -> None:
    """A caller waits for any connection; the new one, not wanted any more when it arrives, becomes idle."""
    desk = Desk(0, 2)
    first = desk.join()
    desk.connect()
    conn = first.conn
    waiter = desk.join()
    slot = desk.claim()
    desk.give_back(first.checkout, conn)
    assert waiter.conn is conn
    desk.deliver(slot)
    assert len(desk.idle) == 1
    agree(desk.core)


def test_a_closed_pool_takes_nobody_into_the_queue() -> None:
    """Joining raises ``PoolClosed``, and those in the queue are woken with it."""
    desk = filled(1, 1)
    desk.hold()
    waiter = desk.join()
    desk.core.close()
    assert isinstance(waiter.error, PoolClosed)
    assert awake(waiter)
    assert len(desk.core.queue) == 0
    with pytest.raises(PoolClosed, match="connection pool is closed"):
        desk.join()


def test_failures_are_counted_apart() -> None:
    """Timeouts and other errors have a total each."""
    desk = Desk()
    desk.core.count_failure(0.5, timed_out=True)
    desk.core.count_failure(0.5, timed_out=False)
    desk.core.count_failure(0.5, timed_out=False)
    assert (desk.core.timeouts, desk.core.errors) == (1, 2)


# Return


def test_a_second_return_is_refused() -> None:
    """Giving back twice answers `NOT_HELD` and changes nothing."""
    desk = filled(1)
    checkout, conn = desk.hold()
    assert desk.give_back(checkout, conn) is None
    assert desk.give_back(checkout, conn) is NOT_HELD
    assert len(desk.idle) == 1
    agree(desk.core)


def test_a_return_after_the_connection_was_reclaimed_is_refused() -> None:
    """The slot is nobody's any more: `NOT_HELD`, on the path under the lock too."""
    desk = filled(1)
    checkout, conn = desk.hold()
    desk.dropped.append(checkout.slot.ref)
    desk.reclaim()
    assert desk.give_back(checkout, conn, "broken") is NOT_HELD
    assert desk.core.discarded == {"reclaimed": 1}
    assert not desk.core.holds(checkout)


def test_a_broken_connection_is_closed_and_its_place_freed() -> None:
    """The caller's reason is the verdict, and a waiter's connect becomes possible once it is closed."""
    desk, checkout, conn = lent_out()
    waiter = desk.join()
    assert desk.claim() is None
    assert desk.give_back(checkout, conn, "broken") == "broken"
    assert conn.closed
    assert not served(waiter)
    desk.connect()
    assert served(waiter)
    assert desk.core.discarded == {"broken": 1}


@pytest.mark.parametrize("queued", [False, True])
def test_an_aged_connection_does_not_stay(queued: bool) -> None:
    """A return past the lifetime answers ``expired``, whether somebody waits or not."""
    desk = Desk(1, 1)
    desk.connect(lifetime=10)
    checkout, conn = desk.hold()
    waiter = desk.join() if queued else None
    desk.now += 10
    assert desk.give_back(checkout, conn) == "expired"
    assert waiter is None or not served(waiter)


def test_holds_are_added_up() -> None:
    """``total_hold`` counts members and past members."""
    desk = filled(2, 2)
    kept, conn_1 = desk.hold()
    gone, conn_2 = desk.hold()
    desk.now += 3
    desk.give_back(kept, conn_1)
    desk.give_back(gone, conn_2, "broken")
    assert desk.core.total_hold() == pytest.approx(6)
    assert desk.core.checkouts()["idle"] == 2


# Interrupts, and the garbage collector


def test_an_interrupt_right_after_a_hand_over_costs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiter has its connection, and the next return serves the next waiter."""
    desk = filled(2, 2)
    holds = [desk.hold(), desk.hold()]
    first, second = desk.join(), desk.join()

    def be_interrupted(_queue: Queue, _checkout: Checkout) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "leave", be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            desk.give_back(*holds[0])
    assert awake(first)
    desk.give_back(*holds[1])
    assert (first.conn, second.conn) == (holds[0][1], holds[1][1])
    assert first.checkout.slot.ref() is first.conn
    assert list(desk.core.queue.values()) == []
    agree(desk.core)


def test_an_interrupt_right_before_a_hand_over_leaves_the_waiter_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is an orphan, even while its returner still refers to it; the waiter gets the next one."""
    desk, checkout, conn = lent_out()
    waiter = desk.join()

    def be_interrupted(_core: Core, _checkout: Checkout, _now: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Core, "_count", be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            desk.give_back(checkout, conn)
    assert not waiter.checkout.is_held
    desk.core.collect_orphans(desk.now)
    desk.discard(desk.core.collect_orphans(desk.now + ORPHAN_AFTER), "reclaimed")
    desk.connect()
    assert served(waiter)
    agree(desk.core)


def test_an_interrupt_between_the_steps_of_a_discard_changes_no_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """A discard that is cut short before the slot leaves is not counted; the orphan's discard is, once."""
    desk, checkout, conn = lent_out()

    def be_interrupted(_core: Core, _slot: Slot) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Core, "_add_to_past", be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            desk.give_back(checkout, conn, "broken")
    desk.core.collect_orphans(desk.now)
    desk.discard(desk.core.collect_orphans(desk.now + ORPHAN_AFTER_CHECK), "reclaimed")
    assert desk.core.discarded == {"reclaimed": 1}
    assert desk.core.slots == {}
    agree(desk.core)


def test_what_came_back_is_not_reclaimed() -> None:
    """The collector tells of a connection in a generator that it then closes: the return comes first, and counts."""
    desk, checkout, conn = lent_out()
    slot = checkout.slot
    slot._dropped(slot.ref)
    desk.give_back(checkout, conn)
    assert desk.reclaim() == []
    agree(desk.core)


def test_what_was_reclaimed_does_not_come_back() -> None:
    """The other way round: the place is free, and the late return is told so."""
    desk, checkout, conn = lent_out()
    checkout.slot._dropped(checkout.slot.ref)
    assert desk.reclaim() == [checkout]
    assert desk.core.release(checkout, conn, desk.now) is NOT_HELD
    assert not desk.core.idle
    assert not desk.core.members


def test_a_connection_that_comes_back_from_the_dead_is_watched_again() -> None:
    """The collector clears the weak reference first: the return must make a new one."""
    desk, checkout, conn = lent_out()
    slot = checkout.slot
    slot.ref = dead_reference(slot)
    slot._dropped(slot.ref)
    desk.give_back(checkout, conn)
    assert slot.ref() is conn


def dead_reference(slot: Slot) -> weakref.ref[Any]:
    return weakref.ref(FakeConnection(), slot._dropped)


def test_an_unseen_connection_is_not_taken_for_seen() -> None:
    """A borrower that was interrupted before it looked leaves the look to the next."""
    desk = filled(1, 1)
    desk.now += STALE
    checkout = desk.ask()
    conn = desk.core.try_acquire_idle(checkout)
    assert checkout.path is None
    assert desk.core.release_unused(checkout, conn, desk.now) is None
    following = desk.ask()
    assert desk.core.try_acquire_idle(following) is conn
    assert following.path is None
    assert desk.core.release_unused(following, conn, desk.now) is None
    agree(desk.core)


def test_a_second_look_is_not_spared() -> None:
    """A checkout that took long over a dead connection must look at the next one too."""
    desk = filled(1, 1)
    checkout = desk.ask()
    desk.now += STALE
    assert desk.core.try_acquire_idle(checkout, slow=True) is not None
    assert checkout.path is None


def test_what_was_made_meanwhile_is_new() -> None:
    """In the place of a connection found dead another is made, and may lie idle before its checkout asks again."""
    desk = filled(1, 1)
    desk.now += STALE
    checkout = desk.ask()
    conn = desk.core.try_acquire_idle(checkout)
    desk.core.set_aside_for_closing(checkout, Attempt(desk.now, "OSError", 0.0), OSError())
    checkout.slot.conn = conn
    desk.discard([checkout.slot], "broken")
    desk.now += 0.004
    desk.connect()
    assert desk.core.try_acquire_idle(checkout, slow=True) is not None
    desk.core.accept(checkout, desk.now)
    assert checkout.path == "new"
    assert desk.core.checkouts() == {"idle": 0, "queued": 0, "new": 1}


def test_nobody_waits_less_than_nothing() -> None:
    """A return that began before the waiter asked hands over no earlier than that."""
    desk, checkout, conn = lent_out()
    before = desk.now
    desk.now += 0.5
    waiter = desk.join()
    assert desk.core.release(checkout, conn, before) is None
    assert waiter.checkout.acquired == waiter.checkout.started


def test_an_interrupt_inside_joining_leaves_nobody_in_the_queue() -> None:
    """The caller does not know its waiter yet: it is found by its checkout."""
    desk = filled(1, 1)
    desk.hold()
    checkout = desk.ask()
    desk.join(checkout)
    assert desk.core.leave(checkout, None) is None
    assert not desk.core.queue


def test_totals_never_go_down() -> None:
    """A reader between any two steps of a member's leaving sees what was there before."""
    desk, checkout, conn = lent_out()
    desk.now += 2.0
    seen = []

    class Watching(set):  # type: ignore[type-arg]
        def discard(self, slot: Any) -> None:
            super().discard(slot)
            seen.append((desk.core.checkouts()["idle"], desk.core.total_hold()))

    desk.core.members = Watching(desk.core.members)
    desk.give_back(checkout, conn, "broken")
    assert seen == [(1, 2.0)]
    assert (desk.core.checkouts()["idle"], desk.core.total_hold()) == (1, 2.0)


# What other threads do in between


@pytest.mark.parametrize("moment", ["before append", "after append"])
def test_a_waiter_that_joins_while_a_connection_becomes_idle_gets_it(moment: str) -> None:
    """The return's second look serves the waiter, or the waiter serves itself; nobody is served twice.

    In both cases the return has looked at the queue before, and found nobody.
    """
    desk, checkout, conn = lent_out()
    waiters = []
    desk.idle.interrupt(moment, lambda: waiters.append(desk.join()))
    assert desk.give_back(checkout, conn) is None
    assert desk.idle.calm()
    assert waiters[0].conn is conn
    assert awake(waiters[0]) or moment == "after append"
    agree(desk.core)


def test_two_takers_of_one_idle_connection() -> None:
    """The slower finds nothing and has changed nothing."""
    desk = filled(1, 1)
    slow, takers = desk.ask(), []
    desk.idle.interrupt("before pop", lambda: takers.append(desk.hold()))
    assert desk.core.try_acquire_idle(slow) is None
    assert not desk.core.holds(slow)
    assert len(takers) == 1
    agree(desk.core)


@pytest.mark.parametrize("moment", ["before append", "after append"])
def test_a_drain_during_a_return_closes_the_connection(moment: str) -> None:
    """Whoever sees it first, the return or the drain, one of them sets it aside; none stays idle."""
    desk = filled(2, 2)
    checkout, conn = desk.hold()
    desk.idle.interrupt(moment, lambda: desk.discard(desk.core.drain("drained"), "drained"))
    verdict = desk.give_back(checkout, conn)
    assert desk.idle.calm()
    assert verdict == ("drained" if moment == "before append" else None)
    assert conn.closed
    assert desk.idle == []
    assert desk.core.discarded == {"drained": 2}
    agree(desk.core)


def test_a_drain_during_a_checkout_lets_it_have_the_connection() -> None:
    """It was lent before the drain: it goes when it comes back."""
    desk = filled(1, 1)
    desk.idle.interrupt("after pop", lambda: desk.core.drain("drained"))
    checkout, conn = desk.hold()
    assert desk.idle.calm()
    assert not conn.closed
    assert desk.give_back(checkout, conn) == "drained"
    agree(desk.core)


@pytest.mark.parametrize("moment", ["before append", "after append"])
def test_a_resize_during_a_return_is_kept(moment: str) -> None:
    """A limit lowered while a connection comes back closes the surplus, and no more than it."""
    desk = filled(2, 2)
    first, conn_1 = desk.hold()
    second, conn_2 = desk.hold()
    desk.idle.interrupt(moment, lambda: desk.discard(desk.core.resize(0, 1), "resized"))
    desk.give_back(first, conn_1)
    assert desk.idle.calm()
    assert desk.give_back(second, conn_2) is None
    assert desk.core.discarded == {"resized": 1}
    assert len(desk.idle) == 1
    agree(desk.core)


def test_one_taken_again_before_the_second_look_is_left_alone() -> None:
    """The connection just returned is lent to another, then condemned: the return must not set aside what is in use."""
    desk, checkout, conn = lent_out()
    takers = []

    def meanwhile() -> None:
        takers.append(desk.hold())
        desk.core.drain("drained")

    desk.idle.interrupt("after append", meanwhile)
    assert desk.give_back(checkout, conn) is None
    assert desk.core.holds(takers[0][0])
    assert desk.give_back(*takers[0]) == "drained"
    agree(desk.core)
