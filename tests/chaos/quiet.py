"""A pool under load that logs for nobody."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def silenced() -> Iterator[None]:
    """Keep what the pools log, of long holds and timeouts by the thousand, off the terminal."""
    logger = logging.getLogger("otel_pgpool")
    handler = logging.NullHandler()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
