"""The clock for every wait, bound and duration. Tests that freeze the application's clock do not stop this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.runtime.gevent import load_again

if TYPE_CHECKING:
    from time import monotonic
else:
    monotonic = load_again("time").monotonic

__all__ = ["monotonic"]
