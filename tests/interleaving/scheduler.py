"""A deterministic scheduler: one thread for each operation, of which one at a time runs, up to the next switch.

A thread may be switched away before each bytecode of the package that touches something shared (`EVERY_BYTECODE`), or
only where CPython's eval breaker is read (`EVAL_BREAKER`): at the start of a function, after a call, and at a backward
jump. The first is a superset of the second. Bytecodes between two of them touch nothing that another thread sees, so
a switch there has the same effect as one at the next of them.
"""

from __future__ import annotations

import dis
import sys
import threading
from typing import TYPE_CHECKING, Any

import otel_pgpool

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

PACKAGE = otel_pgpool.__path__[0]
EVERY_BYTECODE, EVAL_BREAKER = "every bytecode", "eval breaker"
PATIENCE = 20.0
"""Seconds of real time after which a step is considered stuck: a lock that the scheduler does not know blocks it."""

# CPython 3.10 to 3.13 read the eval breaker in these instructions, whose names differ by version: calls, the start of a
# function, and jumps backward. 3.10 also reads it in a conditional jump that is taken, backward or forward.
BREAKERS = frozenset(
    number
    for name, number in dis.opmap.items()
    if name.startswith(("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "JUMP_ABSOLUTE", "GEN_START"))
    or name in {"BEFORE_WITH", "SETUP_WITH", "WITH_EXCEPT_START"}
)
TAKEN = frozenset(
    number for name, number in dis.opmap.items() if sys.version_info < (3, 11) and name.startswith("POP_JUMP_IF")
)


class Interrupted(KeyboardInterrupt):
    """The interrupt that a test raises inside an operation."""


class Deadlocked(AssertionError):  # noqa: N818 - as Interrupted: what has happened to the threads
    """Every thread waits for a lock that another one holds."""


class Step:
    """What one thread did between two switches: which places it read and wrote."""

    __slots__ = ("acquires", "alternatives", "reads", "releases", "thread", "waits", "where", "writes")

    def __init__(self, thread: int, alternatives: tuple[int, ...]) -> None:
        self.thread = thread
        self.alternatives = alternatives  # threads that could have run instead, and this one
        self.reads: set[Any] = set()
        self.writes: set[Any] = set()
        self.acquires = self.releases = self.waits = False
        self.where = ""

    def conflicts(self, other: Step) -> bool:
        """Whether the two do not commute."""
        return not (
            self.writes.isdisjoint(other.writes)
            and self.writes.isdisjoint(other.reads)
            and self.reads.isdisjoint(other.writes)
        )

    def may_be_swapped_with(self, later: Step) -> bool:
        """Whether the later step could have run in place of this one, as far as locks say."""
        return not (self.releases and not self.acquires and later.acquires)


class Runner:
    """One thread under the scheduler."""

    def __init__(self, scheduler: Scheduler, number: int, action: Callable[[], object]) -> None:
        self.scheduler = scheduler
        self.number = number
        self.action = action
        self.baton = threading.Lock()
        self.baton.acquire()
        self.fresh = True  # whether a switch is possible at the next access
        self.blocked_by: Any = None  # the lock for which the thread waits
        self.is_over = False
        self.error: BaseException | None = None
        self.result: Any = None
        self.created = 0  # shared objects that this thread was the first to touch
        self.interrupt_at = -1  # number of the access before or after which an interrupt is raised
        self.accesses = 0
        self.was_interrupted = False
        self.is_breaker = True
        self.next_without_jump = -1  # where the thread goes on if the conditional jump of Python 3.10 is not taken
        self.is_old = bool(TAKEN)
        self.frame: FrameType | None = None
        self.calls_only = scheduler.mode == EVAL_BREAKER

    def run(self) -> None:
        """Run the operation, switched by the scheduler."""
        HERE.runner = self
        self.baton.acquire()
        before = sys.gettrace()  # of a measurement of coverage
        sys.settrace(self.enter)
        try:
            self.result = self.action()
        except BaseException as error:  # noqa: BLE001 - the judge looks at it
            self.error = error
        finally:
            sys.settrace(before)
            HERE.runner = None
            self.is_over = True
            self.scheduler.ended(self)

    def enter(self, frame: FrameType, _event: str, _argument: object) -> Any:
        """Trace the bytecodes of the package."""
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace = self.trace  # first: Python 3.13 instruments the bytecodes only of a frame that has it
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self.is_breaker, self.next_without_jump = True, -1
        return self.trace

    def trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        """Note that a new bytecode begins."""
        if event == "opcode":
            if self.calls_only:
                at = frame.f_lasti
                if self.is_breaker or (self.next_without_jump >= 0 and at != self.next_without_jump):
                    self.fresh = True
                opcode = frame.f_code.co_code[at] if self.is_old else 0
                self.next_without_jump = at + 2 if opcode in TAKEN else -1
                self.is_breaker = at in breakers_of(frame.f_code)
            else:
                self.fresh = True
            self.frame = frame
        elif event == "return":
            self.is_breaker, self.next_without_jump = True, -1
        return self.trace

    def interrupt(self) -> None:
        """Raise the interrupt if it is due at this access."""
        self.accesses += 1
        if self.accesses > self.interrupt_at and not self.was_interrupted:
            self.was_interrupted = True
            raise Interrupted

    def where(self) -> str:
        """Return the line and the bytecode at which the thread is."""
        frame = self.frame
        if frame is None:
            return "its start"
        code = frame.f_code
        name = code.co_filename[len(PACKAGE) + 1 :]
        return f"{name}:{frame.f_lineno} {code.co_name}+{frame.f_lasti}"


_breakers: dict[CodeType, frozenset[int]] = {}


def breakers_of(code: CodeType) -> frozenset[int]:
    """Return the offsets of the bytecodes that read the eval breaker."""
    found = _breakers.get(code)
    if found is None:
        raw = code.co_code
        found = _breakers[code] = frozenset(at for at in range(0, len(raw), 2) if raw[at] in BREAKERS)
    return found


class _Here(threading.local):
    runner: Runner | None = None


HERE = _Here()
"""The runner of this thread; None in a thread that is not scheduled, and while a check looks at the pool."""


class Labels:
    """Names of the objects of one order: who made the object, and as which of his.

    A name must not depend on the order, because the places that a step has touched are compared between orders.
    """

    def __init__(self) -> None:
        self._setup = 0

    def restart(self) -> None:
        """Begin with the first name."""
        self._setup = 0

    def next(self) -> tuple[int, int]:
        """Return the next name."""
        runner = HERE.runner
        if runner is None:
            self._setup += 1
            return -1, self._setup
        runner.created += 1
        return runner.number, runner.created


LABELS = Labels()


class Scheduler:
    """Runs operations in one order.

    Args:
        choose: returns the number of the thread that runs next, from the enabled ones and the one that ran last.
        check: called after each step that wrote something.
        mode: where a thread may be switched.
        describes: whether each step notes where it began, for a printout.
    """

    def __init__(
        self,
        choose: Callable[[tuple[int, ...], int], int],
        check: Callable[[], None] = lambda: None,
        mode: str = EVERY_BYTECODE,
        *,
        describes: bool = False,
    ) -> None:
        self._choose = choose
        self._check = check
        self.mode = mode
        self._describes = describes
        self.runners: list[Runner] = []
        self.steps: list[Step] = []
        self.step = Step(-1, ())
        self._over = threading.Lock()
        self._over.acquire()
        self.failure: BaseException | None = None
        self.is_stuck = False  # no thread can run: patient waits now time out
        self.waited_in_vain: list[int] = []
        self.on_stuck: Callable[[int], object] = lambda _waiting: None

    def run(self, actions: list[Callable[[], object]], interrupt_at: int = -1) -> None:
        """Run the operations to their end; the first one is interrupted at the step of that number, if there is one."""
        self.runners = [Runner(self, number, action) for number, action in enumerate(actions)]
        self.runners[0].interrupt_at = interrupt_at
        for runner in self.runners:
            CREW.start(runner.run)
        self._switch(None)
        if not self._over.acquire(timeout=PATIENCE):
            where = [f"thread {runner.number} at {runner.where()}" for runner in self.runners if not runner.is_over]
            raise Deadlocked(f"no step for {PATIENCE} s: {where}")

    def enabled(self) -> tuple[int, ...]:
        """Return the threads that can run."""
        return tuple(
            runner.number
            for runner in self.runners
            if not runner.is_over and (runner.blocked_by is None or runner.blocked_by.is_free_for(runner))
        )

    def yield_(self, runner: Runner) -> None:
        """Let the scheduler choose who runs next. Called by the running thread before a step."""
        runner.fresh = False
        self._finish_step()
        self._switch(runner)

    def _finish_step(self) -> None:
        if self.step.writes and self.failure is None:
            self._look(self._check)

    def _look(self, action: Callable[[], object]) -> None:
        """Do something in the present thread that is no step of it."""
        trace, before = sys.gettrace(), HERE.runner
        sys.settrace(None)
        HERE.runner = None
        try:
            action()
        except BaseException as failure:  # noqa: BLE001 - reported with its order
            self.failure = self.failure or failure
        finally:
            HERE.runner = before
            sys.settrace(trace)

    def _switch(self, runner: Runner | None) -> None:
        enabled = self.enabled()
        if not enabled:
            enabled = self._end_patience()
            if not enabled:
                self._over.release()
                return
        last = -1 if runner is None else runner.number
        chosen = self._choose(enabled, last)
        following = self.runners[chosen]
        self.step = Step(chosen, enabled)
        if self._describes:
            self.step.where = following.where()
        self.steps.append(self.step)
        if following is not runner:
            following.baton.release()
            if runner is not None and not runner.is_over:
                runner.baton.acquire()

    def _end_patience(self) -> tuple[int, ...]:
        """Let the wait of the first patient thread time out, since nobody is left who could end it."""
        waiting = [each for each in self.runners if not each.is_over]
        if not waiting:
            return ()
        self._look(
            lambda: self.on_stuck(len(waiting))
        )  # what other threads of the pool do in the meantime, such as connectors
        if enabled := self.enabled():
            return enabled
        for each in waiting:
            if each.blocked_by.gives_up(each):
                self.waited_in_vain.append(each.number)
                return (each.number,)
        if self.failure is None:
            chain = "; ".join(f"thread {each.number} at {each.where()} waits for {each.blocked_by}" for each in waiting)
            self.failure = Deadlocked(f"deadlock: {chain}")
        for each in waiting:
            each.blocked_by.break_up()
        return self.enabled()

    def ended(self, runner: Runner) -> None:
        """Continue without a thread that has ended."""
        self._finish_step()
        self.step = Step(-1, ())
        self._switch(runner)


class Crew:
    """Threads that are used again, because a start takes longer than many an order."""

    def __init__(self) -> None:
        self._idle: list[tuple[threading.Lock, list[Callable[[], None]]]] = []

    def start(self, task: Callable[[], None]) -> None:
        """Run a task in a thread of its own."""
        if self._idle:
            bell, tasks = self._idle.pop()
        else:
            bell, tasks = threading.Lock(), []
            bell.acquire()
            threading.Thread(target=self._work, args=(bell, tasks), daemon=True).start()
        tasks.append(task)
        bell.release()

    def _work(self, bell: threading.Lock, tasks: list[Callable[[], None]]) -> None:
        while True:
            bell.acquire()
            tasks.pop()()
            self._idle.append((bell, tasks))


CREW = Crew()


def touch(place: Any, *, writes: bool) -> None:
    """Note an access to a shared place by the running thread, and switch before it where that is possible."""
    runner = HERE.runner
    if runner is None:
        return
    if runner.fresh:
        runner.scheduler.yield_(runner)
        if runner.interrupt_at >= 0:
            runner.interrupt()
    step = runner.scheduler.step
    (step.writes if writes else step.reads).add(place)


def touched() -> None:
    """Raise the interrupt after the call that the running thread has just made, if it is due there."""
    runner = HERE.runner
    if runner is not None and runner.interrupt_at >= 0:
        runner.interrupt()


class SchedulerLock:
    """A lock whose waiting threads the scheduler knows.

    A wait with a time limit may end at any time, in favour of a release or of the limit: both orders are tried. One
    whose limit is `PATIENT` or more, or that has none, ends by its limit only if no thread can run any more.
    """

    PATIENT = 1e6
    is_reentrant = False

    def __init__(self) -> None:
        self.owner: Any = None
        self.depth = 0
        self._gives_up = False
        self._is_broken = False
        self._place = ("lock", *LABELS.next())

    def __repr__(self) -> str:
        return f"a {type(self).__name__} of thread {getattr(self.owner, 'number', self.owner)}"

    @staticmethod
    def sleep(seconds: float) -> None:
        """Let the time of a wait pass in a thread that is not scheduled."""

    def is_free_for(self, runner: Runner) -> bool:
        """Return whether a thread need not wait."""
        return self.owner is None or self._gives_up or self._is_broken or (self.is_reentrant and self.owner is runner)

    def gives_up(self, runner: Runner) -> bool:
        """End the wait of a thread whose patience is limited."""
        self._gives_up = runner.blocked_by is self and getattr(runner, "limit", -1) >= self.PATIENT
        return self._gives_up

    def break_up(self) -> None:
        """End every wait, after a deadlock was found."""
        self._is_broken = True

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock, as a lock of `threading` does."""
        runner = HERE.runner
        if runner is None:
            if self.owner is not None and not self.is_reentrant:
                self.sleep(timeout)
                return False
            self.owner, self.depth = "nobody scheduled", self.depth + 1
            return True
        me = runner
        is_timed = not blocking or 0 <= timeout < self.PATIENT
        if not (self.is_reentrant and self.owner is me):
            if not is_timed:
                runner.blocked_by, runner.limit = self, timeout  # type: ignore[attr-defined]
            runner.scheduler.yield_(runner)  # always: a thread may have to wait here
            runner.blocked_by = None
            if runner.interrupt_at >= 0:
                runner.interrupt()
        step = runner.scheduler.step
        step.writes.add(self._place)
        step.acquires = not is_timed
        if self.owner is not None and not (self.is_reentrant and self.owner is me):
            if self._is_broken:
                raise Deadlocked("broken up")
            self._gives_up = False
            return False  # the time limit has passed
        self.owner, self.depth = me, self.depth + 1
        return True

    def release(self) -> None:
        """Release the lock; the next step of this thread is another one."""
        runner = HERE.runner
        if self.owner is None:
            raise RuntimeError("release unlocked lock")
        if runner is not None:
            if self.depth == 1 and runner.fresh:
                runner.scheduler.yield_(runner)
            runner.scheduler.step.writes.add(self._place)
            runner.scheduler.step.releases = True
            runner.fresh = True
        self.depth -= 1
        if self.depth == 0:
            self.owner = None

    def locked(self) -> bool:
        """Return whether a thread has the lock."""
        return self.owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_error: object) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return self.owner is HERE.runner


class SchedulerRLock(SchedulerLock):
    """The same, reentrant."""

    is_reentrant = True
