"""Go on without an answer where a program's own objects refuse one to the hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_pgpool._guard import is_asynchronous

if TYPE_CHECKING:
    from types import TracebackType


class _Lenient:
    """Suppresses an ``Exception``, unless a signal handler has raised it: that one is for the program."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        return error is not None and not is_asynchronous(error)


lenient = _Lenient()


def pass_over(error: Exception) -> None:
    """Go on without what has raised it.

    Raises:
        Exception: it, where a signal handler has raised it.
    """
    if is_asynchronous(error):
        raise error
