"""A base class of the parts of a pool, and the objects that all parts use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from otel_pgpool.driver.fallback_name import fallback_name
from otel_pgpool.runtime.failures import ObserverGuard

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from otel_pgpool.config import PoolConfig
    from otel_pgpool.driver.connect_target import ConnectTarget
    from otel_pgpool.observer import PoolObserver
    from otel_pgpool.pool.core import Core
    from otel_pgpool.runtime.background import ParkingThread


class Notifier(ObserverGuard):
    """The observer of a pool, if it has one, and the protected way to call it."""

    def __init__(self, observer: PoolObserver | None) -> None:
        super().__init__("")
        self.observer = observer
        self.pool: Callable[[], object] = _no_pool
        """Function that returns the pool; None if it was collected, or is not registered yet."""

    def session_name(self) -> str:
        """Return the name of the pool's sessions on the server, for a program that sets none.

        It is computed for each connect, because the pool gets its name, and the SDK its provider, after the constructor
        has begun.
        """
        service = None
        read = getattr(self.observer, "service_name", None)
        if read is not None:
            try:
                service = read()
            except Exception as error:  # noqa: BLE001 - an observer must not cost a connection
                self.log_error(error)
        return fallback_name(service, self.pool_name)


def _no_pool() -> object:
    return None


@dataclass
class Durations:
    """The options of a pool that may change while it works, in seconds, and infinite if switched off.

    The core has ``long_hold``, which it reads for each release.
    """

    timeout: float
    max_lifetime: float
    max_idle: float

    @classmethod
    def of(cls, config: PoolConfig) -> Self:
        """Return the values that the pool has at first."""
        return cls(config.timeout, config.max_lifetime, config.max_idle)


class Common(NamedTuple):
    """The objects that all parts of a pool use."""

    core: Core
    config: PoolConfig
    durations: Durations
    target: ConnectTarget
    notifier: Notifier
    maintenance_thread: ParkingThread


class Part:
    """A part of a pool: a step of a checkout, or a background task."""

    def __init__(self, common: Common) -> None:
        self._core, self._config, self._durations, self._target, self._notifier, self._maintenance_thread = common
