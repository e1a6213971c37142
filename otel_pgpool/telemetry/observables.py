"""The observable instruments, and how each is computed from a pool's figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.telemetry import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_pgpool.stats import PoolStats

    Values = Iterable[tuple[float, dict[str, str]]]
    """Values, each with its attributes except the pool's name."""
    Read = Callable[[PoolStats], Values]

LEVEL, TOTAL, GAUGE = "up_down_counter", "counter", "gauge"
CONNECTIONS = "{connection}"


class Observable(NamedTuple):
    """An observable instrument."""

    kind: str
    """Kind of the instrument, as in the names of the methods ``create_observable_...``."""
    name: str
    unit: str
    description: str
    read: Read


def _figure(field: str) -> Read:
    return lambda stats: ((getattr(stats, field), {}),)


def _maximum(stats: PoolStats) -> Values:
    return ((stats.maxconn, {}),) if stats.maxconn else ()


def _maximum_idle(stats: PoolStats) -> Values:
    return _maximum(stats) if stats.maxidle is None else ((stats.maxidle, {}),)


def _utilization(stats: PoolStats) -> Values:
    return ((stats.utilization, {}),) if stats.maxconn else ()


def _states(stats: PoolStats) -> Values:
    state = names.ATTR_CONNECTION_STATE
    return (stats.used, {state: names.VALUE_USED}), (stats.idle, {state: names.VALUE_IDLE})


def _counts(field: str, attribute: str) -> Read:
    return lambda stats: ((count, {attribute: value}) for value, count in getattr(stats, field).items())


_checkouts = _counts("checkouts", names.ATTR_PATH)
_discarded = _counts("discarded", names.ATTR_REASON)

_ROWS = (
    (LEVEL, names.METRIC_COUNT, CONNECTIONS, "Connections that are in the state that the attribute names.", _states),
    (LEVEL, names.METRIC_MAX, CONNECTIONS, "The maximum number of open connections allowed.", _maximum),
    (
        LEVEL,
        names.METRIC_IDLE_MIN,
        CONNECTIONS,
        "The minimum number of idle open connections allowed.",
        _figure("minconn"),
    ),
    (LEVEL, names.METRIC_IDLE_MAX, CONNECTIONS, "The maximum number of idle open connections allowed.", _maximum_idle),
    (LEVEL, names.METRIC_PENDING_REQUESTS, "{request}", "Checkouts that are in the queue.", _figure("waiting")),
    (TOTAL, names.METRIC_TIMEOUTS, "{timeout}", "Checkouts that timed out.", _figure("timeouts")),
    (GAUGE, names.METRIC_UTILIZATION, "1", "Fraction of the maximum that is in use.", _utilization),
    (GAUGE, names.METRIC_OLDEST_HOLD, "s", "Age of the oldest hold in progress, or 0.", _figure("oldest_hold")),
    (TOTAL, names.METRIC_CHECKOUTS, "{checkout}", "Checkouts that received a connection, by path.", _checkouts),
    (
        TOTAL,
        names.METRIC_RETRIES,
        "{retry}",
        "Failed attempts within checkouts: dead connections and failed connects.",
        _figure("retries"),
    ),
    (TOTAL, names.METRIC_LONG_HOLDS, "{hold}", "Holds that became long holds.", _figure("long_holds")),
    (TOTAL, names.METRIC_CREATED, CONNECTIONS, "Physical connections made.", _figure("created")),
    (TOTAL, names.METRIC_DISCARDED, CONNECTIONS, "Physical connections closed, by reason.", _discarded),
)
OBSERVABLES = tuple(map(Observable._make, _ROWS))
TOTALS = {each.name: each.read for each in OBSERVABLES if each.kind == TOTAL}
