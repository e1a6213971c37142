"""The pool's state as values: `PoolStats`, `PoolHealth` and `Holder`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from otel_pgpool.database_state import describe
from otel_pgpool.runtime.fork import is_here
from otel_pgpool.types import HealthStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from otel_pgpool.database_state import DatabaseState
    from otel_pgpool.types import StatusName

HIGH_UTILIZATION = 0.80
CRITICAL_UTILIZATION = 0.95


@dataclass(frozen=True)
class PoolStats:
    """A snapshot of a pool: its present levels, and totals since the pool was created. All times are in seconds.

    ``status`` says how much of the pool is in use, and whether it can open connections. It is not the verdict of
    `PoolHealth`, which says whether callers are served. A pool whose connections are all in use is ``critical`` here,
    and ``ok`` there as long as nobody waits. A pool whose server is full is ``unreachable`` here, and ``ok`` there as
    long as it has a connection.

    In a forked child the totals start at the fork. The fields are read without a lock, one after the other, so that
    levels may differ by a checkout that began or ended in between.
    """

    name: str
    status: StatusName
    """``new`` (not opened), ``ok``, ``high`` (80 % in use), ``critical`` (95 %), ``unreachable`` (no connection can be
    opened), ``suspended`` or ``closed``."""
    minconn: int
    maxconn: int
    """Maximum number of connections; 0 for an instrumented pool without a limit, whose ``utilization`` is then 0."""
    size: int
    """Connections that count against ``maxconn``: idle, used, and those being opened, checked or closed."""
    used: int
    idle: int
    connecting: int
    waiting: int
    utilization: float
    """``used / maxconn``, both without the holds with an ``expected_hold``.

    If these are all of ``maxconn``, it is 1 while a caller waits, and otherwise 0.
    """
    oldest_hold: float
    """Age of the oldest hold in progress, 0 if there is none. Holds with an ``expected_hold`` do not count."""

    checkouts: Mapping[str, int] = field(default_factory=dict)
    """Checkouts that received a connection, by path: ``idle``, ``queued``, ``new``."""
    queued: int = 0
    """Checkouts that waited in the queue, whether or not they received a connection."""
    timeouts: int = 0
    errors: int = 0
    """Checkouts that failed for another reason: queue full, pool closed, ``max_attempts`` reached, interrupted."""
    retries: int = 0
    long_holds: int = 0
    created: int = 0
    discarded: Mapping[str, int] = field(default_factory=dict)
    """Connections closed, by reason."""
    wait_seconds: float = 0.0
    """Sum of the waits of all checkouts, whether or not they received a connection."""
    hold_seconds: float = 0.0
    """Sum of all holds that have ended.

    An instrumented pool of psycopg2 or psycopg_pool does not measure the waits and holds of ordinary checkouts if
    nothing records them: ``spans`` is ``"off"``, and there is no meter provider or no histogram of waits or holds.
    """
    maxidle: int | None = None
    """Maximum number of idle connections if below ``maxconn``, as in psycopg2's and SQLAlchemy's pools; or None."""

    LEVELS = ("minconn", "maxconn", "size", "used", "idle", "connecting", "waiting", "utilization", "oldest_hold")

    def levels(self) -> dict[str, Any]:
        """Return the fields that describe the present moment, without the totals, by name."""
        return {level: getattr(self, level) for level in self.LEVELS}

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON.

        The names that dashboards of hand-written psycopg2 wrappers commonly use are added: ``active_connections``,
        ``available_connections``, ``total_connections`` and ``failed_connections``.
        """
        return asdict(self) | {
            "checkouts": dict(self.checkouts),
            "discarded": dict(self.discarded),
            "active_connections": self.used,
            "available_connections": self.idle,
            "total_connections": self.size,
            "failed_connections": self.timeouts + self.errors,
        }


@dataclass(frozen=True)
class PoolHealth:
    """A verdict on a pool, for a readiness probe: whether it can serve callers, as far as the pool knows.

    It is not ``PoolStats.status``, which says how much of the pool is in use, and whether it can open connections.

    Attributes:
        name: name of the pool.
        status: ``ok``, ``saturated``, ``unreachable``, ``suspended`` or ``closed``.
        reasons: what is wrong, a text each, the worst first; empty if nothing is. The first words, up to a colon, are
            the same at each call, and the figures follow. There are no addresses and no texts of errors in them, so
            that anybody may read them.
        duration: seconds for which the status has held; None if it is ``ok``.
    """

    name: str
    status: HealthStatus
    reasons: tuple[str, ...] = ()
    duration: float | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the status is ``ok``."""
        return self.status is HealthStatus.OK

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON."""
        return {
            "name": self.name,
            "status": self.status.value,
            "reasons": list(self.reasons),
            "duration": self.duration,
        }


@dataclass(frozen=True)
class Holder:
    """A checkout that holds a connection: which connection, since when, by which thread or task, and where.

    Attributes:
        connection_id: number of the connection within its pool; 1 is the first one that the pool opened.
        pid: process id of the connection's backend (``pg_backend_pid()``).
        thread: name of the thread that checked the connection out.
        held: seconds since the connection was handed out.
        where: call site of the checkout, as ``file:line function``.
        trace_id: trace of the checkout's span in hexadecimal digits, or None if there is no span.
        task: name of the asyncio task that checked the connection out, or None if it was not a task.
        database_state: what the server said last of the session, or None if it was not asked: see `DatabaseState`.
    """

    connection_id: int
    pid: int
    thread: str
    held: float
    where: str
    trace_id: str | None = None
    task: str | None = None
    database_state: DatabaseState | None = None

    def __str__(self) -> str:
        """Return one line for messages and logs."""
        return describe_holder(self)


def describe_holder(holder: Holder, described: Collection[int] = ()) -> str:
    """Return a holder as one line.

    Args:
        holder: the holder.
        described: process ids of sessions that the message describes elsewhere, so that their numbers are enough.
    """
    trace = f", trace {holder.trace_id}" if holder.trace_id else ""
    who = f"thread {holder.thread!r}" if holder.task is None else f"task {holder.task!r}"
    text = f"{holder.held:.3f} s by {who} at {holder.where} (pid {holder.pid}{trace})"
    state = holder.database_state
    if state is None:
        return text
    return f"{text}, in the database {max(0.0, holder.held - state.held):.1f} s ago: {describe(state, described)}"


class LastFigures:
    """The final figures of a collected pool, for observers, which may not keep a reference to the pool itself."""

    __slots__ = ("stats",)

    def __init__(self) -> None:
        self.stats: PoolStats | None = None


def leave_figures(pool: Any) -> None:
    """Store a pool's final figures. As the pool's finalizer, this function takes no lock and notifies no observer."""
    with suppress(Exception):  # the pool is incomplete if its constructor raised, or if the interpreter is finalizing
        if is_here:  # in a forked child the figures are the parent's
            pool.last_figures.stats = pool.stats()
