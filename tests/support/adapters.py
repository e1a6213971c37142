"""An adapter for pools that are made up: they have psycopg2's errors, and the levels that a test sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_pgpool.driver.target import UNKNOWN
from otel_pgpool.instrumentation.adapters.base import Levels
from otel_pgpool.instrumentation.adapters.psycopg2.driver import Psycopg2Driver

if TYPE_CHECKING:
    from otel_pgpool.driver.target import Target

ONE_CONNECTION = Levels(0, 1, 0, 0, 1)


class FakeAdapter(Psycopg2Driver):
    """Reads ``pool.levels``, if the pool has them; ``inherited`` is what it forgets in a child."""

    inherited = 0

    def install(self) -> None:
        raise NotImplementedError

    def uninstall(self) -> None:
        raise NotImplementedError

    def levels(self, pool: Any) -> Levels:
        levels: Levels = getattr(pool, "levels", ONE_CONNECTION)
        return levels

    def target(self, _pool: Any) -> Target:
        return UNKNOWN

    def forget_inherited(self, _pool: Any) -> int:
        return self.inherited
