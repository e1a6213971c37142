"""Protection of the application from errors of the instrumentation, and of the objects that it reads."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from otel_pgpool.runtime.failures import is_external

if TYPE_CHECKING:
    from collections.abc import Callable


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


def raise_if_asynchronous(error: Exception) -> None:
    """Suppress an error that an object of the application raised, for the hot path, which avoids `ignore_errors`.

    Raises:
        Exception: the error, if a signal handler raised it.
    """
    if is_external(error):
        raise error
