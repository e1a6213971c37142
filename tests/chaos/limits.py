"""How many connections a pool may have while it is resized all the time."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.chaos.lookout import Lookout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_pgpool import ConnectionPool

EVERY = 0.02
"""Seconds between two looks."""


class Limits(Lookout):
    """Looks on at the server processes, and judges them by the limits in force since the last look.

    What was there when a limit fell may stay until it is returned; nothing new may come above it.

    Args:
        pool: which is resized through here alone.
        count: the pool's server processes whose client is there.
    """

    def __init__(self, pool: ConnectionPool, count: Callable[[], int]) -> None:
        super().__init__()
        self._pool = pool
        self._count = count
        self._lock = threading.Lock()  # guards the next two
        self._under_way: list[int] = []
        self._highest = pool.maxconn  # since the last look

    @contextmanager
    def change(self, maxconn: int) -> Iterator[None]:
        """Resize the pool in here: the limit may be in force from the beginning on."""
        with self._lock:
            self._under_way.append(maxconn)
            self._highest = max(self._highest, maxconn)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.remove(maxconn)

    def _look_on(self) -> None:
        size = self._pool.stats().size
        while not self._over.wait(EVERY):
            found, highest = self._count(), self._take()
            if found > max(size, highest):
                self.violations.add(f"{found} server processes, where {size} were there and {highest} may be")
            size = self._pool.stats().size

    def _take(self) -> int:
        """Return the highest limit since the last call; from now on the present limits count."""
        with self._lock:
            highest, self._highest = self._highest, max(self._pool.maxconn, *self._under_way, 0)
        return highest
