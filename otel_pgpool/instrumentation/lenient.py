"""Suppression of errors that the application's own objects raise when the instrumentation reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool.runtime.failures import is_asynchronous

if TYPE_CHECKING:
    from types import TracebackType


class _Lenient:
    """A context manager that suppresses an ``Exception``, unless a signal handler raised it for the application."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        return error is not None and not is_asynchronous(error)


lenient = _Lenient()


def pass_over(error: Exception) -> None:
    """Suppress an error.

    Raises:
        Exception: the error, if a signal handler raised it.
    """
    if is_asynchronous(error):
        raise error
