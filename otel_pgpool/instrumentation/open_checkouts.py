"""The connections of an instrumented pool, the checkouts that wait for one or hold one, and the totals.

A checkout that leaves neither span nor record is kept in a light form until there is something to report about it.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.pool import figures
from otel_pgpool.pool.call_site import places
from otel_pgpool.pool.checkout import ACQUIRED, NEVER, ManualCheckout, Slot, begin
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.gc_state import COLLECTING, find_object, is_collecting_here
from otel_pgpool.types import CheckoutPath, PoolStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from otel_pgpool.instrumentation.adapters.base import Levels, PoolReader
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.stats import PoolStats


class TaskCheckout(ManualCheckout):
    """A checkout from a pool for coroutines."""

    __slots__ = ("caller", "task")


RELEASE_WITHIN = 1.0
"""Seconds within which the holder of a connection releases it, if the garbage collector closes the holder's code."""

LightCheckout = tuple[Any, ...]
"""The time of the request or of the hand-over, the holder, and code and instruction of up to four call sites.

No light checkout waits between the two times. The innermost call site is the first. The holder is a thread, or a pair
of a thread and a reference to a task, or None instead of the reference.
"""


def from_light(light: LightCheckout, slot: Slot) -> ManualCheckout:
    """Return the record of a checkout in the light form."""
    acquired, holder = light[:2]
    checkout = begin(acquired, _stack_of(light))
    _set_holder(checkout, holder)
    checkout.is_observed = False
    checkout.path = CheckoutPath.IDLE.value
    checkout.acquired = acquired
    checkout.slot = slot
    checkout.held = True
    return checkout


def _stack_of(light: LightCheckout) -> Stack:
    return tuple(chain.from_iterable(dict.fromkeys(places(light[2:]))))  # a short one repeats its last call site


def _set_holder(checkout: ManualCheckout, holder: Any) -> None:
    if type(holder) is tuple:
        checkout.thread, checkout.task = holder
    else:
        checkout.thread = holder


class TrackedSlot(Slot):
    """The slot of an instrumented pool's connection."""

    __slots__ = ("_adapter", "_class", "_pid")

    def __init__(self, conn: Any, serial: int, adapter: PoolReader) -> None:
        super().__init__()
        self.serial = serial
        self.key = id(conn)
        self._adapter = adapter
        self._pid = adapter.backend_pid(conn)
        self._class = type(conn)
        self.local_port = adapter.local_port(conn)

    def is_of(self, conn: Any) -> bool:
        """Return whether an object at the address of this slot's connection is that connection."""
        return type(conn) is self._class and self._adapter.backend_pid(conn) in (self._pid, 0)

    @property
    def pid(self) -> int:
        """Process id of the backend; 0 if it cannot be determined."""
        if not self._pid:
            with ignore_errors:
                conn = self.ref()
                self._pid = 0 if conn is None else self._adapter.ask_backend_pid(conn)
        return self._pid

    @pid.setter
    def pid(self, pid: int) -> None:
        self._pid = pid


OWN_COUNTERS = ("idle_checkouts", "queued_checkouts", "new_checkouts", "hold_seconds")
COUNTERS = (*figures.COUNTERS, *OWN_COUNTERS)
"""The counters that are summed up; each is named as its field of `PoolStats`, or after its path."""


class PastTotals(NamedTuple):
    """The totals of the pools that a pool has replaced.

    It is only replaced as a whole, so that each reader counts each of these pools once.
    """

    counts: Mapping[str, Any]
    """The sums, by counter, of the pools that are finished."""
    predecessors: tuple[OpenCheckouts, ...]
    """The totals of the other pools, which may still be in use."""


NO_PAST = PastTotals(dict.fromkeys(COUNTERS, 0), ())


class OpenCheckouts(figures.Counters):
    """The connections, the open checkouts and the totals of one pool.

    There is no lock: after each step the state is consistent for other threads. Counters are changed by plain ``+=``,
    within which CPython does not switch threads: it does so at calls and backward jumps only.
    """

    __slots__ = (
        *(
            "_last_serial",
            "_pool",
            "adapter",
            "discards",
            "held",
            "is_replaced",
            "light",
            "past",
            "slots",
            "cleared",
            "waiting",
        ),
        *OWN_COUNTERS,
    )

    adapter: PoolReader
    _pool: weakref.ref[Any]
    idle_checkouts: int
    queued_checkouts: int
    new_checkouts: int
    hold_seconds: float

    def __init__(self) -> None:
        self.is_replaced = False  # by a pool whose totals include these
        self.reset()

    def reset(self) -> None:
        """Reset all totals, and drop all checkouts and connections."""
        self.reset_counters()
        self.idle_checkouts = self.queued_checkouts = self.new_checkouts = 0
        self.hold_seconds = 0.0
        self.discards: dict[str, int] = defaultdict(int)  # by reason; a Counter calls Python code for each new key
        self.past = NO_PAST
        self._last_serial = 0
        self.slots: dict[int, TrackedSlot] = {}  # slots of the known connections, by id of the connection
        # Slots whose weak reference the garbage collector has cleared, and when, by id of the connection. The
        # connection may still exist: the garbage collector may close the code that holds it, such as a generator, which
        # then releases it.
        self.cleared: dict[int, tuple[float, TrackedSlot]] = {}
        # Checkouts that hold a connection, in the order of their acquisition; and those in the light form, by id of the
        # connection.
        self.held: dict[ManualCheckout, None] = {}
        self.light: dict[int, LightCheckout] = {}
        self.waiting: dict[ManualCheckout, None] = {}

    @property
    def pool(self) -> Any:
        """The pool, or None if it was collected."""
        return self._pool()

    # Connections

    def register(self, conn: Any) -> TrackedSlot:
        """Register a connection and return its slot, which may be one of those in `cleared`."""
        _since, slot = self.cleared.pop(id(conn), (0.0, None))
        if slot is not None and not slot.is_of(conn):
            self.connection_collected(slot)
            slot = None
        if slot is None:
            self._last_serial += 1
            slot = TrackedSlot(conn, self._last_serial, self.adapter)
        try:
            slot.ref = weakref.ref(conn, partial(_collected, weakref.ref(self), slot.key))
        except Exception:  # noqa: BLE001 - a connection of the application's factory may not allow weak references
            slot.ref = lambda: None  # type: ignore[assignment]  # only called, as a weak reference is
        self.slots[slot.key] = slot
        return slot

    def slot_of(self, conn: Any) -> TrackedSlot:
        """Return the slot of a connection, which is registered if necessary."""
        return self.slots.get(id(conn)) or self.register(conn)

    def restore_cleared(self, conn: Any) -> TrackedSlot | None:
        """Register a connection again if its slot is in `cleared`; return the slot, or None if it is not there."""
        return self.register(conn) if id(conn) in self.cleared else None

    def check_cleared(self, now: float) -> None:
        """Register again the connections of `cleared` slots that still exist, and handle the others as collected."""
        for key, (since, slot) in self.cleared.copy().items():
            if COLLECTING or since + RELEASE_WITHIN > now:
                continue
            conn = find_object(key)
            if conn is not None and slot.is_of(conn):
                self.restore_cleared(conn)
            elif self.cleared.pop(key, None) is not None:
                self.connection_collected(slot)

    def connection_collected(self, slot: Slot) -> None:
        """Handle a registered connection that was collected. Finalizers call this, so it may only defer."""

    # Checkouts

    def promote_checkout_of(self, conn: Any) -> ManualCheckout | None:
        """Turn the light checkout of a connection into a record, and return the record."""
        return self.promote(self.slot_of(conn))

    def promote(self, slot: Slot) -> ManualCheckout | None:
        """Turn a light checkout into a record and return it; None if the hold has ended in the meantime."""
        light = self.light.get(slot.key)
        if light is None:
            return None
        checkout = from_light(light, slot)
        slot.checkout = checkout  # before the light form is removed, so that a concurrent release finds one of the two
        self.held[checkout] = None
        removed = self.light.pop(slot.key, None)
        if removed is None:  # the connection was released in between
            if slot.checkout is checkout:
                slot.checkout = None
            self.held.pop(checkout, None)
            return None
        if removed is not light:  # the connection was released and checked out again in between
            checkout.acquired = checkout.started = removed[0]
            checkout.stack = _stack_of(removed)
            _set_holder(checkout, removed[1])
        return checkout

    def promote_all(self, acquired_before: float = NEVER) -> None:
        """Turn every light checkout that began before a time into a record."""
        for key, light in self.light.copy().items():
            slot = self.slots.get(key) if light[0] <= acquired_before else None
            if slot is not None:
                self.promote(slot)

    def all_held(self) -> list[ManualCheckout]:
        """Return every checkout that holds a connection, the longest hold first."""
        self.promote_all()
        return sorted(self.held.copy(), key=ACQUIRED)

    def recorded_holds(self) -> list[ManualCheckout]:
        """Return the checkouts that hold a connection, except for light ones, which are not long yet."""
        return list(self.held.copy())

    def oldest_hold(self) -> float:
        """Return the age of the oldest hold in seconds; 0 if there is none."""
        now = monotonic()
        return max(0.0, now - min(self.hold_starts(self.held.copy()), default=now))

    def hold_starts(self, checkouts: Iterable[ManualCheckout]) -> list[float]:
        """Return when the holds of these checkouts and of the light ones began.

        The result is not sorted: in `held`, a former light checkout comes after younger checkouts.
        """
        return [checkout.acquired for checkout in checkouts] + [light[0] for light in self.light.copy().values()]

    # Totals

    @property
    def handed_out(self) -> int:
        """Number of checkouts that received a connection."""
        return self.idle_checkouts + self.queued_checkouts + self.new_checkouts

    def continue_from(self, predecessor: OpenCheckouts) -> None:
        """Take over the totals of a predecessor and of its predecessors, whose pools may still be in use."""
        predecessor.is_replaced = True  # first, so that the predecessor never reports a part of its totals
        counts, predecessors = predecessor.past
        self.past = PastTotals(counts, (*predecessors, predecessor))
        predecessor.past = NO_PAST
        self.discards = predecessor.discards

    @property
    def is_finished(self) -> bool:
        """Whether no total can change any more: the pool was collected, and every connection was released."""
        return self.pool is None and not (self.held or self.light)

    def _merge_finished(self) -> PastTotals:
        """Add up the totals of finished predecessors, and return the past.

        Several threads may do so at the same time: the result of each is right.
        """
        past = self.past
        finished = {each for each in past.predecessors if each.is_finished}
        if finished:
            counts = {
                counter: sum((getattr(each, counter) for each in finished), before)
                for counter, before in past.counts.items()
            }
            past = self.past = PastTotals(counts, tuple(each for each in past.predecessors if each not in finished))
        return past

    def statistics(self, name: str, levels: Levels, *, connecting: int, is_unreachable: bool) -> PoolStats:
        """Return the levels and the totals, which are 0 once another pool's totals include them."""
        past = self._merge_finished()
        is_replaced = self.is_replaced  # read after the past, which `continue_from` moves
        past, parts = (NO_PAST, ()) if is_replaced else (past, (self, *past.predecessors))

        def total(counter: str) -> Any:
            return sum((getattr(part, counter) for part in parts), past.counts[counter])

        return figures.make_stats(
            name=name,
            status=PoolStatus.CLOSED if levels.closed else PoolStatus.UNREACHABLE if is_unreachable else None,
            minconn=levels.minconn,
            maxconn=levels.maxconn,
            size=levels.used + levels.idle,
            used=levels.used,
            idle=levels.idle,
            connecting=connecting,
            waiting=sum(len(part.waiting) for part in parts),
            oldest_hold=self.oldest_hold(),
            checkouts={path.value: total(f"{path}_checkouts") for path in CheckoutPath},
            discarded={} if is_replaced else dict(self.discards),
            **{counter: total(counter) for counter in COUNTERS if not counter.endswith("_checkouts")},
            maxidle=levels.maxidle,
        )


def _collected(known_ref: weakref.ref[OpenCheckouts], key: int, ref: weakref.ref[Any]) -> None:
    """Drop the slot of a collected connection. A finalizer, so it calls nothing that takes a lock."""
    known = known_ref()
    slot = None if known is None else known.slots.get(key)
    if known is None or slot is None or slot.ref is not ref:
        return
    known.promote(slot)  # because another connection may get this address
    known.slots.pop(key, None)
    if slot.checkout is not None and is_collecting_here():
        known.cleared[key] = monotonic(), slot
    else:
        known.connection_collected(slot)
