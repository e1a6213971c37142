"""What is out of a pool that is not ours.

Holds that leave neither span nor record are kept as tuples until there is something to tell of them.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from otel_pgpool._checkout import begin, places
from otel_pgpool._clock import monotonic
from otel_pgpool._slot import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterable

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


class Holds:
    """The holds of one pool. No lock: every step leaves what another thread can make sense of."""

    __slots__ = ("holds", "quiet", "slots")

    def start_afresh(self) -> None:
        """Nothing is out, and no connection known."""
        self.slots: dict[int, Slot] = {}  # the connections seen, by id
        self.holds: dict[Loan, None] = {}  # in the order of their acquisition
        self.quiet: dict[int, QuietHold] = {}  # likewise, by id of the connection

    def speak_up_of(self, slot: Slot) -> Loan | None:
        """Make a checkout of a quiet hold, unless it ended meanwhile."""
        quiet = self.quiet.get(slot.key)
        if quiet is None:
            return None
        loan = loan_of(quiet, slot)
        slot.checkout = loan  # there before the quiet hold goes: whoever returns it finds the one or the other
        self.holds[loan] = None
        taken = self.quiet.pop(slot.key, None)
        if taken is None:  # it came back in between
            if slot.checkout is loan:
                slot.checkout = None
            self.holds.pop(loan, None)
            return None
        if taken is not quiet:  # and was lent again
            loan.acquired = loan.started = taken[0]
            loan.thread = taken[1]
        return loan

    def speak_up_all(self, begun: float = NEVER) -> None:
        """Make checkouts of every quiet hold that had begun by then."""
        for key, quiet in self.quiet.copy().items():
            slot = self.slots.get(key) if quiet[0] <= begun else None
            if slot is not None:
                self.speak_up_of(slot)

    def holds_now(self) -> list[Loan]:
        """Everything that is out, the longest hold first."""
        self.speak_up_all()
        return sorted(self.holds.copy(), key=_acquired)

    def oldest_hold(self) -> float:
        """Seconds since the longest of them began; 0 where nothing is out."""
        now = monotonic()
        return max(0.0, now - min(self.begun_of(self.holds.copy()), default=now))

    def begun_of(self, loans: Iterable[Loan]) -> list[float]:
        """When these holds and the quiet ones began, in no order: one that spoke up stands behind younger ones."""
        return [loan.acquired for loan in loans] + [quiet[0] for quiet in self.quiet.copy().values()]


def _acquired(loan: Loan) -> float:
    return loan.acquired
