"""Protection of the application from errors of the instrumentation, and of the objects that it reads."""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.failures import ObserverGuard, is_external
from otel_pgpool.runtime.gc_state import COLLECTING, is_collecting_here

if TYPE_CHECKING:
    from collections.abc import Callable


class DeferringGuard(ObserverGuard):
    """The guard of a pool's observer, which leaves the calls made within a run of the garbage collector for later.

    The garbage collector may run anywhere, for example under a lock of an exporter, and close a generator that
    releases a connection. The observer would wait for that lock for ever.

    Args:
        pool_name: name of the pool.
        defer: leave a call to a background thread.
    """

    def __init__(self, pool_name: str, defer: Callable[[Callable[[], object]], None]) -> None:
        super().__init__(pool_name)
        self._defer = defer

    def notify(self, method: Callable[..., None], *args: object) -> None:
        """Notify the observer by calling one of its methods, now or later."""
        if COLLECTING and is_collecting_here():
            self._defer(partial(super().notify, method, *args))
        else:
            super().notify(method, *args)


def never_raise(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method so that its errors are logged by the object's guard, at most once a minute, and not raised."""

    @wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the application continues without telemetry
            self.guard.log_error(error)
            return None

    return guarded


class _IgnoreErrors:
    """A context manager that suppresses an ``Exception``, unless a signal handler raised it for the application."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        return error is not None and not is_external(error)


ignore_errors = _IgnoreErrors()
"""The context manager in which objects of the application are read."""


def raise_if_external(error: Exception) -> None:
    """Raise an error again if a signal handler raised it; otherwise suppress it. For the hot path, as `ignore_errors`.

    Raises:
        Exception: the error, if a signal handler raised it.
    """
    if is_external(error):
        raise error
