"""A connection pool for psycopg2 in which every checkout is an OpenTelemetry span."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from otel_pgpool._version import __version__

if TYPE_CHECKING:
    from otel_pgpool._errors import PoolClosed, PoolError, PoolTimeout, TooManyRequests
    from otel_pgpool._observer import Holder, PoolObserver, PoolStats
    from otel_pgpool._pool import ConnectionPool
    from otel_pgpool._session import reset_session
    from otel_pgpool.instrumentation import PgPoolInstrumentor as PgPoolInstrumentor
else:
    if find_spec("psycopg2") is None:
        import_module(f"{__name__}._errors")  # which says what brings it

    # With their first use, and psycopg2 with them: the package is imported before its command can take over Ctrl-C. The
    # hook needs the extra "instrument", and a program without it does not.
    _HOMES = {
        **dict.fromkeys(("PoolClosed", "PoolError", "PoolTimeout", "TooManyRequests"), "_errors"),
        **dict.fromkeys(("Holder", "PoolObserver", "PoolStats"), "_observer"),
        "ConnectionPool": "_pool",
        "reset_session": "_session",
        "PgPoolInstrumentor": "instrumentation",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})


# PgPoolInstrumentor is not among what `import *` brings: it needs an extra.
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
    "reset_session",
]
