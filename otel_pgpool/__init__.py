"""A connection pool for psycopg2 in which every checkout is an OpenTelemetry span."""

from otel_pgpool._errors import PoolClosed, PoolError, PoolTimeout, TooManyRequests
from otel_pgpool._observer import Holder, PoolObserver, PoolStats
from otel_pgpool._pool import ConnectionPool
from otel_pgpool._version import __version__

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
