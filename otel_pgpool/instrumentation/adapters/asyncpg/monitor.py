"""The monitoring connections of asyncpg, in an event loop of their own: the pool's loop is never used."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.monitoring import APPLICATION_NAME, MODES, SETTINGS, TIME_LIMIT
from otel_pgpool.errors import PoolError
from otel_pgpool.instrumentation.adapters.asyncpg import private
from otel_pgpool.instrumentation.adapters.asyncpg.tracked import POOL_ATTR
from otel_pgpool.instrumentation.adapters.monitor import BoundedConnection, OwnLoop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_pgpool.instrumentation.adapters.base import MonitorConnect
    from otel_pgpool.pool.monitor_source import Server

BEGIN = f"BEGIN {MODES}; {SETTINGS}"


class AsyncpgMonitor(BoundedConnection):
    """A monitoring connection of asyncpg."""

    def __init__(self, con: Any, loop: OwnLoop) -> None:
        self._con = con
        self._loop = loop
        self.pid = int(con.get_server_pid())

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return private.descriptor_of(self._con)

    def run(self, statement: str) -> str:
        """Run a statement and return its value."""
        return self._loop.run(self._run(statement))

    async def _run(self, statement: str) -> str:
        await self._con.execute(BEGIN)
        value = await self._con.fetchval(statement)
        await self._con.execute("COMMIT")
        return str(value)

    def end(self) -> None:
        """End the session."""
        self._loop.run(self._con.close(timeout=TIME_LIMIT))

    def close(self) -> None:
        """Close the connection and the loop."""
        super().close()
        self._loop.close()


def connector(queue: Any) -> MonitorConnect:
    """Return the function that opens monitoring connections of a pool, given by its queue; it keeps neither alive."""
    ref = weakref.ref(queue)

    def connect(chosen: Server | None) -> AsyncpgMonitor:
        loop = OwnLoop()
        try:
            return AsyncpgMonitor(loop.run(_connection_of(getattr(ref(), POOL_ATTR, None), chosen)), loop)
        except BaseException:
            loop.close()
            raise

    return connect


async def _connection_of(pool: Any, chosen: Server | None) -> Any:
    """Connect as a pool does, but in the running loop, and with asyncpg's own classes."""
    if pool is None:
        raise PoolError("the pool was collected")
    args, kwargs = private.connect_arguments(pool)
    if private.connects_itself(pool):
        return await private.connect(*args, **{**kwargs, **monitor_arguments(kwargs, chosen)})
    return await asyncio.wait_for(private.connect_by_program(pool, *args, **kwargs), TIME_LIMIT)


def monitor_arguments(given: Mapping[str, Any], chosen: Server | None) -> dict[str, Any]:
    """Return the arguments of ``asyncpg.connect`` in which a monitoring connection differs from a pool's.

    Args:
        given: the keyword arguments of the pool's connects.
        chosen: the server, if the arguments name several.
    """
    settings = {**(given.get("server_settings") or {}), "application_name": APPLICATION_NAME}
    changes = {"server_settings": settings, "statement_cache_size": 0, "timeout": TIME_LIMIT}
    if chosen is not None:
        changes["host"], changes["port"] = chosen
        if "target_session_attrs" in given:
            changes["target_session_attrs"] = "any"
    return changes
