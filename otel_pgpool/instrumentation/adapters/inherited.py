"""Pools of a parent process in its forked child, which cannot use them as they are."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from otel_pgpool.environment import FORK_REPAIR
from otel_pgpool.instrumentation.guards import ignore_errors
from otel_pgpool.runtime.by_identity import WeakIdentityDict
from otel_pgpool.runtime.failures import log_safely
from otel_pgpool.runtime.sockets import replace_socket
from otel_pgpool.telemetry.names import ATTR_POOL_NAME
from otel_pgpool.types import LogEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

InheritedT = TypeVar("InheritedT")

REPAIR = f"{FORK_REPAIR.name}=1"
"""The setting that repairs pools, for log records."""


class InheritedPools(ABC, Generic[InheritedT]):
    """The pools of the parent in a forked child. Each is reported at its first use there.

    A subclass defines what it keeps about a pool until then.

    Args:
        is_repaired: whether pools are repaired.
    """

    def __init__(self, *, is_repaired: bool) -> None:
        self._is_repaired = is_repaired
        self._unused: WeakIdentityDict[InheritedT] = WeakIdentityDict()
        self.any_unused = False
        """Whether a pool may not have been used yet, for hot paths: `__contains__` costs more."""
        self.conns: dict[int, Any] = {}
        """The parent's connections, by id. They are kept alive, because a driver may close a collected connection."""

    def __contains__(self, pool: object) -> bool:
        """Return whether a pool was inherited and not used yet."""
        return pool in self._unused

    def add(self, pool: Any, inherited: InheritedT) -> None:
        """Note a pool in a forked child."""
        self._unused[pool] = inherited
        self.any_unused = True

    def keep(self, conns: Collection[Any]) -> None:
        """Keep connections of the parent alive."""
        self.conns.update((id(conn), conn) for conn in conns)

    def cut_off(self, conns: Collection[Any], fileno: Callable[[Any], int]) -> None:
        """Replace the sockets of the parent's connections, so that this process sends nothing to the server.

        Args:
            conns: the connections.
            fileno: return the descriptor of a connection's socket.
        """
        for conn in conns:
            with ignore_errors:  # closed already
                replace_socket(fileno(conn))

    def report_first_use(self, pool: Any, name: str) -> None:
        """Report an inherited pool, once."""
        inherited = self._unused.pop(pool)
        self.any_unused = bool(self._unused)
        if inherited is not None:
            is_repaired, parent, text = self.on_first_use(pool, inherited)
            text = f"opened in process {parent}, and used in its forked child {os.getpid()}: {text}"
            if is_repaired:
                log_safely(logging.INFO, "pool %s: %s", name, text, extra=_attributes(LogEvent.FORK_REPAIRED, name))
            else:
                log_safely(logging.ERROR, "pool %s: %s", name, text, extra=_attributes(LogEvent.FORKED, name))

    @abstractmethod
    def on_first_use(self, pool: Any, inherited: InheritedT) -> tuple[bool, int, str]:
        """Repair a pool at its first use, if pools are repaired, and describe the use for a log record.

        Returns:
            Whether the pool was repaired, the parent's process id, and the end of the record's text.
        """


def _attributes(event: LogEvent, name: str) -> dict[str, str]:
    return {**event.attributes, ATTR_POOL_NAME: name}
