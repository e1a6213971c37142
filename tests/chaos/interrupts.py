"""A KeyboardInterrupt at every line of the operations of the pool, and checks that nothing is lost."""

from __future__ import annotations

import ast
import dis
import gc
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

import otel_pgpool
from otel_pgpool import ConnectionPool, PoolTimeout
from otel_pgpool.driver.deadline import IO_DEADLINE
from otel_pgpool.pool import monitors, slots
from otel_pgpool.pool.context import CheckoutContext
from otel_pgpool.pool.reentrant import ReentrantContext
from otel_pgpool.telemetry import Telemetry
from tests.chaos.checks import ProcessUsage, SpanCounter, usage_at_rest
from tests.chaos.pools import OPERATIONS, silence_logs, use
from tests.support.internals import core_of
from tests.support.servers import ClonedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from types import FrameType

    from psycopg2.extensions import connection
    from typing_extensions import Self

    Operation = Callable[[ConnectionPool], None]


PACKAGE = Path(otel_pgpool.__file__).parent
MAXCONN = 2
PATIENCE = 10.0
"""Seconds within which the pool must be as before."""
MAX_LOSSES = 50
"""Losses, each of which needs a new pool, after which the run ends."""
FD_GRACE = IO_DEADLINE + 1.0
"""Seconds for which a descriptor may stay open: the watch over deadlines keeps it for as long."""
ORPHAN_AFTER = 0.01
"""Seconds after which the pool collects orphans; its own figure leaves time for slow threads."""


NOP = dis.opmap["NOP"]


class Interrupter:
    """Raises `KeyboardInterrupt` once in the current thread, at a line of the package not yet interrupted.

    Args:
        interrupted: the lines, or visits of lines, that were interrupted; the new one is added.
        thorough: interrupt a line at each of its visits, and not once.
    """

    def __init__(self, interrupted: set[Hashable], *, thorough: bool) -> None:
        self.place: str | None = None
        """The line that was interrupted."""
        self._interrupted = interrupted
        self._thorough = thorough
        self._visits: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        return self._step if frame.f_code.co_filename.startswith(str(PACKAGE)) and not is_finalizer(frame) else None

    def _step(self, frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        if event == "line" and self.place is None:
            line = frame.f_code.co_filename, frame.f_lineno
            self._visits[line] += 1
            visit = (line, self._visits[line]) if self._thorough else line
            if visit not in self._interrupted and handles_signals(frame) and not enters_exit(frame):
                self._interrupted.add(visit)
                self.place = f"{Path(line[0]).relative_to(PACKAGE)}:{line[1]} {frame.f_code.co_name}"
                raise KeyboardInterrupt
        return self._step


def is_finalizer(frame: FrameType | None) -> bool:
    """Return whether a frame belongs to a finalizer, whose errors Python only prints."""
    while frame is not None and frame.f_code not in finalizers():
        frame = frame.f_back
    return frame is not None


@cache
def finalizers() -> set[object]:
    """Return the package's finalizers: the callbacks of weak references, and those of its classes."""
    modules = [module for name, module in sys.modules.items() if name.startswith(otel_pgpool.__name__)]
    kinds = [vars(kind) for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    found = [kind[name] for kind in kinds for name in ("_dropped", "__del__") if name in kind]
    return {getattr(finalizer, "__code__", None) for finalizer in found}


def handles_signals(frame: FrameType) -> bool:
    """Return whether CPython may handle a signal at this step.

    It handles none at a ``try``, which is no operation and may be outside the blocks around it, nor at the end of a
    ``with``, before its ``__exit__``.
    """
    code = frame.f_code
    if code.co_code[frame.f_lasti] == NOP:
        return False
    if frame.f_lineno not in with_lines(code.co_filename):
        return True
    return frame.f_lasti <= min(start for start, _end, line in code.co_lines() if line == frame.f_lineno)


def enters_exit(frame: FrameType) -> bool:
    """Return whether the step is the first of a block's ``__exit__``, before which nothing can guard."""
    code = frame.f_code
    if code not in (CheckoutContext.__exit__.__code__, ReentrantContext.__exit__.__code__):
        return False
    return frame.f_lineno == min(line for *_, line in code.co_lines() if line and line > code.co_firstlineno)


def is_renamed(conn: connection | None) -> bool:
    """Return whether a session has the name of a checkout's trace."""
    if conn is None or conn.closed:
        return False
    return str(conn.get_parameter_status("application_name")).startswith("00-")


def in_own_frame(operation: Operation, pool: ConnectionPool) -> Iterator[None]:
    """Run an operation in a generator, whose frame has a stack of handled errors of its own.

    A tracer may raise where CPython handles no signal, between a handler's last line and the end of the handling: later
    code of the thread would still take that error for the handled one.
    """
    operation(pool)
    yield


@cache
def with_lines(path: str) -> set[int]:
    """Return the numbers of the lines on which a ``with`` statement begins."""
    blocks = [node for node in ast.walk(ast.parse(Path(path).read_text())) if isinstance(node, ast.With)]
    return {block.lineno for block in blocks} | {item.context_expr.lineno for block in blocks for item in block.items}


@dataclass(frozen=True)
class InterruptResult:
    """The result of many interrupts."""

    interrupts: int
    lines_interrupted: int
    """Different lines."""
    spans: int
    """Spans that were started."""
    discarded: dict[str, int]
    violations: list[str]

    def lines(self) -> Iterator[str]:
        """Return the section of docs/reliability.md."""
        yield "### Interrupts"
        yield ""
        lost = ", ".join(f"{number:,} {reason}" for reason, number in sorted(self.discarded.items()))
        yield (
            f"A KeyboardInterrupt is raised {self.interrupts:,} times inside the pool and its telemetry, at each of "
            f"{self.lines_interrupted} lines that a checkout and its release may run through. Waits, timeouts, dead "
            "and aged connections, failing blocks and commits are among them. Each time, the interrupt reaches the "
            f"program, all {MAXCONN} connections can be checked out again, no checkout or waiter is left, the "
            "OpenTelemetry context is the same as before, no file descriptor is left, and the garbage collector is "
            f"on. Each of {self.spans:,} spans has ended when the pool is closed. Connections replaced: {lost}. "
            f"Violations: {len(self.violations)}."
        )
        yield ""
        yield (
            f"In this run the pool closes orphans after {ORPHAN_AFTER:g} s; otherwise after {slots.ORPHAN_AFTER:g} s, "
            f"or {slots.ORPHAN_AFTER_CHECK:g} s for a slot that was set aside for a check or a close. No interrupt is "
            "raised at the lines where CPython handles no signal, in the callbacks of weak references, and at the "
            "first line of a block's `__exit__`, which [cannot be guarded](design/concurrency.md#interrupts)."
        )


class InterruptRun:
    """Interrupts of a pool, and what each has left."""

    def __init__(self, make: Callable[[], ConnectionPool], spans: SpanCounter) -> None:
        self.places: list[str] = []
        """The line of each interrupt."""
        self.failures: Counter[str] = Counter()
        self.discarded: Counter[str] = Counter()
        self.losses = 0
        """Interrupts after which the pool had to be replaced."""
        self._make = make
        self._spans = spans
        self._unended: dict[int, str] = {}  # spans, and the interrupt during which they were started
        self._last = "no interrupt"
        self._ignored: list[str] = []
        self._context = contexts.get_current()
        self._begin()

    def __enter__(self) -> Self:
        self._hook = sys.unraisablehook
        sys.unraisablehook = lambda raised: self._ignored.append(repr(raised.exc_value))
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._hook

    def _begin(self) -> None:
        self._pool = self._make()
        for operation in OPERATIONS:  # so that what each opens once is open
            operation(self._pool)
        self._all_can_be_had()
        self._descriptors = ProcessUsage.now().descriptors

    def interrupt(self, operation: Operation, interrupted: set[Hashable], *, thorough: bool) -> None:
        """Interrupt an operation at each of its lines in turn."""
        while self.losses < MAX_LOSSES:
            interrupter = Interrupter(interrupted, thorough=thorough)
            came = None
            try:
                with interrupter:
                    next(in_own_frame(operation, self._pool))
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - any other error is a violation
                came = repr(error)
            if interrupter.place is not None:
                self.places.append(interrupter.place)
                self._last = f"{interrupter.place}, in {operation.__name__}"
            self._check(came, repr(KeyboardInterrupt()) if interrupter.place is not None else None)
            if interrupter.place is None:
                return

    def _check(self, came: str | None, expected: str | None) -> None:
        """Check what the last interrupt has left, or what an operation without one has found."""
        gc.collect(0)
        lost = [] if came == expected else [f"{came} came out, and not {expected}"]
        left = [*self._unsettled()]
        lost += self._lost()
        left += self._unsettled("of a later checkout")
        self.failures.update(f"{self._last}: {each}" for each in (*lost, *left))
        for span in self._spans.open.keys() - self._unended.keys():
            self._unended[span] = self._last
        if lost:
            self.losses += 1
            self.end()
            self._begin()

    def end(self) -> None:
        """Close the pool; report the spans that have not ended."""
        gc.collect()
        self.failures.update(self._open_files())
        self._pool.close(0)
        self.discarded += Counter(self._pool.stats().discarded)
        for span, name in self._spans.open.items():
            self.failures[f"{self._unended.get(span, self._last)}: a span {name} has not ended"] += 1
        self._spans.open.clear()

    def _lost(self) -> Iterator[str]:
        """Return a description of connections that cannot be checked out any more."""
        core = core_of(self._pool)
        deadline = monotonic() + PATIENCE
        while (core.used or core.queue) and monotonic() < deadline:
            time.sleep(0.001)
        if any(is_renamed(slot.conn) for slot in list(core.idle)):
            yield "an idle session has the name of a trace"
        if core.used or core.queue:
            yield f"{core.used} out and {len(core.queue)} waiting"
        else:
            try:
                self._all_can_be_had()
            except PoolTimeout:
                yield f"not all {MAXCONN} can be had"

    def _all_can_be_had(self) -> None:
        with ExitStack() as held:
            for _ in range(MAXCONN):
                use(held.enter_context(self._pool.connection()))

    def _unsettled(self, whose: str = "of the checkout") -> Iterator[str]:
        """Return what the thread and the interpreter are left with, and restore it for the next interrupt."""
        if contexts.get_current() is not self._context:
            yield f"the context {whose} is still current"
            contexts.attach(self._context)
        if not gc.isenabled():
            yield "the garbage collector is off"
            gc.enable()
        while self._ignored:
            yield f"a finalizer raised {self._ignored.pop()}"

    def _open_files(self) -> Iterator[str]:
        monitors.stay_away(self._pool.name)  # a hold that an interrupt made long has opened a monitoring connection
        before = ProcessUsage(sys.maxsize, self._descriptors, 0.0)  # threads are not counted here
        after = usage_at_rest(before, FD_GRACE)
        if after.descriptors > self._descriptors:
            yield f"{after.descriptors - self._descriptors} file descriptors are left"


@contextmanager
def orphans_found_at_once() -> Iterator[None]:
    """Shorten the pool's waits, so that slots lost by an interrupt are found at once."""
    before = slots.ORPHAN_AFTER, slots.ORPHAN_AFTER_CHECK
    slots.ORPHAN_AFTER = slots.ORPHAN_AFTER_CHECK = ORPHAN_AFTER
    try:
        yield
    finally:
        slots.ORPHAN_AFTER, slots.ORPHAN_AFTER_CHECK = before


@contextmanager
def in_a_request() -> Iterator[None]:
    """Set a context of the application, which must be current again after each interrupt."""
    token = contexts.attach(contexts.set_value("request", "one"))
    try:
        yield
    finally:
        contexts.detach(token)


def play(
    interrupts: int = 10_000,
    dsn: str | None = None,
    operations: Sequence[Operation] = tuple(OPERATIONS),
    **options: Any,
) -> InterruptResult:
    """Interrupt at each line once, then all operations at each step, until there were so many interrupts.

    ``options`` are further ones of the pool.
    """
    with ExitStack() as stage:
        stage.enter_context(silence_logs())
        stage.enter_context(orphans_found_at_once())
        stage.enter_context(in_a_request())
        dsn = dsn or stage.enter_context(ClonedServer()).dsn
        spans = SpanCounter()
        tracers, meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
        tracers.add_span_processor(spans)
        stage.callback(meters.shutdown)
        stage.callback(tracers.shutdown)

        def make() -> ConnectionPool:
            return ConnectionPool(
                MAXCONN,
                MAXCONN,
                dsn,
                timeout=PATIENCE,
                max_waiting=1,
                long_hold=ORPHAN_AFTER,
                observer=Telemetry(tracers, meters),
                **options,
            )

        run = stage.enter_context(InterruptRun(make, spans))
        interrupted: set[Hashable] = set()
        for operation in operations:
            run.interrupt(operation, interrupted, thorough=False)
        while len(run.places) < interrupts and run.losses < MAX_LOSSES:
            for operation in operations:
                run.interrupt(operation, set(), thorough=True)
        run.end()
        return InterruptResult(
            interrupts=len(run.places),
            lines_interrupted=len(set(run.places)),
            spans=spans.started.total(),
            discarded=dict(run.discarded),
            violations=[f"{wrong} ({number} times)" for wrong, number in sorted(run.failures.items())],
        )
