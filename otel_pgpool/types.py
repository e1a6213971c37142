"""The values that users see in statistics, spans, metrics and log records, each with its meaning.

Each value is a ``str``: it compares, prints and serialises as its text.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from typing_extensions import Self


class Value(str, Enum):
    """A base class for enumerations of texts with a description each."""

    description: str

    def __new__(cls, text: str, description: str = "") -> Self:
        """Create the value from its text and its meaning."""
        value = str.__new__(cls, text)
        value._value_ = text
        value.description = description
        return value

    __repr__ = str.__repr__
    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]  # the same signature, positional only


class CheckoutPath(Value):
    """How a checkout obtained its connection, or would have: ``otel_pgpool.path``."""

    IDLE = "idle", "an idle connection was handed out at once"
    QUEUED = "queued", "the caller waited until another caller released a connection"
    NEW = "new", "the caller waited until a new connection was open"


PathName = Literal["idle", "queued", "new"]
"""The texts of `CheckoutPath`, for annotations."""


class Outcome(Value):
    """How a checkout ended: ``otel_pgpool.outcome``."""

    COMMITTED = "committed", "the block ended without an exception, and its transaction was committed"
    ROLLED_BACK = "rolled_back", "the block ended with an exception, and its transaction was rolled back"
    RELEASED = "released", "the connection was released by a call, such as putconn"
    DISCARDED = "discarded", "the connection was released, and could not be used again"
    RECLAIMED = "reclaimed", "the holder dropped the connection, and the pool reclaimed it"
    TIMEOUT = "timeout", "no connection became available in time"
    ERROR = "error", "the checkout failed for another reason, or was interrupted"


OutcomeName = Literal["committed", "rolled_back", "released", "discarded", "reclaimed", "timeout", "error"]
"""The texts of `Outcome`, for annotations."""


class DiscardReason(Value):
    """Why a pool has closed a connection: ``otel_pgpool.reason``."""

    is_loss: bool
    """Whether the reason is a failure, which is logged as a warning."""

    def __new__(cls, text: str, description: str = "", is_loss: bool = False) -> Self:  # noqa: FBT001, FBT002 - the members below are tuples
        """Create the reason from its text, its meaning, and whether it is a failure."""
        value = str.__new__(cls, text)
        value._value_ = text
        value.description = description
        value.is_loss = is_loss
        return value

    BROKEN = (
        "broken",
        "the session had ended or did not answer, or the connection was used by another thread at its release",
        True,
    )
    CHECK_FAILED = "check_failed", "the connection did not pass its check", True
    READ_ONLY = "read_only", "the server does not accept writes any more", True
    RESET_FAILED = "reset_failed", "the connection could not be reset at its release", True
    EVICT_ON = "evict_on", "the block ended with an error to which evict_on applies"
    EXPIRED = "expired", "the connection was older than max_lifetime"
    IDLE = "idle", "the connection was above minconn and idle for max_idle"
    DRAINED = "drained", "drain() was called"
    RESIZED = "resized", "resize() has lowered maxconn"
    RECLAIMED = "reclaimed", "the holder dropped the connection without a release"
    RETURNED_CLOSED = "returned_closed", "the application had closed the connection, or released it with close=True"
    CLOSED = "closed", "the pool was closed"
    FORKED = "forked", "the connection belongs to the parent process of a fork"


ReasonName = Literal[
    "broken",
    "check_failed",
    "read_only",
    "reset_failed",
    "evict_on",
    "expired",
    "idle",
    "drained",
    "resized",
    "reclaimed",
    "returned_closed",
    "closed",
    "forked",
]
"""The texts of `DiscardReason`, for annotations."""


class PoolStatus(Value):
    """The status of a pool: ``PoolStats.status``. It says how much of the pool is in use, and whether it can grow."""

    NEW = "new", "the pool is not open yet"
    OK = "ok", "less than 80 % of maxconn is in use"
    HIGH = "high", "80 % of maxconn or more is in use"
    CRITICAL = "critical", "95 % of maxconn or more is in use"
    UNREACHABLE = "unreachable", "no connection can be opened"
    SUSPENDED = "suspended", "checkouts wait until resume() is called"
    CLOSED = "closed", "the pool is closed"


StatusName = Literal["new", "ok", "high", "critical", "unreachable", "suspended", "closed"]
"""The texts of `PoolStatus`, for annotations."""


class HealthStatus(Value):
    """The verdict on a pool: ``PoolHealth.status``. Whether callers are served; the last that applies counts."""

    OK = "ok", "callers are served, as far as is known"
    SATURATED = "saturated", "callers wait and no connection is free, or the queue is full"
    UNREACHABLE = "unreachable", "the server does not answer, or the pool has no connection and can open none"
    SUSPENDED = "suspended", "checkouts wait until resume() is called"
    CLOSED = "closed", "the pool is closed"


class UtilizationLevel(Value):
    """The utilization level of a pool, as in the names of the log events."""

    NORMAL = "normal", "less than 80 % of maxconn is in use"
    HIGH = "high", "80 % of maxconn or more is in use"
    CRITICAL = "critical", "95 % of maxconn or more is in use"


LevelName = Literal["normal", "high", "critical"]
"""The texts of `UtilizationLevel`, for annotations."""


class TransactionStatus(Value):
    """The status of a connection's transaction, as libpq reports it: ``otel_pgpool.transaction.status``."""

    IDLE = "idle", "no transaction is in progress"
    ACTIVE = "active", "a statement is running"
    IN_TRANSACTION = "in_transaction", "a transaction is open, and no statement is running"
    IN_ERROR = "in_error", "the transaction has failed, and waits for its rollback"
    UNKNOWN = "unknown", "the connection is closed or lost"


TRANSACTION_STATUSES = tuple(TransactionStatus)
"""The statuses in the order of libpq's numbers."""


class PoolErrorType(Value):
    """The values of ``error.type`` for the pool's own errors. Other errors have their SQLSTATE or class."""

    TIMEOUT = "timeout", "PoolTimeout: no connection became available in time"
    CLOSED = "closed", "PoolClosed: the pool is closed"
    TOO_MANY_REQUESTS = "too_many_requests", "TooManyRequests: the queue is full"


EVENT_NAME = "otel.event.name"
"""Attribute that names the event of a standard log record; OpenTelemetry keeps it in a field of its own."""


class LogEvent(Value):
    """The events of log records: ``otel_pgpool.event``, and with the package's name ``otel.event.name``."""

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of a record that name its event."""
        return {"otel_pgpool.event": self.value, EVENT_NAME: f"otel_pgpool.{self.value}"}

    LONG_HOLD = "long_hold", "a hold has passed its threshold and continues"
    DATABASE_STATE = "database_state", "what the server says of the session of a long hold that continues"
    LONG_HOLD_RETURNED = "long_hold_returned", "a long hold has ended"
    PROXY_WAIT = "proxy_wait", "PgBouncer let a query of a checkout wait for a connection to the server"
    UTILIZATION_NORMAL = "utilization_normal", "the utilization is below its thresholds again"
    UTILIZATION_HIGH = "utilization_high", "80 % of maxconn or more is in use"
    UTILIZATION_CRITICAL = "utilization_critical", "95 % of maxconn or more is in use"
    TIMEOUT = "timeout", "a checkout timed out"
    CONNECTION_LOST = "connection_lost", "connections were found dead, or died in use"
    DISCARDED = "discarded", "connections were closed in the course of the pool's work"
    RECLAIMED = "reclaimed", "a dropped connection was reclaimed"
    CONNECTED = "connected", "an attempt to connect succeeded"
    CONNECT_FAILED = "connect_failed", "an attempt to connect failed"
    CONNECT_REFUSED = "connect_refused", "the server is up and refuses the connection"
    PROGRAM_ERROR = "program_error", "a callback of the program raised, or the arguments of a connect are wrong"
    OUTAGE_STARTED = "outage_started", "no connection can be opened"
    OUTAGE_ENDED = "outage_ended", "connections can be opened again"
    FORKED = "forked", "a forked child has used a pool of its parent"
    FORK_REPAIRED = "fork_repaired", "a pool of its parent has begun anew in a forked child"
    CREDENTIALS_EXPOSED = "credentials_exposed", "credentials may travel to another machine without encryption"
