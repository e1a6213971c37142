"""The adapters of one session, each installed once the library of its pools has been imported."""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

from wrapt import register_post_import_hook

from otel_pgpool.instrumentation.requirements import refused_release
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.runtime.failures import log_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from otel_pgpool.instrumentation.adapters.base import Installation
    from otel_pgpool.instrumentation.choices import Choices
    from otel_pgpool.instrumentation.options import InstrumentationOptions

logger = logging.getLogger("otel_pgpool")


def kind_of(module: str) -> str:
    """Return the name of a kind of pools: the top-level package of its library."""
    return module.partition(".")[0]


class InstalledAdapters:
    """The adapters between ``instrument()``, or the first ``instrument_pool()``, and the end.

    Args:
        adapters: names of the classes of adapters, by module of the library.
        options: the options.
        kinds: the kinds of which every pool is observed; a pool of another kind is observed only if it is selected.
        choices: the pools that were selected or excluded.
    """

    def __init__(
        self,
        adapters: Mapping[str, str],
        options: InstrumentationOptions,
        kinds: Collection[str],
        choices: Choices | None = None,
    ) -> None:
        self._adapters = adapters
        self.kinds = frozenset(kinds)
        self.session = InstrumentationSession(options, self.kinds, choices)
        self.installed: dict[str, Installation] = {}  # by module
        self._begun: set[str] = set()  # modules whose adapter is installed, or is being installed
        self._is_removed = False
        self.renew_lock()

    def renew_lock(self) -> None:
        """Create the lock, anew in a forked child."""
        self._lock = threading.RLock()  # reentrant, because a signal handler may call `instrument_pool`

    def install_on_import(self) -> None:
        """Install the adapters of the observed kinds, each as soon as its library is imported."""
        itself = weakref.ref(self)  # wrapt cannot unregister a post-import hook
        for module in self._adapters:
            if kind_of(module) in self.kinds:
                register_post_import_hook(partial(_install_imported, itself, module), module)

    def install(self, module: str) -> Installation | None:
        """Install the adapter of an imported library, unless it is installed already; return the adapter.

        The result is None if that fails, or if another thread is about to install the adapter. This method does not
        wait for that thread, which may hold the lock of a module that this thread is importing.
        """
        with self._lock:
            if module in self._begun:
                return self.installed.get(module)
            self._begun.add(module)
        adapter = None
        try:
            adapter = self._new_adapter(module)
        finally:
            with self._lock:
                is_late = self._is_removed
                if adapter is None:
                    self._begun.discard(module)
                elif not is_late:
                    self.installed[module] = adapter
        if adapter is not None and is_late:
            _undo(adapter.uninstall)
            return None
        return adapter

    def _new_adapter(self, module: str) -> Installation | None:
        refused = refused_release(module)
        if refused is not None:
            kind = kind_of(module)
            logger.warning("the pools of %s stay uninstrumented, because the installed release is %s", kind, refused)
            return None
        try:
            adapter: Installation = resolve_name(self._adapters[module])(self.session)
            adapter.kind = kind_of(module)
            try:
                adapter.install()
            except BaseException:
                adapter.uninstall()
                raise
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            log_failure(f"failed to instrument the pools of {module}; they stay uninstrumented", error)
            return None
        return adapter

    def remove(self) -> None:
        """Remove every adapter, and end the session. An adapter that is being installed is removed by its thread."""
        with self._lock:
            self._is_removed = True
            adapters = [*self.installed.values()]
            self.installed.clear()
        for adapter in reversed(adapters):
            _undo(adapter.uninstall)
        _undo(self.session.end)


def _undo(undo: Callable[[], None]) -> None:
    try:
        undo()
    except Exception as error:  # noqa: BLE001 - the other parts have to be undone too
        log_failure("failed to remove the instrumentation", error)


def _install_imported(itself: weakref.ref[InstalledAdapters], module: str, _module: object) -> None:
    installed = itself()
    if installed is not None and installed.session.is_on:
        installed.install(module)


class FoundPool(NamedTuple):
    """A pool that was given to ``instrument_pool`` or ``uninstrument_pool``."""

    module: str
    """Module of the library, the key of its adapter."""
    pool: Any
    owner: Any
    """The object that has the pool and may replace it; None if there is none."""


def find_pool(adapters: Mapping[str, str], given: Any, *, to_observe: bool = False) -> FoundPool:
    """Return the pool that an object is or has.

    Only adapters of libraries that define a class of the object are imported. If one cannot be imported, that is
    logged.

    Raises:
        TypeError: the object is no pool of a known kind, or it is to be observed and can never be.
    """
    libraries = {kind_of(str(cls.__module__)) for cls in given.__class__.__mro__}
    for module, name in adapters.items():
        if module in sys.modules and kind_of(module) in libraries:
            try:
                adapter: type[Installation] = resolve_name(name)
            except Exception as error:  # noqa: BLE001 - whatever the import of a library raises
                log_failure(f"failed to import the adapter of {module}", error)
                continue
            pool = adapter.pool_of(given)
            if pool is not None:
                if to_observe:
                    adapter.check_observable(given)
                return FoundPool(module, pool, adapter.owner_of(given))
    kinds = ", ".join(sorted({kind_of(module) for module in adapters}))
    raise TypeError(f"expected a pool of {kinds}, not {_shown(given)}")


def _shown(given: Any) -> str:
    """Return what an object is, without its values, which may be secret."""
    if given is None:
        return "None"
    return f"the class {given.__qualname__}" if isinstance(given, type) else type(given).__qualname__
