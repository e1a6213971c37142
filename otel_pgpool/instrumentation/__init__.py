"""The auto-instrumentation: pools of an unchanged application get the spans, metrics and logs of `ConnectionPool`."""

from __future__ import annotations

import logging
import weakref
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # the package is not typed
    from wrapt import register_post_import_hook
except ModuleNotFoundError as error:
    message = "PgPoolInstrumentor needs the extra 'instrument': pip install 'otel-pgpool[instrument]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.runtime.failures import log_failure

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import ModuleType

    from otel_pgpool.instrumentation.adapters.base import LibraryAdapter

logger = logging.getLogger("otel_pgpool")

ADAPTERS = {
    "psycopg2.pool": "otel_pgpool.instrumentation.adapters.psycopg2.install:Psycopg2Adapter",
    "sqlalchemy": "otel_pgpool.instrumentation.adapters.sqlalchemy.install:SqlalchemyAdapter",
}
"""By module of a library: the class of the adapter, imported once the library's module has been imported.

Another kind of pool is added before ``instrument()``: see ``docs/extending.md``.
"""

DISTRIBUTIONS = {"psycopg2": "psycopg2 >= 2.9", "psycopg2-binary": "psycopg2-binary >= 2.9"}


class PgPoolInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # the base class is not typed
    """The instrumentor for psycopg2's pools, their subclasses, and the pools of SQLAlchemy engines that use psycopg2.

    ``instrument()`` starts and ``uninstrument()`` ends the instrumentation; both are inherited from OpenTelemetry's
    ``BaseInstrumentor``, and ``opentelemetry-instrument`` calls the former. Neither raises: errors and invalid values
    are logged. After ``uninstrument()`` the original methods are in place again, and the spans of checkouts in progress
    have ended.

    ``instrument()`` takes these keyword arguments, all of them optional:

        tracer_provider: the tracer provider; by default the global one.
        meter_provider: the meter provider; by default the global one.
        spans: which checkouts get spans: ``always``, ``parent``, ``slow`` or ``off``; by default ``OTEL_PGPOOL_SPANS``,
            or ``always`` if that is not set.
        long_hold: hold time in seconds after which a checkout is reported as a long hold, None or 0 for never; by
            default ``OTEL_PGPOOL_LONG_HOLD``, or 1 if that is not set.
    """

    _session: InstrumentationSession | None = None
    _adapters: list[LibraryAdapter]

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the requirement for the installed distribution of psycopg2, or nothing if there is none."""
        for name, requirement in DISTRIBUTIONS.items():
            try:
                distribution(name)
            except PackageNotFoundError:
                continue
            return (requirement,)
        return ()

    def _instrument(self, **options: Any) -> None:
        try:
            self._start(options)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            log_failure("failed to instrument connection pools; they stay uninstrumented", error)
            self._uninstrument()

    def _start(self, options: dict[str, Any]) -> None:
        known = ("tracer_provider", "meter_provider", "spans", "long_hold")
        for option in options.keys() - {*known}:
            logger.debug("PgPoolInstrumentor has no option %r", option)
        given = {option: options[option] for option in known if option in options}
        session = InstrumentationSession(InstrumentationOptions.of(**given))
        self._session, self._adapters = session, []
        for module, adapter in ADAPTERS.items():
            register_post_import_hook(partial(self._install, weakref.ref(session), adapter), module)

    def _install(self, session_ref: weakref.ref[InstrumentationSession], name: str, module: ModuleType) -> None:
        session = session_ref()
        if session is None or not session.is_on:  # wrapt cannot unregister a post-import hook
            return
        try:
            adapter: LibraryAdapter = resolve_name(name)(session)
            try:
                adapter.install()
            except BaseException:
                adapter.uninstall()
                raise
            self._adapters.append(adapter)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            log_failure(f"failed to instrument the pools of {module.__name__}; they stay uninstrumented", error)

    def _uninstrument(self, **_options: Any) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        adapters, self._adapters = self._adapters, []
        for undo in (*(adapter.uninstall for adapter in reversed(adapters)), session.end):
            try:
                undo()
            except Exception as error:  # noqa: BLE001 - the other parts have to be undone too
                log_failure("failed to remove the instrumentation", error)
