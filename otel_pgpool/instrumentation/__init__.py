"""The auto-instrumentation hook: pools of an unchanged program get the spans, metrics and logs of our own."""

from __future__ import annotations

import logging
import weakref
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # unchecked
    from wrapt import register_post_import_hook
except ModuleNotFoundError as error:
    message = "PgPoolInstrumentor needs the extra 'instrument': pip install 'otel-pgpool[instrument]'"
    raise ModuleNotFoundError(message, name=error.name) from error

from otel_pgpool._guard import log_failure
from otel_pgpool.instrumentation.hook import Hook
from otel_pgpool.instrumentation.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

logger = logging.getLogger("otel_pgpool")

KINDS = {
    "psycopg2.pool": "psycopg2_pool",
    "sqlalchemy": "sqlalchemy_pool",
}
"""The module of this package that hooks a kind of pool, by what must have been imported before there is one."""

FLAVOURS = {"psycopg2": "psycopg2 >= 2.9", "psycopg2-binary": "psycopg2-binary >= 2.9"}


class PgPoolInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # likewise
    """Shows the pools of a program that does not know of it.

    ``instrument()`` takes ``tracer_provider`` and ``meter_provider``, by default the global ones; ``spans``
    (``always``, ``parent``, ``slow``, ``off``), by default ``OTEL_PGPOOL_SPANS``; and ``long_hold`` in s, None or 0
    for never, by default ``OTEL_PGPOOL_LONG_HOLD``. ``uninstrument()`` leaves everything as it was found; checkouts
    that are out then end with it. Neither raises: what is wrong is logged.
    """

    _hook: Hook | None = None
    _undo: list[Callable[[], None]]

    def instrumentation_dependencies(self) -> Collection[str]:
        """The flavour of psycopg2 that is installed; none where it came by another way than a package."""
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
        except Exception as error:  # noqa: BLE001 - the program goes on without telemetry
            log_failure("pools could not be hooked, and stay as they are", error)
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
        if hook is None or not hook.is_on:  # what is to be called at an import is so for good
            return
        try:
            self._undo.append(import_module(f"{__name__}.{kind}").hook_on(hook))
        except Exception as error:  # noqa: BLE001 - likewise
            log_failure(f"{kind} could not be hooked, and stays as it is", error)

    def _uninstrument(self, **_options: Any) -> None:
        hook, self._hook = self._hook, None
        if hook is None:
            return
        undos, self._undo = self._undo, []
        for undo in (*reversed(undos), hook.end):
            try:
                undo()
            except Exception as error:  # noqa: BLE001 - likewise
                log_failure("a hook could not be taken off", error)
