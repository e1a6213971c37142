"""The thread of a pool's maintenance, which sleeps while the pool is quiet."""

from __future__ import annotations

from logging import DEBUG
from typing import TYPE_CHECKING, Protocol

from otel_pgpool.runtime.background import BackgroundThread
from otel_pgpool.runtime.failures import log_failure

if TYPE_CHECKING:
    from otel_pgpool.pool.core import Core
    from otel_pgpool.runtime.wakeup import Wakeup


class Duties(Protocol):
    """The work of the thread."""

    def run_once(self) -> float | None:
        """Do what is due; return the seconds until the next pass, or None to end the thread."""


class MaintenanceThread(BackgroundThread[Duties]):
    """A thread that sleeps until the next deadline.

    After half a second without a checkout it parks: the next checkout wakes it, which costs that checkout some 100 us.
    """

    def __init__(self, core: Core, wakeup: Wakeup) -> None:
        super().__init__(None, wakeup, "otel_pgpool-maintenance")
        self._core = core

    def wake(self) -> None:
        """Start the next pass now. If no thread can be started, the next checkout tries again."""
        self._core.parked = False
        try:
            super().wake()
        except BaseException as error:
            self._core.parked = True
            if not isinstance(error, RuntimeError):
                raise
            log_failure(f"pool {self._core.name}: the maintenance thread could not be started", error, DEBUG)

    def _run_once(self, duties: Duties) -> float | None:
        return duties.run_once()
