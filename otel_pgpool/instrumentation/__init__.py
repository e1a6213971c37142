"""The auto-instrumentation: pools of an unchanged application get the spans, metrics and logs of `ConnectionPool`."""

from __future__ import annotations

import logging
import weakref
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # the package is not typed
    from wrapt import register_post_import_hook
except ModuleNotFoundError as error:
    message = "PgPoolInstrumentor needs the extra 'instrument': pip install 'otel-pgpool[instrument]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from otel_pgpool.instrumentation.hook import Hook
from otel_pgpool.instrumentation.settings import Settings
from otel_pgpool.runtime.failures import log_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

logger = logging.getLogger("otel_pgpool")

KINDS = {
    "psycopg2.pool": "psycopg2_pool",
    "sqlalchemy": "sqlalchemy_pool",
}
"""By module: the submodule that instruments its pools, imported once the module itself has been imported."""

FLAVOURS = {"psycopg2": "psycopg2 >= 2.9", "psycopg2-binary": "psycopg2-binary >= 2.9"}


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

    _hook: Hook | None = None
    _undo: list[Callable[[], None]]

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return the requirement for the installed distribution of psycopg2, or nothing if there is none."""
        for flavour, requirement in FLAVOURS.items():
            try:
                distribution(flavour)
            except PackageNotFoundError:
                continue
            return (requirement,)
        return ()

    def _instrument(self, **options: Any) -> None:
        try:
            self._turn_on(options)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            log_failure("failed to instrument connection pools; they stay uninstrumented", error)
            self._uninstrument()

    def _turn_on(self, options: dict[str, Any]) -> None:
        known = ("tracer_provider", "meter_provider", "spans", "long_hold")
        for option in options.keys() - {*known}:
            logger.debug("PgPoolInstrumentor has no option %r", option)
        hook = Hook(Settings.of(**{option: options[option] for option in known if option in options}))
        self._hook, self._undo = hook, []
        for module, kind in KINDS.items():
            register_post_import_hook(partial(self._hook_on, weakref.ref(hook), kind), module)

    def _hook_on(self, hook_ref: weakref.ref[Hook], kind: str, _module: object) -> None:
        hook = hook_ref()
        if hook is None or not hook.is_on:  # wrapt cannot unregister a post-import hook
            return
        try:
            self._undo.append(import_module(f"{__name__}.{kind}").hook_on(hook))
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            log_failure(f"failed to instrument {kind}; its pools stay uninstrumented", error)

    def _uninstrument(self, **_options: Any) -> None:
        hook, self._hook = self._hook, None
        if hook is None:
            return
        undos, self._undo = self._undo, []
        for undo in (*reversed(undos), hook.end):
            try:
                undo()
            except Exception as error:  # noqa: BLE001 - the other parts have to be undone too
                log_failure("failed to remove the instrumentation", error)
