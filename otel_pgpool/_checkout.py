"""The record of one checkout, from the request to the return."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from otel_pgpool._observer import Holder
from otel_pgpool._texts import file_of, function_of, thread_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import CodeType, FrameType

    from otel_pgpool._slot import Slot

Place = tuple["CodeType", int]
"""A code object and the last instruction: cheaper to take than a line number, which few checkouts need."""

Stack = tuple[Any, ...]
"""The places of the frames that asked, innermost first, one behind the other: at half the price of a tuple for each."""


class Attempt(NamedTuple):
    """A failed attempt that a checkout lived through: a dead connection, or a connect that failed."""

    at: float
    error_type: str
    delay: float
    """Seconds until the next attempt."""
    message: str = ""
    """What may be told of the error."""


class Blocker(NamedTuple):
    """A hold that a queued checkout found in its way."""

    observed: Any
    """The observer's own of the holder's checkout."""
    connection_id: int
    pid: int
    held: float
    """Seconds, when the waiter queued."""
    stack: Stack
    """Where it was asked for. Not its checkout, which may have blockers of its own, and those likewise."""

    @classmethod
    def of(cls, hold: Checkout, now: float) -> Blocker:
        """A hold that is there now."""
        slot = hold.slot
        return cls(hold.observed, slot.serial, slot.pid, max(0.0, now - hold.acquired), hold.stack)

    @property
    def path_to(self) -> str:
        """Where it was asked for, a line for each frame, innermost first."""
        return path_to(self.stack)


class Checkout:
    """One request for a connection. Times are readings of ``time.monotonic`` in s.

    It never refers to the connection itself, so that one which its borrower drops can be reclaimed.
    """

    __slots__ = (
        "__dict__",
        "acquired",
        "ended",
        "lent",
        "outcome",
        "path",
        "released",
        "slot",
        "stack",
        "started",
        "thread",
    )

    started: float
    stack: Stack
    """Where it was asked for."""
    thread: threading.Thread
    """The borrower's."""
    path: str | None
    """``idle``, ``queued`` or ``new``; None until the hand-over."""
    slot: Slot
    """The connection that it was lent; set, like ``acquired``, at the hand-over."""
    acquired: float
    lent: bool
    """There, and True, while it holds the connection; deleting it is the one atomic act that gives it back."""
    ended: bool
    """There, and True, once its observer has been told of its end."""
    released: float
    """When it came back, or the checkout failed; set, like ``outcome``, then."""
    outcome: str

    # What few checkouts need stands on the class: it costs the others nothing.
    block: bool = True
    """By ``with pool.connection()``, whose span is current inside."""
    observed: Any = None
    """The observer's own."""
    waits_for: str = "idle"
    """The path that it would take if it were served now."""
    queued: float | None = None
    blockers: Sequence[Blocker] = ()
    retries: int = 0
    attempts: Sequence[Attempt] = ()
    error: BaseException | None = None
    """Of the last failed attempt."""
    expected_hold: float | None = None
    """Seconds that the hold may last, infinite for any time; None: as long as the pool's others."""
    flagged: bool = False
    """Held over the threshold."""
    flagged_at: float = 0.0
    told: bool = False
    """The observer has said so."""
    error_type: str | None = None
    """What of the pool's own work failed: the wait, a connect, a commit or a rollback."""
    error_message: str = ""

    def retried(self, attempt: Attempt, error: BaseException | None) -> None:
        """Count a failed attempt. Called by the borrower, or under the lock while it waits."""
        self.retries += 1
        self.error = error
        self.attempts = (*self.attempts, attempt)

    def fail(self, error_type: str, message: str) -> None:
        """Say what of the pool's own work failed: the wait, a connect, a commit or a rollback."""
        self.error_type = error_type
        self.error_message = message

    @property
    def where(self) -> str:
        """``file:line function`` of the innermost frame that asked for the connection."""
        return describe(next(places(self.stack)))

    @property
    def path_to(self) -> str:
        """Where it was asked for, a line for each frame, innermost first."""
        return path_to(self.stack)

    def holder(self, now: float) -> Holder:
        """Describe it to a person."""
        return Holder(
            connection_id=self.slot.serial,
            pid=self.slot.pid,
            thread=thread_names[self.thread.name] + ("" if self.thread.is_alive() else " (ended)"),
            held=max(0.0, now - self.acquired),
            where=self.where,
            trace_id=getattr(self.observed, "trace_id", None),
        )


class Loan(Checkout):
    """A checkout that is given back by hand, maybe in another thread: by getconn, or from a pool that is not ours."""

    # What is looked at in each of them has its place in the record, for Python is slow to find it on the class.
    __slots__ = (
        "block",
        "error_type",
        "flagged",
        "heard",
        "observed",
        "queued",
        "retries",
    )

    heard: bool
    """Whether its observer wants to hear of it; known for pools that are not ours."""


def begin(started: float, stack: Stack) -> Loan:
    """A new record. It has no ``__init__``: that would double its cost."""
    loan = Loan()
    loan.started = started
    loan.stack = stack
    loan.thread = here.thread
    loan.path = loan.observed = loan.queued = loan.error_type = None
    loan.block = loan.flagged = False
    loan.retries = 0
    return loan


def _make_here() -> Any:
    class Here(threading.local):
        """The running thread, at half the price of ``threading.current_thread``."""

        def __init__(self) -> None:
            self.thread = threading.current_thread()

    return Here()


here = _make_here()


def renew_here() -> None:
    """Follow gevent, where it has put its own ``threading.local`` in the place of the one that was imported first."""
    global here  # noqa: PLW0603 - it is what every checkout looks at
    if not isinstance(here, threading.local):
        here = _make_here()


OWN_PACKAGE = __name__.partition(".")[0]
OWN_PROGRAM = f"{OWN_PACKAGE}.cli"
GETCONN_FRAMES = 4


class LeftOut(dict[str, bool]):
    """Whether frames of a module are no place of the program's: this package's own are none, nor those of others.

    Args:
        packages: that stand between the program and us.
    """

    def __init__(self, *packages: str) -> None:
        self._packages = packages

    def __missing__(self, module: str) -> bool:
        package = module.partition(".")[0]
        is_own = package == OWN_PACKAGE and not module.startswith(OWN_PROGRAM)
        self[module] = left_out = is_own or package in self._packages
        return left_out


OWN = LeftOut()


def stack_of(frame: FrameType | None, left_out: LeftOut = OWN) -> Stack:
    """Up to four frames from ``frame`` outwards, innermost first."""
    stack: list[Any] = []
    while frame is not None and len(stack) < 2 * GETCONN_FRAMES:
        if not left_out[frame.f_globals.get("__name__", "")]:
            stack += (frame.f_code, frame.f_lasti)
        frame = frame.f_back
    return tuple(stack)


def stack_around(wrapper: FrameType, left_out: LeftOut = OWN) -> Stack:
    """Who called a wrapper of ours; itself, where that was no function of Python, as with the first of a thread."""
    return stack_of(wrapper.f_back, left_out) or (wrapper.f_code, wrapper.f_lasti)


def whole_stack_of(frame: FrameType) -> Stack:
    """The four innermost frames, where none of them can be of this package; at a third of the price."""
    if (second := frame.f_back) is None or (third := second.f_back) is None or (fourth := third.f_back) is None:
        return stack_of(frame) or (frame.f_code, frame.f_lasti)
    return (
        frame.f_code,
        frame.f_lasti,
        second.f_code,
        second.f_lasti,
        third.f_code,
        third.f_lasti,
        fourth.f_code,
        fourth.f_lasti,
    )


def whole_stack_past(frame: FrameType, left_out: LeftOut) -> Stack:
    """The same where others may stand in between: the four innermost, if all of them are the program's."""
    try:
        if (
            (second := frame.f_back) is None
            or (third := second.f_back) is None
            or (fourth := third.f_back) is None
            or left_out[frame.f_globals["__name__"]]
            or left_out[second.f_globals["__name__"]]
            or left_out[third.f_globals["__name__"]]
            or left_out[fourth.f_globals["__name__"]]
        ):
            return stack_of(frame, left_out) or (frame.f_code, frame.f_lasti)
    except KeyError:  # code without a module
        return stack_of(frame, left_out)
    return (
        frame.f_code,
        frame.f_lasti,
        second.f_code,
        second.f_lasti,
        third.f_code,
        third.f_lasti,
        fourth.f_code,
        fourth.f_lasti,
    )


def places(stack: Stack) -> Iterator[Place]:
    """Each of a stack, innermost first."""
    return zip(stack[::2], stack[1::2], strict=True)


def path_to(stack: Stack) -> str:
    """A line for each place, innermost first."""
    return "\n".join(describe(place) for place in places(stack))


def describe(place: Place) -> str:
    """``file:line function``."""
    code, instruction = place
    return f"{file_of(code)}:{_line(code, instruction)} {function_of(code)}"


def _line(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno
