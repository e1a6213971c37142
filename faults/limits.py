"""How many connections a pool may have while it is resized all the time."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from faults.stalls import Stalls
    from otel_pgpool import ConnectionPool

EVERY = 0.02
"""Seconds between two looks."""
SETTLES = 1.0
"""Seconds after which those that were lent when the limit fell have come back."""


class Limits:
    """Looks on at the server processes and judges them by the limits in force.

    Where the limit falls nothing new may come above it, and in time the surplus goes, as it is returned.

    Args:
        pool: which is resized through here alone.
        count: the pool's server processes whose client is there.
        stalls: when nobody could return anything.
    """

    def __init__(self, pool: ConnectionPool, count: Callable[[], int], stalls: Stalls) -> None:
        self.violations: set[str] = set()
        self._pool = pool
        self._count = count
        self._stalls = stalls
        self._lock = threading.Lock()  # guards the next two
        self._under_way: list[int] = []
        self._highest = pool.maxconn  # since the last look
        self._past = deque([(monotonic(), pool.maxconn)])  # looks, and the highest limit until each
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="limits", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

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

    def _run(self) -> None:
        size = self._pool.stats().size
        while not self._over.wait(EVERY):
            found, now = self._count(), monotonic()
            highest = self._take()
            if found > max(size, highest):
                self.violations.add(f"{found} server processes, where {size} were there and {highest} may be")
            settled = self._settled(now, highest)
            if found > settled:
                self.violations.add(f"{found} server processes, {SETTLES:g} s after the limit has fallen to {settled}")
            size = self._pool.stats().size

    def _take(self) -> int:
        """The highest limit since the last look; from now on the present ones count."""
        with self._lock:
            highest, self._highest = self._highest, max(self._pool.maxconn, *self._under_way, 0)
        return highest

    def _settled(self, now: float, highest: int) -> int:
        """The highest limit for as long as it takes until all are back."""
        self._past.append((now, highest))
        while self._lasted(self._past[0][0], now) > SETTLES:
            self._past.popleft()
        return max(limit for _, limit in self._past)

    def _lasted(self, since: float, now: float) -> float:
        return now - since - self._stalls.within(since, now)
