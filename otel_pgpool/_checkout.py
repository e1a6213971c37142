"""The record of one checkout, from the request to the return of the connection."""

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
"""A call site: a code object and the index of its last instruction.

Recording the index costs less than computing a line number, which few checkouts need.
"""

Stack = tuple[Any, ...]
"""The call sites of the requesting frames, innermost first, as one flat tuple (code, index, code, index, ...).

A flat tuple costs half as much as a tuple of pairs.
"""


class Attempt(NamedTuple):
    """A failed attempt within a checkout: a dead connection, or a failed connect."""

    at: float
    error_type: str
    delay: float
    """Seconds until the next attempt."""
    message: str = ""
    """Text of the error, free of secrets."""


class Blocker(NamedTuple):
    """A hold that was in progress when a checkout queued."""

    observed: Any
    """The observer's data of the checkout that holds."""
    connection_id: int
    pid: int
    held: float
    """Seconds that the hold had lasted when the checkout queued."""
    stack: Stack
    """Call sites of the checkout that holds.

    The checkout itself is not kept, as its own blockers would form a chain.
    """

    @classmethod
    def of(cls, hold: Checkout, now: float) -> Blocker:
        """Describe a hold in progress."""
        slot = hold.slot
        return cls(hold.observed, slot.serial, slot.pid, max(0.0, now - hold.acquired), hold.stack)

    @property
    def path_to(self) -> str:
        """The call sites as text, one line for each frame, innermost first."""
        return path_to(self.stack)


class Checkout:
    """The record of one checkout. Times are readings of ``time.monotonic`` in seconds.

    A checkout has no reference to its connection, so that a connection dropped by its holder is collected and
    reclaimed.
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
    """Call sites of the request."""
    thread: threading.Thread
    """The thread that asked for the connection."""
    path: str | None
    """How the connection was obtained: ``idle``, ``queued`` or ``new``; None until the hand-over."""
    slot: Slot
    """The slot of the connection; set at the hand-over, like ``acquired``."""
    acquired: float
    lent: bool
    """Present, and True, while the checkout holds the connection; deleting it is the atomic step of a release."""
    ended: bool
    """Present, and True, once the observer was notified of the checkout's end."""
    released: float
    """When the connection was returned or the checkout failed; set at that moment, like ``outcome``."""
    outcome: str

    # Defaults of the attributes that few checkouts set: on the class they cost the others nothing.
    block: bool = True
    """Whether the checkout belongs to ``with pool.connection()``, inside which its span is the current one."""
    observed: Any = None
    """Data of the observer."""
    waits_for: str = "idle"
    """The path that the checkout would have if it were served now."""
    queued: float | None = None
    blockers: Sequence[Blocker] = ()
    retries: int = 0
    attempts: Sequence[Attempt] = ()
    error: BaseException | None = None
    """The error of the last failed attempt."""
    expected_hold: float | None = None
    """Seconds that the hold may last, infinite for any duration; None for the pool's ``long_hold``."""
    flagged: bool = False
    """Whether the hold has passed its threshold."""
    flagged_at: float = 0.0
    told: bool = False
    """Whether the observer has reported the long hold."""
    error_type: str | None = None
    """``error.type`` of what failed in the pool's own work: the wait, a connect, a commit or a rollback."""
    error_message: str = ""

    def retried(self, attempt: Attempt, error: BaseException | None) -> None:
        """Count a failed attempt. Called by the thread of the checkout, or under the lock while that thread waits."""
        self.retries += 1
        self.error = error
        self.attempts = (*self.attempts, attempt)

    def fail(self, error_type: str, message: str) -> None:
        """Record what failed in the pool's own work: the wait, a connect, a commit or a rollback."""
        self.error_type = error_type
        self.error_message = message

    @property
    def where(self) -> str:
        """The innermost call site of the request, as ``file:line function``."""
        return describe(next(places(self.stack)))

    @property
    def path_to(self) -> str:
        """The call sites of the request as text, one line for each frame, innermost first."""
        return path_to(self.stack)

    def holder(self, now: float) -> Holder:
        """Return a description of the hold for people."""
        return Holder(
            connection_id=self.slot.serial,
            pid=self.slot.pid,
            thread=thread_names[self.thread.name] + ("" if self.thread.is_alive() else " (ended)"),
            held=max(0.0, now - self.acquired),
            where=self.where,
            trace_id=getattr(self.observed, "trace_id", None),
        )


class Loan(Checkout):
    """A checkout that is returned by a call, maybe in another thread: of ``getconn``, or of an instrumented pool."""

    # These are read for each such checkout. A slot in the record is faster to read than a default on the class.
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
    """Whether the observer is notified of this checkout; set by instrumented pools."""


def begin(started: float, stack: Stack) -> Loan:
    """Create the record of a checkout that is returned by a call.

    This is a function because an ``__init__`` would double the cost.
    """
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
        """A cache of the running thread, at half the cost of ``threading.current_thread``."""

        def __init__(self) -> None:
            self.thread = threading.current_thread()

    return Here()


here = _make_here()


def renew_here() -> None:
    """Replace the thread cache if gevent has replaced ``threading.local`` since this module was imported."""
    global here  # noqa: PLW0603 - a module-level name is the fastest that a checkout can read
    if not isinstance(here, threading.local):
        here = _make_here()


OWN_PACKAGE = __name__.partition(".")[0]
OWN_PROGRAM = f"{OWN_PACKAGE}.cli"
GETCONN_FRAMES = 4


class LeftOut(dict[str, bool]):
    """A cache: module name -> True if its frames are skipped in the search for the application's call sites.

    Modules of this package are skipped, except for the command line's.

    Args:
        packages: further top-level packages to skip.
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
    """Return up to four call sites from ``frame`` outwards, innermost first."""
    stack: list[Any] = []
    while frame is not None and len(stack) < 2 * GETCONN_FRAMES:
        if not left_out[frame.f_globals.get("__name__", "")]:
            stack += (frame.f_code, frame.f_lasti)
        frame = frame.f_back
    return tuple(stack)


def stack_around(wrapper: FrameType, left_out: LeftOut = OWN) -> Stack:
    """Return the call sites of a wrapper's callers.

    Where none is left, as when the wrapper is a thread's first function, the result is the wrapper itself.
    """
    return stack_of(wrapper.f_back, left_out) or (wrapper.f_code, wrapper.f_lasti)


def whole_stack_of(frame: FrameType) -> Stack:
    """Return the four innermost call sites, if none can belong to this package; costs a third of `stack_of`."""
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
    """Return the four innermost call sites where frames to skip may be among them.

    This is a fast path for callers whose four innermost frames are all the application's; otherwise it calls
    `stack_of`.
    """
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
    except KeyError:  # a frame of code without a module name
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
    """Iterate over the call sites of a stack, innermost first."""
    return zip(stack[::2], stack[1::2], strict=True)


def path_to(stack: Stack) -> str:
    """Return a text with one line for each call site, innermost first."""
    return "\n".join(describe(place) for place in places(stack))


def describe(place: Place) -> str:
    """Return a call site as ``file:line function``."""
    code, instruction = place
    return f"{file_of(code)}:{_line(code, instruction)} {function_of(code)}"


def _line(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno
