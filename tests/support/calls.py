"""The calls of this package's functions, counted: for code that has to cost little."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import otel_pgpool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PACKAGE = otel_pgpool.__path__[0]


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls in a block, by name."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def calls_in(action: Callable[[], object]) -> Counter[str]:
    """Return the calls during an action."""
    with counted() as calls:
        action()
    return calls
