"""The pool's state as values (`PoolStats`, `Holder`) and the interface for its events (`PoolObserver`)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from otel_pgpool._fork import is_here

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from otel_pgpool._checkout import Checkout
    from otel_pgpool._slot import Slot

HIGH_UTILIZATION = 0.80
CRITICAL_UTILIZATION = 0.95


@dataclass(frozen=True)
class PoolStats:
    """A snapshot of a pool: its present levels, and totals since the pool was created. All times are in seconds.

    In a forked child the totals start at the fork. The fields are read without a lock, one after the other, so that
    levels may differ by a checkout that began or ended in between.
    """

    name: str
    status: str
    """``new`` (not opened), ``ok``, ``high`` (80 % in use), ``critical`` (95 %), ``unreachable`` or ``closed``."""
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
    """``used / maxconn``."""
    oldest_hold: float
    """Age of the oldest hold in progress, 0 if there is none. Holds with an ``expected_hold`` do not count."""

    checkouts: Mapping[str, int] = field(default_factory=dict)
    """Checkouts that received a connection, by path: ``idle``, ``queued``, ``new``."""
    queued: int = 0
    """Checkouts that waited in the queue, whether or not they received a connection."""
    timeouts: int = 0
    errors: int = 0
    """Checkouts that failed for another reason: queue full, pool closed, ``max_retries`` reached, interrupted."""
    retries: int = 0
    long_holds: int = 0
    created: int = 0
    discarded: Mapping[str, int] = field(default_factory=dict)
    """Connections closed, by reason."""
    wait_seconds: float = 0.0
    """Sum of the waits of all checkouts, whether or not they received a connection."""
    hold_seconds: float = 0.0
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
class Holder:
    """A checkout that holds a connection: which connection, since when, by which thread, and where it was checked out.

    Attributes:
        connection_id: number of the connection within its pool; 1 is the first one that the pool opened.
        pid: process id of the connection's server process (``pg_backend_pid()``).
        thread: name of the thread that checked the connection out.
        held: seconds since the connection was handed over.
        where: call site of the checkout, as ``file:line function``.
        trace_id: trace of the checkout's span in hexadecimal digits, or None if there is no span.
    """

    connection_id: int
    pid: int
    thread: str
    held: float
    where: str
    trace_id: str | None = None

    def __str__(self) -> str:
        """Return one line for messages and logs."""
        trace = f", trace {self.trace_id}" if self.trace_id else ""
        return f"{self.held:.3f} s by thread {self.thread!r} at {self.where} (pid {self.pid}{trace})"


class LastFigures:
    """The final figures of a collected pool, for observers, which may not keep a reference to the pool itself."""

    __slots__ = ("stats",)

    def __init__(self) -> None:
        self.stats: PoolStats | None = None


def leave_figures(pool: Any) -> None:
    """Store a pool's final figures; the finalizer of a pool, which therefore takes no lock and notifies nobody."""
    with suppress(Exception):  # the pool is incomplete if its constructor raised, or if the interpreter is finalizing
        if is_here:  # in a forked child the figures are the parent's
            pool.last_figures.stats = pool.stats()


class ObservedPool(Protocol):
    """The part of a pool that its observer may use. No method or property takes a lock."""

    @property
    def name(self) -> str:
        """Name of the pool, unique among the live pools of this process."""
        ...

    @property
    def address(self) -> str:
        """Host of the server, or the folder of its Unix socket."""
        ...

    @property
    def port(self) -> int | None:
        """Port of the server; None if the hosts of a multi-host DSN have different ports."""
        ...

    @property
    def namespace(self) -> str:
        """Name of the database."""
        ...

    @property
    def long_hold(self) -> float:
        """Threshold of a long hold in seconds; infinite if it is switched off."""
        ...

    @property
    def closed(self) -> bool:
        """True once the pool is closed; the levels of a closed pool are not reported."""
        ...

    @property
    def last_figures(self) -> LastFigures:
        """Container in which the pool stores its figures when it is collected."""
        ...

    def stats(self) -> PoolStats:
        """Return the pool's levels and totals."""
        ...


@dataclass(frozen=True)
class Connect:
    """One attempt to open a physical connection. Times are readings of ``time.monotonic`` in seconds."""

    attempt: int
    """1, or the number of this attempt since the server became unreachable."""
    began: float
    ended: float
    asked_by: Checkout | None
    """The checkout that waits for this connection; None if the pool opens it to reach ``minconn``."""
    error: BaseException | None = None
    message: str = ""
    """Text of the error, free of secrets."""
    address: str | None = None
    port: int | None = None


class PoolObserver(Protocol):
    """The interface of an observer, which the pool notifies of its events.

    The pool calls each method in the thread in which the event happened, and never under the pool's lock. An exception
    that a method raises is logged and does not reach the application, with one exception: what ``attached`` raises in
    the pool's constructor. ``started``, then ``acquired`` or ``failed``, then ``released`` are called in this order for
    each checkout.
    """

    def attached(self, pool: ObservedPool) -> None:
        """Receive the pool, before any other call, and again in a forked child; keep no strong reference to it."""

    def started(self, checkout: Checkout) -> None:
        """Handle the start of a checkout: a caller asks for a connection."""

    def acquired(self, checkout: Checkout) -> None:
        """Handle the hand-over of a connection to a checkout."""

    def failed(self, checkout: Checkout, error: BaseException) -> None:
        """Handle the end of a checkout that received no connection because of ``error``."""

    def released(self, checkout: Checkout) -> None:
        """Handle the return of a connection; `Checkout.outcome` is how the hold ended."""

    def abandoned(self, checkout: Checkout) -> None:
        """Handle the end of a checkout that returns no connection.

        An earlier call has returned the connection, or the connection belongs to the parent process of a fork.
        """

    def reclaimed(self, checkout: Checkout) -> None:
        """Handle a connection that its holder dropped without returning it, and that the pool has reclaimed."""

    def held_long(self, checkout: Checkout) -> None:
        """Handle a hold that has just passed its threshold. The hold may end, or have ended, during this call."""

    def connected(self, connect: Connect) -> None:
        """Handle a successful attempt to open a connection."""

    def connect_failed(self, connect: Connect) -> None:
        """Handle a failed attempt to open a connection."""

    def discarded(
        self, slots: Sequence[Slot], reason: str, error: BaseException | None, checkout: Checkout | None
    ) -> None:
        """Handle connections that the pool has closed together for one ``reason``.

        Args:
            slots: the slots of the closed connections.
            reason: why the pool closed them.
            error: the error that revealed the reason, if there was one.
            checkout: the checkout that held one of the connections or found one of them dead, if there was one.
        """

    def outage_started(self, connect: Connect) -> None:
        """Handle the start of an outage: the first failed attempt since the server was last reached."""

    def outage_ended(self, attempts: int, duration: float) -> None:
        """Handle the end of an outage after ``attempts`` failed attempts and ``duration`` seconds."""

    def utilization_changed(self, level: str, stats: PoolStats) -> None:
        """Handle a lasting change of the utilization level: ``normal``, ``high`` or ``critical``."""
