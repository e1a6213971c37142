"""Holders that are tasks of asyncio: their names, call sites and stacks, and their connects."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_pgpool.instrumentation.options import InstrumentationOptions
from otel_pgpool.instrumentation.pending_connects import REPORT_AFTER
from otel_pgpool.instrumentation.session import InstrumentationSession
from otel_pgpool.pool.call_site import SkippedModules, call_sites_fast_filtered, path_to, task_call_sites
from otel_pgpool.runtime.tasks import TaskReference, running_task
from otel_pgpool.telemetry.task_stacks import task_stack_of
from otel_pgpool.types import PoolErrorType
from tests.support.adapters import FakeAdapter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from typing_extensions import Self

    from otel_pgpool.instrumentation.tracker import PoolTracker
    from otel_pgpool.pool.call_site import Stack
    from otel_pgpool.pool.checkout import ManualCheckout

BETWEEN = SkippedModules("asyncio")


class Thing:
    """A pool, or a connection."""


class Signals:
    """A tracker whose spans and log records are kept."""

    def __init__(self, mode: str) -> None:
        self.memory = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.memory))
        environ = {"OTEL_PGPOOL_SPANS": mode}
        options = InstrumentationOptions.of(tracer_provider=provider, environ=environ, long_hold=10)
        self.session = InstrumentationSession(options)
        self.session.watch.parked = False  # no thread is started
        self.pool = Thing()
        tracker = self.session.track(self.pool, FakeAdapter(), name="a pool of theirs")
        assert tracker is not None
        self.tracker: PoolTracker = tracker

    def spans(self, name: str) -> list[dict[str, Any]]:
        return [dict(span.attributes or {}) for span in self.memory.get_finished_spans() if span.name == name]


@pytest.fixture(params=["always", "slow"])
def signals(request: pytest.FixtureRequest) -> Iterator[Signals]:
    signals = Signals(request.param)
    yield signals
    signals.session.end()


def start(tracker: PoolTracker) -> ManualCheckout:
    """As the wrapper of an adapter does."""
    task = running_task()
    return tracker.start_in_task(task_call_sites(sys._getframe(1), task, BETWEEN), task)


async def run_as(name: str, coroutine: Any) -> Any:
    return await asyncio.create_task(coroutine, name=name)


async def reference() -> TaskReference:
    found = running_task()
    assert found is not None
    return found


# References


def test_no_task() -> None:
    """There is no reference in a thread without a loop, nor in a callback of a loop."""
    found: list[TaskReference | None] = [running_task()]

    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: found.append(running_task()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert found == [None, None]


def test_a_task_of_another_kind() -> None:
    """A task that cannot be referred to weakly has no reference; the caller goes on."""

    class Bare:
        __slots__ = ()

        def get_name(self) -> str:
            return "bare"

    async def main(monkeypatch: pytest.MonkeyPatch) -> TaskReference | None:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "current_task", Bare)
            return running_task()

    assert asyncio.run(main(pytest.MonkeyPatch())) is None


def test_a_reference() -> None:
    """It has the task's name at that time, is equal to others of the task, and tells when the task has ended."""

    async def main() -> tuple[TaskReference, TaskReference, TaskReference]:
        one, again = await reference(), await reference()
        assert one == again
        assert hash(one) == hash(again)
        assert one.is_running
        assert not one.has_ended
        other = await run_as("other\n", reference())
        assert not other.is_running
        return one, again, other

    one, again, other = asyncio.run(main())
    assert one == again != other
    assert other.name == "other\\n"
    assert str(other) == "other\\n (ended)"
    assert one.has_ended
    assert one.root is None


def test_a_reference_keeps_no_task() -> None:
    """The task of a hold is collected as soon as the program drops it."""
    gc.collect()

    async def main() -> tuple[TaskReference, weakref.ref[Any]]:
        task = asyncio.create_task(reference())
        found = await task
        return found, weakref.ref(task)

    found, ref = asyncio.run(main())
    assert ref() is None
    assert found.task is None


# Call sites


def sites() -> Stack:
    return task_call_sites(sys._getframe(1), running_task(), BETWEEN)


async def helper() -> str:
    return path_to(sites())


async def handler() -> str:
    return await helper()


def test_call_sites_end_at_the_task() -> None:
    """The coroutines that await are shown, innermost first, and not what has started the loop."""
    found = asyncio.run(handler())
    assert [line.rpartition(" ")[2] for line in found.splitlines()] == ["helper", "handler"]


def test_call_sites_in_a_task_that_asyncio_has_made() -> None:
    """Without a line of the program in the task, the innermost frame is shown, not the line that started the loop."""

    async def main() -> str:
        skipped = SkippedModules(__name__.partition(".")[0], "asyncio")

        async def library() -> str:
            return path_to(task_call_sites(sys._getframe(), running_task(), skipped))

        return await asyncio.wait_for(library(), 5)

    assert asyncio.run(main()).endswith("library")


def test_call_sites_outside_of_tasks() -> None:
    """They are the thread's."""
    assert path_to(sites()).splitlines()[0].endswith("test_call_sites_outside_of_tasks")


# Stacks


async def hold(reached: threading.Event | None = None) -> None:
    if reached is not None:
        reached.set()
    await asyncio.sleep(60)


async def each(reached: threading.Event) -> AsyncIterator[int]:
    yield 1
    await hold(reached)


async def loop_over(reached: threading.Event) -> None:
    async for _number in each(reached):
        pass


async def await_in_wrapper(reached: threading.Event) -> None:
    class Acquire:
        def __await__(self) -> Any:
            return hold(reached).__await__()

    await Acquire()


async def run_on(reached: threading.Event) -> None:
    reached.set()
    time.sleep(0.5)  # noqa: ASYNC251 - what the stack shall show


class Background:
    """A loop in a thread, with one task that has reached its place."""

    def __init__(self, function: Any) -> None:
        self._reached = threading.Event()
        self._function = function
        self.task: TaskReference
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._own = asyncio.create_task(self._function(self._reached), name="order-7")
            self.task = TaskReference(self._own)
            with contextlib.suppress(asyncio.CancelledError):
                await self._own

        asyncio.run(main())

    def __enter__(self) -> Self:
        self.thread.start()
        assert self._reached.wait(10)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._own.cancel)
        self.thread.join(10)

    def functions(self) -> list[str]:
        stack = task_stack_of(self.task, self.thread)
        return [line.rpartition(" ")[2] for line in stack.splitlines()]


def until_suspended(background: Background) -> None:
    deadline = monotonic() + 10
    while background.task.is_running and monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (hold, ["hold", "sleep"]),
        (loop_over, ["loop_over", "each", "hold", "sleep"]),
        (await_in_wrapper, ["await_in_wrapper", "hold", "sleep"]),
    ],
)
def test_the_stack_of_a_task_that_waits(function: Any, expected: list[str]) -> None:
    """It is the task's coroutines, those inside of a generator or of a wrapper included, read by another thread."""
    with Background(function) as background:
        until_suspended(background)
        assert background.functions() == expected


def test_the_stack_of_a_task_that_runs() -> None:
    """A task that blocks its loop shows the line, without the loop's frames."""
    with Background(run_on) as background:
        assert background.functions() == ["run_on"]


def test_the_stack_of_a_task_that_was_running() -> None:
    """If the loop has gone on meanwhile, the stack is that of the suspended task."""
    with Background(hold) as background:
        until_suspended(background)
        patched = pytest.MonkeyPatch()
        with patched.context() as patch:
            patch.setattr(TaskReference, "is_running", True)
            assert background.functions() == ["hold", "sleep"]


def test_the_stack_of_a_task_that_has_ended() -> None:
    """There is none."""
    with Background(hold) as background:
        task = background.task
    assert task.has_ended
    assert task_stack_of(task, background.thread) == ""


def test_the_stack_of_a_library_coroutine() -> None:
    """It ends where the frames of Python end."""

    async def main() -> str:
        task = asyncio.create_task(hold())
        await asyncio.sleep(0)
        return task_stack_of(TaskReference(task), threading.current_thread(), {"tests"})

    assert "in hold" in asyncio.run(main())


# Checkouts


def test_a_checkout_by_a_task(signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
    """The span, the record of the long hold and the description of the holder name the task, beside the thread."""
    caplog.set_level(logging.INFO, "otel_pgpool")
    tracker, conn = signals.tracker, Thing()

    async def order() -> ManualCheckout:
        checkout = start(tracker)
        tracker.acquired(checkout, conn)
        tracker.report_due(monotonic() + 11)
        assert str(checkout.holder(checkout.acquired + 1)).startswith("1.000 s by task 'order-7' at ")
        return checkout

    checkout = asyncio.run(run_as("order-7", order()))
    assert str(checkout.holder(checkout.acquired)).startswith("0.000 s by task 'order-7 (ended)' at ")
    tracker.released(checkout)
    (span,) = signals.spans("pool.checkout")
    assert span["otel_pgpool.task.name"] == "order-7"
    assert span["thread.name"] == "MainThread"
    record, *_rest = [vars(record) for record in caplog.records]
    assert record["otel_pgpool.event"] == "long_hold"
    assert (record["otel_pgpool.task.name"], record["thread.name"]) == ("order-7", "MainThread")
    assert "by task 'order-7' (unknown), checked out at" in record["message"]
    assert ", in order\n" in record["code.stacktrace"]
    assert "asyncio" not in record["code.stacktrace"]


def test_a_checkout_by_a_thread_has_no_task(signals: Signals) -> None:
    """Outside of tasks the thread is the holder, as for pools of threads."""
    checkout = start(signals.tracker)
    signals.tracker.acquired(checkout, conn := Thing())
    assert "by thread 'MainThread'" in str(checkout.holder(monotonic()))
    checkout.flagged = True
    signals.tracker.released(checkout)
    (span,) = signals.spans("pool.checkout")
    assert "otel_pgpool.task.name" not in span
    del conn


def test_a_timeout_counts_the_holds_of_the_task(signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
    """A nested checkout is one of the same task, not one of the same thread."""
    tracker, conns = signals.tracker, [Thing(), Thing(), Thing()]

    async def take(conn: Thing) -> None:
        tracker.acquired(start(tracker), conn)

    async def main() -> None:
        await run_as("other", take(conns[0]))
        await take(conns[1])
        await take(conns[2])
        tracker.failed(start(tracker), TimeoutError(), PoolErrorType.TIMEOUT)

    asyncio.run(main())
    assert "this task already holds 2 of them" in caplog.text
    assert "by task 'other (ended)'" in caplog.text


def test_connects_belong_to_their_checkout(signals: Signals) -> None:
    """Of two tasks of one thread each gets the connect made for it, although another task has made it."""
    tracker, conns = signals.tracker, [Thing(), Thing()]

    async def take(conn: Thing, *, connects: bool) -> ManualCheckout:
        checkout = start(tracker)
        if connects:
            await run_as("helper", connect(conn, checkout))
        tracker.acquired(checkout, conn)
        tracker.released(checkout)
        return checkout

    async def connect(conn: Thing, checkout: ManualCheckout) -> None:
        tracker.connect_failed(monotonic(), OSError(), checkout.caller)
        tracker.connected(monotonic(), conn, checkout.caller)
        await asyncio.sleep(0.01)

    async def main() -> list[ManualCheckout]:
        return await asyncio.gather(take(conns[0], connects=True), take(conns[1], connects=False))

    new, idle = asyncio.run(main())
    assert (new.path, new.retries) == ("new", 1)
    assert (idle.path, idle.retries) == ("idle", 0)
    assert not tracker.pending


def test_a_connect_of_no_checkout(signals: Signals) -> None:
    """A connect under a key that no checkout has claimed is reported later, as a thread's is."""
    signals.tracker.connected(monotonic(), conn := Thing(), 42)
    signals.tracker.report_due(monotonic() + REPORT_AFTER + 1)
    assert not signals.tracker.pending
    del conn


def test_threads_do_not_import_asyncio() -> None:
    """A program without coroutines does not pay for the import."""
    code = (
        "import sys, psycopg2, wrapt; before = 'asyncio' in sys.modules; import otel_pgpool.instrumentation;"
        "assert before or 'asyncio' not in sys.modules;"
        "assert 'otel_pgpool.runtime.tasks' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_code_without_the_name_of_a_module() -> None:
    """Code that a program runs with globals of its own is the application's."""
    names: dict[str, Any] = {"__name__": None, "call_sites": call_sites_fast_filtered, "skipped": SkippedModules()}
    exec("import sys\ndef checkout(): return call_sites(sys._getframe(), skipped)", names)  # noqa: S102
    assert names["checkout"]()[0] is names["checkout"].__code__
