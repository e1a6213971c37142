"""The metrics of the pools: durations are recorded in histograms; levels and totals are read when a reader collects."""

from __future__ import annotations

import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from otel_pgpool._version import __version__
from otel_pgpool.runtime import fork
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.telemetry import names, sdk_internals
from otel_pgpool.telemetry.callers import Callers
from otel_pgpool.telemetry.connect_failures import ConnectFailures
from otel_pgpool.telemetry.observables import CONNECTIONS, OBSERVABLES, TOTAL, Observable
from otel_pgpool.telemetry.pools_by_name import PoolsByName

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from otel_pgpool.observer import ObservedPool

WAIT_BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)
USE_BOUNDARIES = (*WAIT_BOUNDARIES, 60.0, 300.0)
HISTOGRAMS = (
    (names.METRIC_WAIT_TIME, "The time it took to obtain an open connection from the pool.", WAIT_BOUNDARIES),
    (names.METRIC_USE_TIME, "The time between borrowing a connection and returning it to the pool.", USE_BOUNDARIES),
    (names.METRIC_CREATE_TIME, "The time it took to create a new connection.", WAIT_BOUNDARIES),
)

KEPT_AFTER_THE_END = 150.0
"""Seconds for which a reader gets the end of a pool: 2.5 times the SDK's default interval, as an export may fail."""

KEPT_IF_READER_UNKNOWN = 600.0
"""Seconds for which every reader gets the end of a pool if the readers cannot be distinguished."""


class Instruments:
    """The eighteen instruments of one meter, and the pools that they report.

    One callback for each instrument iterates over the pools, because a callback cannot be removed and a second
    registration of an instrument's name is ignored. A callback takes no lock of this package and creates no instrument,
    since the SDK calls it under a lock of its own. So one collection follows the other, and in each the callbacks run
    in the order of their creation.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(names.SCOPE, __version__, provider, names.SCHEMA_URL)
        self._pools = PoolsByName()
        # By name of the pool.
        self._callers: weakref.WeakValueDictionary[str, Callers] = weakref.WeakValueDictionary()
        self._connect_failures: weakref.WeakValueDictionary[str, ConnectFailures] = weakref.WeakValueDictionary()
        self._reader: Any = None  # the reader that collects; None if unknown
        self._histograms = tuple(
            meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=boundaries)
            for name, description, boundaries in HISTOGRAMS
        )
        self.wait_time, self.use_time, self.create_time = self._histograms
        self.recording_gate = sdk_internals.recording_gate(self.wait_time)
        self._observables: dict[str, Any] = {}
        for each in OBSERVABLES:
            create = getattr(meter, f"create_observable_{each.kind}")
            self._observables[each.name] = create(each.name, [self._callback(each)], each.unit, each.description)
        self._observables[names.METRIC_CONNECT_FAILURES] = meter.create_observable_counter(
            names.METRIC_CONNECT_FAILURES,
            [lambda _options: self._observe_totals(names.METRIC_CONNECT_FAILURES)],
            CONNECTIONS,
            "Attempts to connect that failed, by the type of their error.",
        )
        self._observables[names.METRIC_HELD] = meter.create_observable_up_down_counter(
            names.METRIC_HELD, [self._observe_held], CONNECTIONS, "Connections that are checked out, by the caller."
        )

    def report(self, pool: ObservedPool, callers: Callers | None = None) -> None:
        """Report a pool in all further collections.

        Its levels are reported until it is closed or collected, its totals until every reader has collected them.

        Args:
            pool: the pool.
            callers: the callers of the pools of its name, if its holds are to be reported by the caller.
        """
        if not pool.closed:  # a forked child attaches closed pools too
            self._pools.report(pool, callers, self.connect_failures_of(pool))

    def callers_of(self, pool: ObservedPool) -> Callers:
        """Return the callers of the pools of a pool's name, which are kept as long as the totals of the name."""
        with _lock:
            return self._callers.setdefault(pool.name, Callers())

    def connect_failures_of(self, pool: ObservedPool) -> ConnectFailures:
        """Return the failed attempts to connect of the pools of a pool's name, kept as long as the name's totals."""
        with _lock:
            return self._connect_failures.setdefault(pool.name, ConnectFailures())

    def reset_after_fork(self) -> None:
        """Drop what was collected in the parent process, in a forked child."""
        dropped = sdk_internals.drop_all_series(self._all())
        self._pools.reset_after_fork(totals_dropped=dropped)
        for callers in list(self._callers.values()):
            callers.reset_after_fork(series_dropped=dropped)
        for failures in list(self._connect_failures.values()):
            failures.reset_after_fork()

    def _all(self) -> tuple[Any, ...]:
        return (*self._histograms, *self._observables.values())

    def _callback(self, observable: Observable) -> Callable[[CallbackOptions], Iterable[Observation]]:
        is_first, is_total = observable is OBSERVABLES[0], observable.kind == TOTAL

        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            if is_first:
                self._begin()
            yield from self._observe_totals(observable.name) if is_total else self._observe_levels(observable)

        return callback

    def _observe_levels(self, observable: Observable) -> Iterable[Observation]:
        for pools in self._pools.shown:
            if pools.levels is not None:
                for value, attributes in observable.read(pools.levels):
                    yield Observation(value, {names.ATTR_POOL_NAME: pools.name, **attributes})

    def _observe_held(self, _options: CallbackOptions) -> Iterable[Observation]:
        for pools in self._pools.shown:
            for caller, count in pools.held.items():
                yield Observation(count, {names.ATTR_POOL_NAME: pools.name, names.ATTR_CALLER: caller})

    def _observe_totals(self, metric: str) -> Iterable[Observation]:
        # A sum over all names must include the totals of dropped names.
        for pools in self._pools.all_names() if self._merges_names(metric) else self._pools.shown:
            for attributes, value in pools.totals[metric].items():
                yield Observation(value, {names.ATTR_POOL_NAME: pools.name, **dict(attributes)})

    def _merges_names(self, metric: str) -> bool:
        """Return whether the reader has a view that drops the attribute with the pool's name."""
        instrument = self._observables.get(metric)
        return self._reader is not None and sdk_internals.drops_attribute(
            self._reader, instrument, names.ATTR_POOL_NAME
        )

    def _begin(self) -> None:
        """Begin a collection: find pools that have ended, and drop names that need no further export."""
        if not fork.is_here:
            fork.renew()  # otherwise the parent's totals would be exported as this process's
        reader = sdk_internals.collecting_reader(sys._getframe(1))  # noqa: SLF001 - the reader is found by its frame
        readers = sdk_internals.all_readers(self._all())
        self._reader = reader
        sdk_internals.drop_uncollected(readers, self._observables.values())
        now, kept = monotonic(), KEPT_AFTER_THE_END if reader is not None else KEPT_IF_READER_UNKNOWN
        self._pools.begin(self if reader is None else reader, now, kept)
        if reader is None or not readers:
            return
        ended = set(self._pools.ended_names([reader], now, kept))
        if ended:
            sdk_internals.drop_series([reader], self._histograms, _is_named(ended), sdk_internals.is_exported)
        surplus = self._pools.surplus(readers, now, kept)
        if surplus and sdk_internals.drop_series(readers, self._all(), _is_named(surplus)):
            self._pools.drop(surplus)
            for name in surplus:  # a closed pool that the program keeps would hand its count on
                self._connect_failures.pop(name, None)


def _is_named(ended: Collection[str]) -> Callable[[dict[str, Any]], bool]:
    return lambda attributes: attributes.get(names.ATTR_POOL_NAME) in ended


# Guards the creation of instruments. Reentrant: a signal handler, or a generator that the garbage collector closes, may
# use a new pool meanwhile.
_lock = threading.RLock()
_instruments: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()
_default: list[Instruments] = []


def instruments(provider: MeterProvider | None) -> Instruments:
    """Return the instruments of a meter provider, or of the global one; create them at the first call."""
    with _lock:
        if provider is None:
            if not _default:
                _default.append(Instruments(None))
            return _default[0]
        if provider not in _instruments:
            _instruments[provider] = Instruments(provider)
        return _instruments[provider]


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the parent may have held it at the moment of the fork
    _lock = threading.RLock()
    for known in [*_default, *_instruments.values()]:
        known.reset_after_fork()


fork.register(_after_fork)
