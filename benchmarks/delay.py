"""Slow connects: the delay is in the driver's connect, after the pool has decided to connect."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import psycopg2.extensions

if TYPE_CHECKING:
    import psycopg


class Delay:
    """The delay of each connect in seconds, which may be changed at any time, and the number of connects begun."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._begun = itertools.count()
        self.connects = 0

    def begin(self) -> None:
        """Count a connect that begins, and sleep."""
        self.connects = next(self._begun) + 1
        time.sleep(self.seconds)

    def psycopg2_factory(self) -> type[psycopg2.extensions.connection]:
        """Return a ``connection_factory`` for psycopg2 that sleeps before it connects."""
        delay = self

        class Delayed(psycopg2.extensions.connection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                delay.begin()
                super().__init__(*args, **kwargs)

        return Delayed

    def psycopg_class(self) -> type[psycopg.Connection[Any]]:
        """Return a ``connection_class`` for psycopg_pool that sleeps before it connects."""
        import psycopg  # noqa: PLC0415 - only the processes that measure psycopg_pool need it

        delay = self

        class Delayed(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                delay.begin()
                return super().connect(*args, **kwargs)

        return Delayed
