"""Fakes in the place of what the pool's modules have imported."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Change = tuple[Any, str, Any]
    """A module or a class, the name of its attribute, and the value that the attribute gets."""


def clocks(monotonic: Callable[[], float]) -> list[Change]:
    """Return the changes that give a clock to each module of the package that reads one."""
    return [
        (module, "monotonic", monotonic)
        for name, module in list(sys.modules.items())
        if name.startswith("otel_pgpool.") and callable(getattr(module, "monotonic", None)) and "clock" not in name
    ]


@contextmanager
def replaced(changes: Sequence[Change]) -> Iterator[None]:
    """Make the changes, and take them back at the end."""
    before = [(owner, name, vars(owner)[name]) for owner, name, _value in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
