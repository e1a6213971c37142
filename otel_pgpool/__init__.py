"""A connection pool for psycopg2 in which every checkout is an OpenTelemetry span."""

from typing import TYPE_CHECKING, Any

from otel_pgpool._errors import PoolClosed, PoolError, PoolTimeout, TooManyRequests
from otel_pgpool._observer import Holder, PoolObserver, PoolStats
from otel_pgpool._pool import ConnectionPool
from otel_pgpool._version import __version__

if TYPE_CHECKING:
    from otel_pgpool.instrumentation import PgPoolInstrumentor as PgPoolInstrumentor

# PgPoolInstrumentor is not among what `import *` brings: it needs the extra "instrument".
__all__ = [
    "ConnectionPool",
    "Holder",
    "PoolClosed",
    "PoolError",
    "PoolObserver",
    "PoolStats",
    "PoolTimeout",
    "TooManyRequests",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the hook when it is asked for: it needs the extra ``instrument``, and a program without it does not."""
    if name != "PgPoolInstrumentor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from otel_pgpool.instrumentation import PgPoolInstrumentor  # noqa: PLC0415 - see above

    return PgPoolInstrumentor
