"""A base class of the parts of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from otel_pgpool.config import PoolConfig
    from otel_pgpool.driver.dsn import Target
    from otel_pgpool.pool.core import Core
    from otel_pgpool.pool.notifier import Notifier


class Common(NamedTuple):
    """What all parts of a pool have in common."""

    core: Core
    config: PoolConfig
    target: Target
    notifier: Notifier


class Part:
    """A part of a pool: a step of a checkout, or a background task."""

    def __init__(self, common: Common) -> None:
        self._core, self._config, self._target, self._notifier = common
