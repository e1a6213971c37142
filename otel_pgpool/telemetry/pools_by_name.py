"""PoolsByName for the pools of each name: the levels of the open pool, and the totals of all past and present pools.

A total must not decrease, and must not be lost with its pool. A new pool therefore continues the totals of its name,
and the totals of a name without a pool are reported until every reader has exported them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.telemetry import names
from otel_pgpool.telemetry.observables import TOTALS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from otel_pgpool.observer import ObservedPool
    from otel_pgpool.pool.checkout import Checkout
    from otel_pgpool.stats import PoolStats
    from otel_pgpool.telemetry.callers import Callers
    from otel_pgpool.telemetry.connect_failures import ConnectFailures

    Attributes = tuple[tuple[str, str], ...]
    CountsByMetric = dict[str, Counter[Attributes]]
    """Counts by metric, then by attributes."""

MAX_UNREPORTED = 1_000
"""Maximum number of names of ended pools kept for readers that have not collected since; some may never collect."""

MAX_REPORTED = 100
"""Maximum number of names of ended pools kept for future pools after every reader has exported their end."""

LONGEST_FINALIZATION = 60.0
"""Seconds in which a collected pool leaves its final figures, unless its class has a finalizer that leaves none."""


class PoolFigures:
    """The figures of a pool, which is referenced weakly, and the final figures that the pool leaves."""

    def __init__(self, pool: ObservedPool) -> None:
        self.name = pool.name
        self.pool = weakref.ref(pool)
        self.final = pool.last_figures
        self._seen: PoolStats | None = None
        self._gone_since: float | None = None

    def stats(self) -> PoolStats | None:
        """Return the pool's figures, or its final ones; None if there are none."""
        pool = self.pool()
        stats = self.final.stats if pool is None else pool.stats()
        if stats is not None:
            self._seen = stats
        return self._seen

    def check_gone(self, now: float) -> bool:
        """Return whether the pool was collected, and has left its final figures or will not leave any.

        The garbage collector clears the weak reference before the pool's finalizer stores the figures. In between, the
        finalizers of other objects may run, which may take their time, and other threads.
        """
        if self.pool() is not None:
            return False
        if self._gone_since is None:
            self._gone_since = now
        return self.final.stats is not None or now - self._gone_since >= LONGEST_FINALIZATION

    def reset_after_fork(self) -> None:
        """Drop figures that were read in another process."""
        self._seen = None


class NamedPools:
    """The totals and levels of the pools of one name."""

    def __init__(
        self, name: str, callers: Callers | None = None, connect_failures: ConnectFailures | None = None
    ) -> None:
        self.name = name
        self._callers = callers
        self._connect_failures = connect_failures
        self._pools: dict[int, PoolFigures] = {}  # by id of the container of their final figures
        self._past = _nothing()  # totals of collected pools
        self.levels: PoolStats | None = None
        """Figures of the open pool, or None."""
        self.held: Mapping[str, int] = {}
        """Connections of the open pool that are held, by the caller; 0 for each caller of this name that holds none."""
        self.totals = _nothing()
        """Totals of all pools of this name; never less than reported before."""
        # When each reader first collected the end. Weak references, because a removed reader occupies much memory.
        self._first_collections: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def add(self, figures: PoolFigures) -> None:
        """Add a pool, or a pool that a forked child reports again."""
        self._pools[id(figures.final)] = figures
        self._first_collections.clear()

    def merge(self, other: NamedPools) -> None:
        """Add other pools of the same name."""
        self._callers = other._callers or self._callers
        self._connect_failures = other._connect_failures or self._connect_failures
        for figures in other._pools.values():
            self.add(figures)
        for metric, past in other._past.items():
            self._past[metric].update(past)
        self._first_collections.clear()

    def merge_collected(self, now: float) -> None:
        """Replace collected pools by their totals."""
        for key, figures in [each for each in self._pools.items() if each[1].check_gone(now)]:
            stats = figures.stats()
            if stats is not None:
                _add(self._past, stats)
            del self._pools[key]

    def is_open(self) -> bool:
        """Return whether a pool of this name is open."""
        return any(not pool.closed for pool in self._live())

    def is_active(self) -> bool:
        """Return whether a pool of this name is open, or has connections that are still checked out."""
        return any(not pool.closed or _holds(pool.stats()) for pool in self._live())

    def _live(self) -> list[ObservedPool]:
        return [pool for figures in self._pools.values() if (pool := figures.pool()) is not None]

    def read(self) -> None:
        """Read the figures of all pools."""
        self.levels = None
        holds: Sequence[Checkout] = ()
        counted = {metric: Counter(past) for metric, past in self._past.items()}
        for figures in self._pools.values():
            pool, stats = figures.pool(), figures.stats()
            if stats is not None:
                _add(counted, stats)
                if pool is not None and not pool.closed:
                    self.levels = stats
                    holds = cast("Sequence[Checkout]", pool.held_checkouts()) if self._callers else ()
        self.held = self._callers.count(holds) if self._callers else {}
        if self._connect_failures is not None:
            counted[names.METRIC_CONNECT_FAILURES].update(
                {((names.ATTR_ERROR_TYPE, name),): count for name, count in self._connect_failures.counts().items()}
            )
        for metric, counts in counted.items():
            reported = self.totals[metric]
            for attributes, value in counts.items():
                reported[attributes] = max(reported[attributes], value)

    def note_collection(self, reader: object, now: float) -> None:
        """Note that a reader collects after the end of this name's pools."""
        self._first_collections.setdefault(reader, now)

    def has_exported_end(self, reader: object, now: float, kept: float) -> bool:
        """Return whether a reader has exported the end for at least ``kept`` seconds."""
        first = self._first_collections.get(reader, now)
        return first < now and now - first >= kept

    def add_totals(self, other: NamedPools) -> None:
        """Add the totals that the pools of another name have reported."""
        for metric, counts in other.totals.items():
            self._past[metric].update(counts)
        self.read()

    def reset_after_fork(self, *, totals_dropped: bool) -> None:
        """Reset the totals in a forked child: to 0 if the SDK has dropped the parent's, or else to those reported."""
        self._pools = {key: figures for key, figures in self._pools.items() if figures.pool() is not None}
        for figures in self._pools.values():
            figures.reset_after_fork()
        if totals_dropped:
            self.totals = _nothing()
        self._past = {metric: Counter(counts) for metric, counts in self.totals.items()}
        self._first_collections.clear()


def _holds(stats: PoolStats) -> bool:
    """Return whether a connection is checked out, which a closed instrumented pool may not count as used."""
    return bool(stats.used or stats.oldest_hold)


def _nothing() -> CountsByMetric:
    return {metric: Counter() for metric in (*TOTALS, names.METRIC_CONNECT_FAILURES)}


def _add(totals: CountsByMetric, stats: PoolStats) -> None:
    for metric, read in TOTALS.items():
        totals[metric].update({tuple(attributes.items()): value for value, attributes in read(stats)})


class PoolsByName:
    """The pools of one meter, by name.

    Pools are added from any thread; everything else happens during a collection. There is no lock here, because the SDK
    runs one collection at a time under a lock of its own.
    """

    def __init__(self) -> None:
        self._new: dict[int, NamedPools] = {}  # pools added since the last collection, in order
        self._numbers = count()
        self._limit = MAX_UNREPORTED
        self._open: dict[str, NamedPools] = {}
        self._ended: dict[str, NamedPools] = {}  # the earliest ended first
        self._dropped = NamedPools("")
        self.shown: list[NamedPools] = []
        """The pools that the present collection reports, by name."""

    def report(
        self, pool: ObservedPool, callers: Callers | None = None, connect_failures: ConnectFailures | None = None
    ) -> None:
        """Report a pool in all further collections, and its holds by the caller if ``callers`` is given."""
        if len(self._new) >= self._limit:
            self._compact()
        new = NamedPools(pool.name, callers, connect_failures)
        new.add(PoolFigures(pool))
        self._new[next(self._numbers)] = new

    def _compact(self) -> None:
        """Merge the collected pools of each name, and bound the number of names, while no reader collects."""
        gone: dict[str, NamedPools] = {}
        for number, new in list(self._new.items()):
            # Another thread may do the same at this moment. The thread that pops an entry processes it.
            if not new.is_active() and self._new.pop(number, None) is not None:
                gone.setdefault(new.name, NamedPools(new.name)).merge(new)
        for pools in list(gone.values())[-MAX_UNREPORTED:]:
            pools.merge_collected(monotonic())
            self._new[next(self._numbers)] = pools
        self._limit = 2 * max(MAX_UNREPORTED, len(self._new))

    def begin(self, reader: object, now: float, kept: float) -> None:
        """Begin the collection of a reader, which gets the end of each name once, and again for ``kept`` seconds."""
        self._add_new()
        for name, pools in list(self._open.items()):
            pools.merge_collected(now)
            if not pools.is_active():
                self._ended[name] = self._open.pop(name)
        for pools in self._ended.values():
            pools.merge_collected(now)
            pools.note_collection(reader, now)
        shown = [pools for pools in self._ended.values() if not pools.has_exported_end(reader, now, kept)]
        self.shown = [*self._open.values(), *shown]
        for pools in self.shown:
            pools.read()

    def _add_new(self) -> None:
        for number in list(self._new):
            new = self._new.pop(number, None)
            if new is not None:
                name = new.name
                pools = self._open.get(name) or self._ended.pop(name, None) or NamedPools(name)
                self._open[name] = pools
                pools.merge(new)

    def all_names(self) -> list[NamedPools]:
        """Return the pools of every name, including names that this collection leaves out, and dropped ones as one."""
        return [*self._open.values(), *self._ended.values(), self._dropped]

    def ended_names(self, readers: Collection[object], now: float, kept: float) -> Iterator[str]:
        """Iterate over the names whose end all given readers have exported, the earliest ended first."""
        for name, pools in self._ended.items():
            if all(pools.has_exported_end(reader, now, kept) for reader in readers):
                yield name

    def surplus(self, readers: Collection[object], now: float, kept: float) -> set[str]:
        """Return the names above the limits `MAX_REPORTED` and `MAX_UNREPORTED`."""
        exported = list(self.ended_names(readers, now, kept))
        kept_back = {*exported, *(pools.name for pools in self.shown)}
        unexported = [name for name in self._ended if name not in kept_back]
        return {*exported[:-MAX_REPORTED], *unexported[:-MAX_UNREPORTED]}

    def drop(self, names: Collection[str]) -> None:
        """Drop names. The SDK must have dropped their series before, because it would see their totals decrease."""
        for name in names:
            self._dropped.add_totals(self._ended.pop(name))

    def reset_after_fork(self, *, totals_dropped: bool) -> None:
        """Reset all in a forked child, without the parent's totals and without pools that ended there."""
        for pools in [*self._new.values(), *self.all_names()]:
            pools.reset_after_fork(totals_dropped=totals_dropped)
        self._new = {number: new for number, new in self._new.items() if new.is_open()}
        if totals_dropped:
            self._open = {name: pools for name, pools in self._open.items() if pools.is_open()}
            self._ended.clear()
