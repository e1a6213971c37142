"""Holds that leave neither span nor record, kept as tuples until there is something to tell of them."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from otel_pgpool._checkout import begin, places

if TYPE_CHECKING:
    from otel_pgpool._checkout import Loan
    from otel_pgpool._slot import Slot

QuietHold = tuple[Any, ...]
"""When it was acquired, by which thread, then the code and instruction of three frames that asked, innermost first."""


def loan_of(quiet: QuietHold, slot: Slot) -> Loan:
    """The checkout that it is."""
    acquired, thread, *stack = quiet
    frames = dict.fromkeys(places(tuple(stack)))  # a short stack repeats
    loan = begin(acquired, tuple(chain.from_iterable(frames)))
    loan.thread = thread
    loan.heard = False
    loan.path = "idle"
    loan.acquired = acquired
    loan.slot = slot
    loan.lent = True
    return loan
