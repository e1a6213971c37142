"""The methods of a pool that act on the whole pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.errors import PoolClosed
from otel_pgpool.pool import registry
from otel_pgpool.pool.live_options import LiveOptions
from otel_pgpool.pool.shared_threads import end_shared_threads
from otel_pgpool.runtime.clock import monotonic
from otel_pgpool.runtime.fork import renewed
from otel_pgpool.validation import invalid_option, validate_limits, validate_seconds

if TYPE_CHECKING:
    from types import EllipsisType, TracebackType

    from typing_extensions import Self


class PoolControl(LiveOptions):
    """The control of a `ConnectionPool` as a whole: its opening, its end, its limits and its idle connections."""

    @renewed
    def open(self, wait: bool | None = None, timeout: float | None = None) -> None:  # noqa: FBT001 - the signature of psycopg_pool
        """Open the pool, and ``minconn`` connections.

        Args:
            wait: True to wait until the connections are open. False to return at once: they are opened in the
                background, as soon as the server can be reached. By default True if the pool is not open yet; otherwise
                nothing is done.
            timeout: longest wait in seconds, in place of the pool's ``timeout``.

        Raises:
            ValueError: ``wait`` or ``timeout`` is invalid.
            psycopg2.Error: the first attempt to connect failed, in the wait; a pool that was not open is not open then.
            PoolTimeout: the connections could not be opened in time; a pool that was not open is not open then.
            PoolClosed: the pool is closed.
        """
        if wait is not None and not isinstance(wait, bool):
            raise invalid_option("wait", wait, "True, False or None")
        self._parts.lifecycle.open(None if timeout is None else validate_seconds("timeout", timeout), wait=wait)

    @renewed
    def wait(self, timeout: float | None = None) -> None:
        """Wait until ``minconn`` connections are open; open the pool if necessary.

        Args:
            timeout: longest wait in seconds, in place of the pool's ``timeout``.

        Raises:
            ValueError: ``timeout`` is invalid.
            psycopg2.Error: an attempt to connect failed.
            PoolTimeout: the connections could not be opened in time.
            PoolClosed: the pool is closed.
        """
        self._parts.lifecycle.wait(None if timeout is None else validate_seconds("timeout", timeout))

    @renewed
    def close(self, timeout: float = 5.0) -> None:
        """Close the pool: refuse new checkouts, fail the waiters, close idle connections, wait for the holders.

        A connection that is still checked out after ``timeout`` is closed at its release. A second call does nothing.

        Args:
            timeout: longest wait for the holders in seconds.

        Raises:
            ValueError: ``timeout`` is invalid.
        """
        deadline = monotonic() + validate_seconds("timeout", timeout)
        if self.closed:
            return
        self._close()
        self._parts.lifecycle.wait_for_holders(deadline)
        end_shared_threads()

    @renewed
    def closeall(self) -> None:
        """Close the pool and every connection at once, including those that are checked out, as psycopg2's pools do.

        Raises:
            PoolClosed: the pool is closed already.
        """
        if self.closed:
            raise PoolClosed(f"pool {self.name!r}: connection pool is closed")
        self._close()
        self._parts.lifecycle.close_held()
        end_shared_threads()

    def _close(self) -> None:
        self._parts.lifecycle.close()
        registry.release_name(self.name, self)

    @renewed
    def drain(self) -> None:
        """Replace every connection: close the idle ones now, and the checked-out ones at their release."""
        self._parts.lifecycle.drain()

    @renewed
    def resize(
        self,
        minconn: int | EllipsisType = ...,
        maxconn: int | EllipsisType | None = ...,
        *,
        min_size: int | EllipsisType = ...,
        max_size: int | EllipsisType | None = ...,
    ) -> None:
        """Change the limits: close surplus idle connections now, and surplus checked-out ones at their release.

        Args:
            minconn: the new minimum, as in the constructor.
            maxconn: the new maximum, as in the constructor; if it is left out or None, the new minimum, as in
                psycopg_pool.
            min_size: another name of ``minconn``.
            max_size: another name of ``maxconn``.

        Raises:
            ValueError: a limit is invalid; nothing is changed then.
        """
        if all(limit is None or limit is ... for limit in (maxconn, max_size)):
            maxconn, max_size = minconn, min_size
        self._parts.lifecycle.resize(*validate_limits(minconn, maxconn, min_size, max_size))

    @renewed
    def suspend(self) -> None:
        """Let every checkout from now on wait, up to its timeout, until `resume` is called.

        Connections in use stay with their holders, who release them as ever. Idle connections stay open, and none is
        opened. So there is a time without a session that works, for a failover or a change of the schema: when
        ``stats().used`` is 0, `drain` closes those that are left. A second call, or one
        on a closed pool, does nothing.
        """
        self._parts.core.suspend(monotonic())

    @renewed
    def resume(self) -> None:
        """Serve the waiters of a suspended pool in the order in which they asked; do nothing if it is not suspended."""
        self._parts.lifecycle.resume()

    @renewed
    def check(self) -> None:
        """Check every idle connection, one by one, by ``check`` or a query; discard those that do not pass in 5 s."""
        self._parts.liveness.check_all()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
