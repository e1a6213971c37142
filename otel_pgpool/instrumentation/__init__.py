"""The auto-instrumentation: pools of an unchanged application get the spans, metrics and logs of `ConnectionPool`."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # the package is not typed

    from otel_pgpool.instrumentation.installed_adapters import InstalledAdapters, find_pool, kind_of
    from otel_pgpool.instrumentation.requirements import met_requirements
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in {"opentelemetry", "packaging", "wrapt"}:
        raise
    message = "PgPoolInstrumentor needs the extra 'instrument': pip install 'otel-pgpool[instrument]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from otel_pgpool.instrumentation.choices import Choices
from otel_pgpool.instrumentation.options import OPTIONS, InstrumentationOptions, chosen_kinds, known_options
from otel_pgpool.runtime import fork
from otel_pgpool.runtime.failures import log_failure

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["ADAPTERS", "PgPoolInstrumentor", "instrument_pool", "uninstrument_pool"]

logger = logging.getLogger("otel_pgpool")

ADAPTERS = {
    "asyncpg.pool": "otel_pgpool.instrumentation.adapters.asyncpg.install:AsyncpgAdapter",
    "psycopg2.pool": "otel_pgpool.instrumentation.adapters.psycopg2.install:Psycopg2Adapter",
    "psycopg_pool": "otel_pgpool.instrumentation.adapters.psycopg_pool.install:PsycopgPoolAdapter",
    "sqlalchemy": "otel_pgpool.instrumentation.adapters.sqlalchemy.install:SqlalchemyAdapter",
}
"""The class of each adapter, by the module of its library. It is imported once that module has been imported.

Another kind of pool is added before ``instrument()``: see ``docs/extending.md``.
"""

OTHERS_OPTIONS = ("logger_provider", "event_logger_provider")
"""Options that programs pass to every instrumentor, which this one does not need."""

# Guards the adapters and the choices of single pools. Reentrant: a signal handler may call `instrument_pool`.
_lock = threading.RLock()
_installed: InstalledAdapters | None = None
_choices = Choices()


class PgPoolInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # the base class is not typed
    """The instrumentor for the pools of psycopg2, psycopg_pool, SQLAlchemy and asyncpg, and their subclasses.

    ``instrument()`` starts the instrumentation, and ``uninstrument()`` ends it, as in OpenTelemetry's
    ``BaseInstrumentor``. ``opentelemetry-instrument`` calls ``instrument()``. Neither raises: errors and invalid values
    are logged. After ``uninstrument()`` the original methods are in place again, and the spans of checkouts in progress
    have ended.

    ``instrument()`` takes these keyword arguments, all of them optional. A file of OpenTelemetry's declarative
    configuration passes them, except for the providers, from ``instrumentation/development: python: otel_pgpool:``. By
    default, an option has the value of its environment variable, which is its name in capitals after
    ``OTEL_PGPOOL_``, or else the default of that.

        tracer_provider: the tracer provider; by default the global one.
        meter_provider: the meter provider; by default the global one.
        spans: which checkouts get spans: ``always`` (the default), ``parent``, ``slow`` or ``off``.
        slow: with ``slow``: wait or hold in seconds from which on a checkout gets spans; by default 0.1.
        histograms: the histograms to record, of ``wait_time``, ``use_time`` and ``create_time``; by default all.
        stack_skip: packages that a long hold's stack leaves out, in addition to the known ones.
        caller: whether waits, holds and held connections are reported by caller; by default False.
        long_hold: hold time in seconds after which a checkout is reported as a long hold, None or 0 for never; by
            default 1.
        wait_timeout: longest wait in seconds for a connection of an exhausted ``ThreadedConnectionPool``, which by
            default raises at once.
        fork_repair: whether a pool of ``psycopg_pool`` or ``asyncpg`` begins anew in a forked child; by default False.
        database_state: ``all`` to ask the server about long holds, over a connection of its own; by default it is not
            asked.
        pools: the kinds of pools to instrument, such as ``["psycopg_pool"]``; by default all.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the requirements that the installed libraries meet; a library that is too old is left out."""
        return met_requirements()

    def _instrument(self, **options: Any) -> None:
        try:
            for option in sorted(options.keys() - {*OPTIONS, *OTHERS_OPTIONS}):
                known = ", ".join(known_options())
                logger.warning("PgPoolInstrumentor has no option %r, which is ignored; it has %s", option, known)
            given = {option: options[option] for option in OPTIONS if option in options}
            kinds = chosen_kinds(given.pop("pools", None), {kind_of(module) for module in ADAPTERS})
            _replace(InstrumentationOptions.of(**given), kinds)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            log_failure("failed to instrument connection pools; they stay uninstrumented", error)
            _remove()

    def uninstrument(self, **options: Any) -> None:
        """End the instrumentation, including one that `instrument_pool` has started."""
        if self.is_instrumented_by_opentelemetry or _installed is None:
            super().uninstrument(**options)
        else:
            self._uninstrument()

    def _uninstrument(self, **_options: Any) -> None:
        global _choices  # noqa: PLW0603 - one for the whole process, as the pools' classes are
        with _lock:
            _remove()
            _choices = Choices()


def instrument_pool(pool: Any) -> None:
    """Observe one pool, whether or not ``instrument()`` observes all pools of its kind.

    Before ``instrument()``, the options come from the environment, and the providers are the global ones. A later
    ``instrument()`` continues with its own options. ``uninstrument()`` ends the observation of this pool too.

    Args:
        pool: a pool of psycopg2, psycopg_pool or asyncpg, initialized or not, or a pool or an engine of SQLAlchemy.

    Raises:
        TypeError: the object is no such pool, or is one of another database. A `ConnectionPool` of this package
            reports itself.
    """
    module, found, owner = find_pool(ADAPTERS, pool, to_observe=True)
    with _lock:
        installed = _installed or _replace(InstrumentationOptions.of(), ())
        installed.session.select(found, owner)
        adapter = installed.install(module)
        if adapter is not None:
            adapter.track_selected(found if owner is None else owner)


def uninstrument_pool(pool: Any) -> None:
    """Stop observing one pool, even if ``instrument()`` observes all others of its kind, or will do so later.

    The spans of its checkouts in progress end. The choice applies until ``uninstrument()``.

    Args:
        pool: as for `instrument_pool`.

    Raises:
        TypeError: the object is no such pool.
    """
    _module, found, owner = find_pool(ADAPTERS, pool)
    with _lock:
        if _installed is None:
            _choices.exclude(found, owner)
            return
        _installed.session.exclude(found, owner)
        if not _installed.kinds and not _choices.is_any_selected():
            _remove()


def _replace(options: InstrumentationOptions, kinds: Collection[str]) -> InstalledAdapters:
    """Install adapters, which keep the choices of single pools."""
    global _installed  # noqa: PLW0603 - one for the whole process, as the pools' classes are
    with _lock:
        modules = [] if _installed is None else [*_installed.installed]
        _remove()
        installed = _installed = InstalledAdapters(ADAPTERS, options, kinds, _choices)
        installed.install_on_import()
        for module in modules:  # of the adapters that selected pools need
            installed.install(module)
    return installed


def _remove() -> None:
    """Remove the adapters, if any are installed."""
    global _installed
    with _lock:
        installed, _installed = _installed, None
        if installed is not None:
            installed.remove()


def _renew_locks() -> None:
    """Replace the locks in a forked child, because another thread of the parent may have held them."""
    global _lock  # noqa: PLW0603 - one for the whole process
    _lock = threading.RLock()
    if _installed is not None:
        _installed.renew_lock()


fork.register(_renew_locks)
