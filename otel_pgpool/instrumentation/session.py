"""The state of the instrumentation between ``instrument()`` and ``uninstrument()``."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from otel_pgpool.instrumentation.choices import Choices
from otel_pgpool.instrumentation.tracker import TRACKER_ATTR, PoolTracker
from otel_pgpool.instrumentation.unobserved import Unobserved
from otel_pgpool.instrumentation.watch import Watch
from otel_pgpool.pool.checkout import NEVER
from otel_pgpool.pool.utilization import SAMPLE_INTERVAL
from otel_pgpool.runtime import fork
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.failures import ObserverGuard
from otel_pgpool.runtime.text import LONGEST_NAME, printable
from otel_pgpool.runtime.thread_cache import reset_thread_cache
from otel_pgpool.telemetry.entry_spans import entry_spans
from otel_pgpool.types import DiscardReason, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from otel_pgpool.instrumentation.adapters.base import PoolReader, PoolTarget
    from otel_pgpool.instrumentation.options import InstrumentationOptions


MIN_PAUSE = 0.01
"""Minimum number of seconds between two passes of the background thread."""


def find_instances(classes: Collection[type]) -> Iterator[Any]:
    """Iterate over the objects of these classes that the garbage collector tracks."""
    for found in gc.get_referrers(*classes):  # an object refers to its class
        if type(found) in classes:
            yield found


def subclasses_of(cls: type) -> Iterator[type]:
    """Iterate over the subclasses of a class, direct and indirect, bases first."""
    derived: type
    for derived in cls.__subclasses__():
        yield derived
        yield from subclasses_of(derived)


class InstrumentationSession:
    """The pools tracked between ``instrument()`` and ``uninstrument()``; each adapter is created with its session.

    Args:
        options: the options of ``instrument()`` and of the environment.
        kinds: the kinds of which every pool is tracked; a pool of another kind is tracked only if it is selected. None
            for all kinds.
        choices: the pools that were selected or excluded.

    Attributes:
        options: the options of ``instrument()`` and of the environment.
        kinds: the kinds of which every pool is tracked.
        is_on: whether pools are tracked: False after ``uninstrument()``.
        trackers: the trackers of the pools, as the keys of a dictionary.
        watch: the background thread.
        guard: the log for errors of an adapter, at most one record a minute.
        unobserved: what a pool that is not observed has in the place of a tracker.
    """

    def __init__(
        self, options: InstrumentationOptions, kinds: Collection[str] | None = None, choices: Choices | None = None
    ) -> None:
        self.options = options
        self.kinds = kinds
        self._choices = Choices() if choices is None else choices
        self.guard = ObserverGuard("<not yet tracked>")
        self.is_on = True
        self.trackers: dict[PoolTracker, None] = {}
        self.unobserved: Any = Unobserved()  # not typed, because wrappers compare it with trackers
        self.watch = Watch(self)
        self._handed_out = 0  # number of checkouts at the last pass of the background thread
        # Guards the creation of trackers. Reentrant, because a pool may be collected under it.
        self._lock = threading.RLock()
        _sessions.add(self)
        if options.telemetry.caller:  # before any pool is known, whose first caller's span may have started then
            entry_spans.watch(options.tracer_provider)

    def select(self, pool: Any, owner: Any = None) -> None:
        """Select a pool of any kind to be tracked, and every later pool of its owner."""
        with self._lock:
            self._choices.select(pool, owner)
            self.unobserved.unmark(pool)

    def exclude(self, pool: Any, owner: Any = None) -> None:
        """End the tracker of a pool, and track neither the pool nor any later pool of its owner."""
        with self._lock:
            self._choices.exclude(pool, owner)
            tracker: PoolTracker | None = getattr(pool, TRACKER_ATTR, None)
            self.unobserved.mark(pool)
        if tracker is not None and tracker.watch is self.watch:
            self.trackers.pop(tracker, None)
            tracker.end(Outcome.RELEASED)

    def observes(self, pool: Any, kind: str, predecessor: PoolTracker | None = None, owner: Any = None) -> bool:
        """Return whether a pool is to be tracked; if not, mark the pool with `unobserved`.

        An adapter calls this before it computes anything for `track`, which calls it too. Wrappers need not call it for
        a pool that has the mark: the mark is removed when the pool is selected, and when the session ends.

        Args:
            pool: the pool, as for `track`.
            kind: the adapter's kind.
            predecessor: tracker of the pool that this one replaces.
            owner: the object that has the pool and may replace it, as an engine does.
        """
        with self._lock:
            chosen = self._choices.of(pool, owner) if self.is_on else False
            if chosen is None:
                chosen = self.kinds is None or kind in self.kinds or predecessor is not None
            if not chosen:
                self.ignore(pool)
            return chosen

    def ignore(self, pool: Any) -> None:
        """Mark a pool with `unobserved`, because it was not chosen or cannot be observed."""
        with self._lock:
            if self.is_on:
                self.unobserved.mark(pool)

    def track(
        self,
        pool: Any,
        adapter: PoolReader,
        *,
        name: str | None = None,
        target: PoolTarget | None = None,
        predecessor: PoolTracker | None = None,
        owner: Any = None,
    ) -> PoolTracker | None:
        """Return the tracker of a pool, created if necessary.

        The result is None if that fails, if the pool is not to be tracked, or if the instrumentation has ended.

        Args:
            pool: the pool.
            adapter: the adapter of this kind of pool.
            name: name of the pool, unless another pool has that name; by default the target's.
            target: where the pool connects to; by default the result of the adapter's method ``target``.
            predecessor: tracker of the pool that this one replaces; its name and totals are taken over.
            owner: the object that has the pool and may replace it.
        """
        try:
            if not self.observes(pool, adapter.kind, predecessor, owner):
                return None
            self._run_deferred()  # so that a pool that replaces a collected one gets its name
            with self._lock:
                if not self.observes(pool, adapter.kind, predecessor, owner):  # excluded or ended meanwhile
                    return None
                known: PoolTracker | None = getattr(pool, TRACKER_ATTR, None)
                if known is not None and known.watch is self.watch:  # another thread has created it
                    return known
                reset_thread_cache()
                target = adapter.target(pool) if target is None else target
                name = printable(target.name if name is None else name, LONGEST_NAME)
                tracker = PoolTracker(
                    pool, adapter, name, target, options=self.options, watch=self.watch, predecessor=predecessor
                )
                self.trackers[tracker] = None
                return tracker
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.guard.log_error(error)
            return None

    def run_once(self) -> float | None:
        """Do what is due; return the seconds until the next pass of the thread, or None to end the thread.

        The next pass is when the next long hold is due, after a `SAMPLE_INTERVAL` at most. When nothing was checked out
        since the last pass, and nothing is held, the thread parks.
        """
        self._run_deferred()
        if not self.is_on:
            return None
        now = monotonic()
        due = NEVER
        for tracker in self.trackers.copy():
            due = min(due, tracker.report_due(now) or NEVER)
        trackers = self.trackers.copy()
        before, self._handed_out = self._handed_out, sum(tracker.handed_out for tracker in trackers)
        if self._handed_out == before:
            self.watch.parked = True  # before looking for holds; a checkout adds its hold before it reads `parked`
            if all(tracker.is_at_rest for tracker in trackers):
                return NEVER
            self.watch.parked = False
        return max(MIN_PAUSE, min(due - monotonic(), SAMPLE_INTERVAL, self.options.long_hold))

    def _run_deferred(self) -> None:
        """Make the calls that finalizers have deferred, and end the trackers of collected pools."""
        self.watch.run_deferred()
        for tracker in self.trackers.copy():
            if tracker.pool is None:
                with suppress(KeyError):  # another thread ends the tracker
                    del self.trackers[tracker]
                    tracker.end(Outcome.RECLAIMED, DiscardReason.RECLAIMED)

    def defer(self, action: Callable[[], object]) -> None:
        """Leave a call to the background thread. For finalizers, which must do nothing else."""
        self.watch.defer(action)

    def end(self) -> None:
        """End every tracker and the background thread."""
        with self._lock:  # no tracker is created after this, and no pool marked
            self.is_on = False
            self.unobserved.unmark_all()
        self._run_deferred()
        for tracker in list(self.trackers):
            tracker.end(Outcome.RELEASED)
            with suppress(AttributeError):  # the pool is collected, or does not allow it
                delattr(tracker.pool, TRACKER_ATTR)
        self.trackers.clear()
        self.watch.end()

    def reset_after_fork(self) -> None:
        """Replace the lock and the thread in a forked child."""
        self._lock = threading.RLock()
        self.watch.reset(self)


_sessions: weakref.WeakSet[InstrumentationSession] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session.reset_after_fork()


fork.register(_after_fork)  # runs after the resets of the trackers, which the registry of pools has registered
