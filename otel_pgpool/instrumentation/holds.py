"""The holds of an instrumented pool.

A hold that leaves neither span nor record is kept as a tuple until there is something to report about it.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from otel_pgpool.pool.call_site import places
from otel_pgpool.pool.checkout import NEVER, begin
from otel_pgpool.runtime.clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_pgpool.pool.checkout import Loan, Slot

QuietHold = tuple[Any, ...]
"""The time of the hand-over, the thread, and code and instruction of three call sites, innermost first."""


def loan_of(quiet: QuietHold, slot: Slot) -> Loan:
    """Return a quiet hold as a checkout."""
    acquired, thread, *stack = quiet
    frames = dict.fromkeys(places(tuple(stack)))  # a short stack contains its last call site several times
    loan = begin(acquired, tuple(chain.from_iterable(frames)))
    loan.thread = thread
    loan.heard = False
    loan.path = "idle"
    loan.acquired = acquired
    loan.slot = slot
    loan.lent = True
    return loan


class Holds:
    """The holds of one pool. There is no lock: after each step the state is consistent for other threads."""

    __slots__ = ("holds", "quiet", "slots")

    def start_afresh(self) -> None:
        """Drop all holds and connections."""
        self.slots: dict[int, Slot] = {}  # slots of the known connections, by id of the connection
        self.holds: dict[Loan, None] = {}  # in the order of their acquisition
        self.quiet: dict[int, QuietHold] = {}  # in the order of their acquisition, by id of the connection

    def speak_up_of(self, slot: Slot) -> Loan | None:
        """Turn a quiet hold into a checkout and return that; None if the hold has ended in the meantime."""
        quiet = self.quiet.get(slot.key)
        if quiet is None:
            return None
        loan = loan_of(quiet, slot)
        slot.checkout = loan  # before the quiet hold is removed, so that a concurrent return finds one of the two
        self.holds[loan] = None
        taken = self.quiet.pop(slot.key, None)
        if taken is None:  # the connection was returned in between
            if slot.checkout is loan:
                slot.checkout = None
            self.holds.pop(loan, None)
            return None
        if taken is not quiet:  # the connection was returned and checked out again in between
            loan.acquired = loan.started = taken[0]
            loan.thread = taken[1]
        return loan

    def speak_up_all(self, begun: float = NEVER) -> None:
        """Turn every quiet hold that began before ``begun`` into a checkout."""
        for key, quiet in self.quiet.copy().items():
            slot = self.slots.get(key) if quiet[0] <= begun else None
            if slot is not None:
                self.speak_up_of(slot)

    def holds_now(self) -> list[Loan]:
        """Return every hold, the longest first."""
        self.speak_up_all()
        return sorted(self.holds.copy(), key=_acquired)

    def oldest_hold(self) -> float:
        """Return the age of the oldest hold in seconds; 0 if there is none."""
        now = monotonic()
        return max(0.0, now - min(self.begun_of(self.holds.copy()), default=now))

    def begun_of(self, loans: Iterable[Loan]) -> list[float]:
        """Return when these holds and the quiet ones began, in no particular order.

        A former quiet hold comes after younger ones in `holds`.
        """
        return [loan.acquired for loan in loans] + [quiet[0] for quiet in self.quiet.copy().values()]


def _acquired(loan: Loan) -> float:
    return loan.acquired
