"""A connection pool for psycopg2 in which every checkout is an OpenTelemetry span."""

from importlib import import_module
from typing import TYPE_CHECKING

from otel_pgpool._version import __version__

if TYPE_CHECKING:
    from otel_pgpool.database_state import BlockingSession, DatabaseState
    from otel_pgpool.driver.reset import reset_session
    from otel_pgpool.errors import ConnectionFailed, PoolClosed, PoolError, PoolTimeout, TooManyRequests
    from otel_pgpool.instrumentation import PgPoolInstrumentor as PgPoolInstrumentor
    from otel_pgpool.observed import ObservedCheckout, ObservedSlot
    from otel_pgpool.observer import BaseObserver, Connect, DatabaseObserver, ObservedPool, PoolObserver
    from otel_pgpool.pool.connection_pool import ConnectionPool
    from otel_pgpool.stats import Holder, PoolHealth, PoolStats
    from otel_pgpool.telemetry import Telemetry
else:
    # The public names are imported at their first use: the command line imports this package before it can handle
    # Ctrl-C, and PgPoolInstrumentor needs the extra "instrument", but not psycopg2.
    _HOMES = {
        **dict.fromkeys(("ConnectionFailed", "PoolClosed", "PoolError", "PoolTimeout", "TooManyRequests"), "errors"),
        **dict.fromkeys(("BlockingSession", "DatabaseState"), "database_state"),
        **dict.fromkeys(("Holder", "PoolHealth", "PoolStats"), "stats"),
        **dict.fromkeys(("ObservedCheckout", "ObservedSlot"), "observed"),
        **dict.fromkeys(("BaseObserver", "Connect", "DatabaseObserver", "ObservedPool", "PoolObserver"), "observer"),
        "ConnectionPool": "pool.connection_pool",
        "Telemetry": "telemetry",
        "reset_session": "driver.reset",
        "PgPoolInstrumentor": "instrumentation",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "psycopg2":
                raise
            message = (
                f"{name} needs psycopg2: install the extra 'binary' (pip install 'otel-pgpool[binary]'), "
                "or psycopg2 itself, if you build it"
            )
            raise ModuleNotFoundError(message, name="psycopg2") from error
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})


# Programs such as audits may still import private modules by the names that they had before the package had folders.
# The folder `_former` maps those names to the present modules. The first release will not contain it.
__path__.append(f"{__path__[0]}/_former")

# Without PgPoolInstrumentor, because `import *` must work where the extra "instrument" is not installed.
__all__ = [
    "BaseObserver",
    "BlockingSession",
    "Connect",
    "ConnectionFailed",
    "ConnectionPool",
    "DatabaseObserver",
    "DatabaseState",
    "Holder",
    "ObservedCheckout",
    "ObservedPool",
    "ObservedSlot",
    "PoolClosed",
    "PoolError",
    "PoolHealth",
    "PoolObserver",
    "PoolStats",
    "PoolTimeout",
    "Telemetry",
    "TooManyRequests",
    "__version__",
    "reset_session",
]
