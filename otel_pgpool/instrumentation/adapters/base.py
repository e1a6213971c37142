"""The interfaces of drivers and of adapters, which assume no driver and no library of pools."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Protocol

from otel_pgpool.errors import error_type
from otel_pgpool.observer import Server
from otel_pgpool.types import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Collection

    from otel_pgpool.pool.monitor_source import MonitorConnection
    from otel_pgpool.pool.monitor_source import Server as ServerAddress

MonitorConnect = Callable[[Optional["ServerAddress"]], "MonitorConnection"]
"""A function that opens a monitoring connection within a few seconds, or raises the driver's error.

Its argument is the host and the port of one server if the pool's arguments name several; otherwise None.
"""


class Levels(NamedTuple):
    """The levels of an instrumented pool, read without a lock."""

    minconn: int
    maxconn: int
    """Maximum number of connections; 0 for no limit."""
    used: int
    idle: int
    maxidle: int | None
    """Maximum number of idle connections; None for no limit."""
    closed: bool = False


class PoolTarget(Server, Protocol):
    """The server and the database that a pool connects to, and what may be shown of them."""

    @property
    def name(self) -> str:
        """Name of a pool that the application has not named, such as ``host:port/dbname``."""
        ...

    @property
    def public(self) -> Collection[str]:
        """Names that the text of an error may quote."""
        ...


class Driver:
    """The interface between the instrumentation and a driver of PostgreSQL.

    The methods of this class itself serve for a driver that is not known. They get the driver's own connections,
    perhaps inside an agent's proxy, and must neither change a connection nor talk to the server.
    """

    def backend_pid(self, conn: Any) -> int:  # noqa: ARG002 - the interface
        """Return the process id of a connection's backend; 0 if it is unknown or only `ask_backend_pid` returns it.

        Called as soon as the connection is known, because a record may need the id when the connection is gone.
        """
        return 0

    def ask_backend_pid(self, conn: Any) -> int:  # noqa: ARG002 - the interface
        """Return the process id if `backend_pid` returned 0; 0 if unknown. Called when the id is reported.

        Unlike `backend_pid`, this may call a connection of the application's own class.
        """
        return 0

    def local_port(self, conn: Any) -> int:  # noqa: ARG002 - the interface
        """Return the port of the client's end of a TCP connection; 0 for a Unix socket, or if it is unknown.

        Called as soon as the connection is known.
        """
        return 0

    def transaction_status(self, conn: Any) -> TransactionStatus:  # noqa: ARG002 - the interface
        """Return the status of a connection's transaction, as the client last received it."""
        return TransactionStatus.UNKNOWN

    def server_address(self, conn: Any) -> tuple[str | None, int | None]:  # noqa: ARG002 - the interface
        """Return the host and the port that a connection was made to; None for what is unknown."""
        return None, None

    def is_refusal(self, error: BaseException) -> bool:  # noqa: ARG002 - the interface
        """Return whether a failed connect reached a server that refused it, so that there is no outage."""
        return False

    def is_argument_error(self, error: BaseException) -> bool:  # noqa: ARG002 - the interface
        """Return whether a connect failed because of its arguments, before it reached the network: no outage."""
        return False

    def error_type(self, error: BaseException) -> str:
        """Return the value of ``error.type`` for an error: its SQLSTATE, or else the name of its class."""
        return error_type(error)

    def error_text(self, error: BaseException, target: PoolTarget) -> str:  # noqa: ARG002 - the interface
        """Return the text of a driver's error, one line without secrets, SQL or values; empty if it cannot be shown."""
        return ""


class Installation(ABC):
    """An adapter's wrappers of one library, and its listeners."""

    kind: str = ""
    """Name of the kind of pools: the top-level package of the library. Set before `install`."""

    @classmethod
    def pool_of(cls, given: Any) -> Any:  # noqa: ARG003 - the interface
        """Return the pool that an object is, or has, as an engine does; None if the object is of another kind.

        ``instrument_pool`` and ``uninstrument_pool`` need this.
        """
        return None

    @classmethod
    def owner_of(cls, given: Any) -> Any:  # noqa: ARG003 - the interface
        """Return the object that has a pool and may replace the pool, as an engine does; None if there is none.

        Called with the same object as `pool_of`, if that has returned a pool.
        """
        return None

    @classmethod  # noqa: B027 - optional
    def check_observable(cls, given: Any) -> None:
        """Raise an error if ``instrument_pool`` gets a pool of this kind that can never be observed.

        Called with the same object as `pool_of`, if that has returned a pool.

        Raises:
            TypeError: the pool is one of another database.
        """

    def track_selected(self, pool: Any) -> None:  # noqa: B027 - optional
        """Start to track a pool, or that of an owner, at once; otherwise this begins at the pool's next checkout."""

    @abstractmethod
    def install(self) -> None:
        """Wrap the methods of the pools, or add listeners; start to track pools that exist already."""

    @abstractmethod
    def uninstall(self) -> None:
        """Undo `install`, even if it failed half-way. From now on, wrappers only call the original methods."""


class PoolReader(Driver, ABC):
    """The interface through which a tracker reads its pool and the pool's connections.

    The methods that get a pool may be called by any thread, at any time, and must neither wait nor take a lock of the
    pool. Those that get a connection must not change it.
    """

    kind: str = ""
    """Name of the kind of pools, as that of an `Installation`."""

    @abstractmethod
    def levels(self, pool: Any) -> Levels:
        """Return the levels of a pool. Called whenever metrics are collected."""

    @abstractmethod
    def target(self, pool: Any) -> PoolTarget:
        """Return where a pool connects to, without calling code of the application."""

    @abstractmethod
    def forget_inherited(self, pool: Any) -> int:
        """Remove the parent's connections from a pool in a forked child; return their number.

        Nothing may be sent to the server, because the parent continues to use the connections. The pool's locks may
        have been held at the fork.
        """

    def target_of(self, conn: Any) -> PoolTarget | None:  # noqa: ARG002 - the interface
        """Return the target of a connection, if the target of its pool is unknown; None if that cannot be read."""
        return None

    def monitor_connect(self, pool: Any) -> MonitorConnect | None:  # noqa: ARG002 - the interface
        """Return the function that opens monitoring connections to the servers of a pool; None if there is no way.

        Called when a hold is long and ``OTEL_PGPOOL_DATABASE_STATE`` is ``all``. This method must not connect. The
        function is called by the thread of a monitor; it must not keep the pool alive.
        """
        return None

    def is_idle(self, pool: Any, conn: Any) -> bool:  # noqa: ARG002 - the interface
        """Return whether a connection that counts as held is idle, released by a method that is not wrapped."""
        return False

    def can_wait(self, pool: Any) -> bool:  # noqa: ARG002 - the interface
        """Return whether a caller waits if the pool is exhausted and a wait timeout is set."""
        return False

    def is_exhausted(self, error: BaseException) -> bool:  # noqa: ARG002 - the interface
        """Return whether the pool raised an error because all of its connections are held."""
        return False

    def exhausted_error(self) -> Exception:
        """Create the pool's error for a caller whose wait timed out. Needed if a pool `can_wait`."""
        raise NotImplementedError


class PoolAdapter(PoolReader, Installation):
    """A base class of adapters, each for one kind of pool.

    Each class of adapters stands in ``otel_pgpool.instrumentation.ADAPTERS``. ``instrument()`` creates one object of
    it, with the `InstrumentationSession` as the only argument, as soon as the library of the pools is imported, and
    calls `install`. From then on, the adapter notifies the trackers of what the pools do. It gets the tracker of a pool
    by ``session.track(pool, self)``.
    """
