"""The pools' metrics: durations are pushed into histograms, levels and totals are read when a reader asks."""

from __future__ import annotations

import threading
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from otel_pgpool import _fork
from otel_pgpool._version import __version__
from otel_pgpool.telemetry import names, series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_pgpool._observer import ObservedPool, PoolStats

    Reading = Callable[[PoolStats], Iterable[tuple[float, dict[str, str]]]]

WAIT_BOUNDARIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)
USE_BOUNDARIES = (*WAIT_BOUNDARIES, 60.0, 300.0)


KEPT_AFTER_THE_END = 60.0
"""Seconds for which a closed pool's histograms stay: what a reader may ask twice is there twice."""


class Silence:
    """While ``_real_instrument`` is None, ordinary checkouts leave nothing.

    So it is with the API's own histograms until somebody sets the global provider, and they stand here themselves: to
    ask a method would cost a tenth of what it saves.
    """

    _real_instrument: Any = None


class Instruments:
    """The sixteen instruments of one meter, and the pools that they report.

    One callback for each instrument walks the pools, because a callback cannot be removed and a second registration
    of a name is dropped. It takes no lock of ours and makes no instrument: the SDK calls it under a lock of its own.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(names.SCOPE, __version__, provider, names.SCHEMA_URL)
        # By id; copied at once by list(), as no WeakSet is. With the name, which is asked for when the pool is gone.
        self._pools: dict[int, tuple[weakref.ref[ObservedPool], str]] = {}
        self._over: dict[str, float] = {}  # names of pools that have ended, and the collection that exported their end
        self.wait_time = meter.create_histogram(
            names.WAIT_TIME_METRIC,
            "s",
            "The time it took to obtain an open connection from the pool.",
            explicit_bucket_boundaries_advisory=WAIT_BOUNDARIES,
        )
        self.use_time = meter.create_histogram(
            names.USE_TIME_METRIC,
            "s",
            "The time between borrowing a connection and returning it to the pool.",
            explicit_bucket_boundaries_advisory=USE_BOUNDARIES,
        )
        self.create_time = meter.create_histogram(
            names.CREATE_TIME_METRIC,
            "s",
            "The time it took to create a new connection.",
            explicit_bucket_boundaries_advisory=WAIT_BOUNDARIES,
        )
        self.silence: Any = self.wait_time if hasattr(self.wait_time, "_real_instrument") else None
        self._histograms = (self.wait_time, self.use_time, self.create_time)
        self._observables = [
            create(name, [self._callback(read, first=number == 0)], unit, description)
            for number, (create, name, unit, description, read) in enumerate(_observables(meter))
        ]

    def forget_records(self) -> None:
        """Drop what the histograms have gathered: in a forked child, the parent's."""
        series.forget_all(self._histograms)

    def report(self, pool: ObservedPool) -> None:
        """Report a pool from now on, until it is closed or collected."""
        gone = self._pools.get(id(pool))
        if gone is not None and gone[1] != pool.name:  # one that was dropped, whose id has come round
            self._over[gone[1]] = monotonic()
        self._pools[id(pool)] = weakref.ref(pool), pool.name

    def _callback(self, read: Reading, *, first: bool) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            if first:
                self._forget_the_exported()
            for key, known in list(self._pools.items()):
                pool = known[0]()
                if pool is None or pool.closed:
                    if self._pools.get(key) is known:
                        self._pools.pop(key, None)
                        self._over[known[1]] = monotonic()
                    continue
                for value, attributes in read(pool.stats()):
                    yield Observation(value, {names.POOL_NAME: pool.name, **attributes})

        return observe

    def _forget_the_exported(self) -> None:
        """Let go of pools whose end was exported a while ago."""
        now = monotonic()
        over = {name for name, since in self._over.items() if now - since >= KEPT_AFTER_THE_END}
        for name in over:
            del self._over[name]
        over -= {name for _ref, name in self._pools.values()}  # a new pool may have the name
        if over:
            series.forget(
                (*self._histograms, *self._observables), lambda attributes: attributes.get(names.POOL_NAME) in over
            )


def _observables(meter: metrics.Meter) -> Iterable[tuple[Callable[..., object], str, str, str, Reading]]:
    level, total, gauge = (
        meter.create_observable_up_down_counter,
        meter.create_observable_counter,
        meter.create_observable_gauge,
    )
    return (
        (level, names.COUNT, "{connection}", "Connections that are in the state that the attribute names.", _states),
        (level, names.MAX, "{connection}", "The maximum number of open connections allowed.", _maximum),
        (level, names.IDLE_MIN, "{connection}", "The minimum number of idle open connections allowed.", _minimum),
        (level, names.IDLE_MAX, "{connection}", "The maximum number of idle open connections allowed.", _maximum_idle),
        (level, names.PENDING_REQUESTS, "{request}", "Requests that wait for a connection.", _figure("waiting")),
        (total, names.TIMEOUTS, "{timeout}", "Requests that got no connection in time.", _figure("timeouts")),
        (gauge, names.UTILIZATION, "1", "Fraction of the maximum that is in use.", _utilization),
        (gauge, names.OLDEST_HOLD, "s", "Age of the oldest hold still out, 0 if none.", _figure("oldest_hold")),
        (total, names.CHECKOUTS, "{checkout}", "Checkouts served, by the path that they took.", _checkouts),
        (total, names.RETRIES, "{retry}", "Failed attempts that checkouts lived through.", _figure("retries")),
        (total, names.LONG_HOLDS, "{hold}", "Holds that passed the threshold.", _figure("long_holds")),
        (total, names.CREATED, "{connection}", "Physical connections made.", _figure("created")),
        (total, names.DISCARDED, "{connection}", "Physical connections closed, by reason.", _discarded),
    )


def _figure(field: str) -> Reading:
    return lambda stats: ((getattr(stats, field), {}),)


def _maximum(stats: PoolStats) -> Iterable[tuple[float, dict[str, str]]]:
    return ((stats.maxconn, {}),) if stats.maxconn else ()


def _maximum_idle(stats: PoolStats) -> Iterable[tuple[float, dict[str, str]]]:
    return _maximum(stats) if stats.maxidle is None else ((stats.maxidle, {}),)


def _utilization(stats: PoolStats) -> Iterable[tuple[float, dict[str, str]]]:
    return ((stats.utilization, {}),) if stats.maxconn else ()


def _minimum(stats: PoolStats) -> Iterable[tuple[float, dict[str, str]]]:
    return ((stats.minconn, {}),)


def _states(stats: PoolStats) -> Iterable[tuple[float, dict[str, str]]]:
    return (stats.used, {names.CONNECTION_STATE: "used"}), (stats.idle, {names.CONNECTION_STATE: "idle"})


def _checkouts(stats: PoolStats) -> Iterable[tuple[float, dict[str, str]]]:
    return ((count, {names.PATH: path}) for path, count in stats.checkouts.items())


def _discarded(stats: PoolStats) -> Iterable[tuple[float, dict[str, str]]]:
    return ((count, {names.REASON: reason}) for reason, count in stats.discarded.items())


_lock = threading.Lock()  # guards the making of instruments; taken neither by callbacks nor by finalizers
_instruments: weakref.WeakKeyDictionary[MeterProvider, Instruments] = weakref.WeakKeyDictionary()
_default: list[Instruments] = []


def instruments(provider: MeterProvider | None) -> Instruments:
    """The instruments of a meter provider, or of the global one, made once."""
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
    _lock = threading.Lock()
    for known in [*_default, *_instruments.values()]:
        known.forget_records()


_fork.register(_after_fork)
