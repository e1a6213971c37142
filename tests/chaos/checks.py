"""What is compared after a fault or a load: commits, holders, spans, the process's resources and error texts."""

from __future__ import annotations

import ctypes
import threading
import time
import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_pgpool.telemetry import names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span
    from psycopg2.extensions import connection


TABLE = "create table work (id int primary key)"
INSERT = "insert into work values (%s)"


class Result(IntEnum):
    """The result of a piece of work, as the application was told."""

    FAILED = 0
    """There was an error, or no answer, before the commit began: the work must not be stored."""
    IN_DOUBT = 1
    """The connection was lost during the commit: the work may be stored."""
    COMMITTED = 2
    """The work must be stored."""


class CommitLog:
    """The result of each piece of work, in one byte each, to be compared with the database."""

    def __init__(self) -> None:
        self._results = bytearray()
        self._lock = threading.Lock()

    def open(self) -> int:
        """Return a number for new work, which counts as failed until another result is recorded."""
        with self._lock:
            self._results.append(Result.FAILED)
            return len(self._results) - 1

    def record(self, number: int, result: Result) -> None:
        """Record what the application was told."""
        self._results[number] = result

    def count(self, result: Result, among: Iterable[int] | None = None) -> int:
        """Return how much work had a result, of all or of some."""
        return (
            self._results.count(result) if among is None else sum(self._results[number] == result for number in among)
        )

    def violations(self, stored: Collection[int]) -> Iterator[str]:
        """Return each difference between the results and the stored work."""
        if lost := self.count(Result.COMMITTED) - self.count(Result.COMMITTED, stored):
            yield f"reported as committed and lost: {lost}"
        if silently := self.count(Result.FAILED, stored):
            yield f"reported as failed, or never committed, and stored: {silently}"

    @staticmethod
    def stored(dsn: str) -> set[int]:
        """Return the work that is in the database."""
        conn = psycopg2.connect(dsn)
        with conn, conn.cursor() as cursor:
            cursor.execute("select id from work")
            found = {number for (number,) in cursor.fetchall()}
        conn.close()
        return found


class HolderCheck:
    """The holder of each connection, a block or a last reference: a second one is a violation."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._holders: dict[int, object] = {}  # by the id of the connection

    @contextmanager
    def hold(self, conn: connection) -> Iterator[None]:
        """Register the block as the holder of the connection."""
        holder = object()
        self._add(conn, holder)
        try:
            yield
        finally:
            self._remove(id(conn), holder)

    def hold_until_collected(self, conn: connection) -> None:
        """Register the connection as held until it is collected, for a holder that drops it.

        The callback runs before the memory is free, so no new connection has the same id by then.
        """
        number = id(conn)
        self._add(conn, weakref.ref(conn, lambda gone: self._remove(number, gone)))

    def _add(self, conn: connection, holder: object) -> None:
        if self._holders.setdefault(id(conn), holder) is not holder:
            self.violations.append("a connection had two holders")

    def _remove(self, number: int, holder: object) -> None:
        if self._holders.get(number) is holder:  # a later holder stays
            del self._holders[number]


class SpanCounter(SpanProcessor):
    """Counts of spans as they start and end, which take no more memory after hours."""

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.open: dict[int, str] = {}
        """Names of the spans that have not ended, by span id."""
        self.outcomes: Counter[str] = Counter()
        """Outcomes of the checkouts that have ended."""
        self.paths: Counter[str] = Counter()
        """Paths of the checkouts that had a connection."""
        self._lock = threading.RLock()  # the garbage collector may end a span while one is counted

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Count a span that starts."""
        with self._lock:
            self.started[span.name] += 1
            self.open[span.context.span_id] = span.name

    def refused(self, name: str, *, begun: bool) -> None:
        """Count a span that a broken component has refused, and that never ends; ``begun`` if its start was counted."""
        with self._lock:
            self.started[name] += not begun
            self.ended[name] += 1

    def on_end(self, span: ReadableSpan) -> None:
        """Count a span that ends."""
        attributes = span.attributes or {}
        with self._lock:
            self.ended[span.name] += 1
            self.open.pop(span.context.span_id if span.context else 0, None)
            if span.name == names.SPAN_CHECKOUT:
                self.outcomes[str(attributes[names.ATTR_OUTCOME])] += 1
                if names.ATTR_HOLD_TIME in attributes:
                    self.paths[str(attributes[names.ATTR_PATH])] += 1


PROCESS_STATUS, OPEN_DESCRIPTORS = Path("/proc/self/status"), Path("/proc/self/fd")


@dataclass(frozen=True)
class ProcessUsage:
    """Threads, file descriptors and memory of this process, from /proc."""

    threads: int
    """All threads of the system's count, not only Python's."""
    descriptors: int
    resident: float
    """MB of memory."""

    @classmethod
    def now(cls) -> ProcessUsage:
        """Measure the process."""
        status = dict(line.split(":", 1) for line in PROCESS_STATUS.read_text().splitlines())
        return cls(
            threads=int(status["Threads"]),
            descriptors=sum(1 for _ in OPEN_DESCRIPTORS.iterdir()) - 1,  # one is for the listing
            resident=int(status["VmRSS"].split()[0]) / 1024,
        )


def usage_at_rest(before: ProcessUsage, patience: float = 3.0) -> ProcessUsage:
    """Return the process's usage once it equals the earlier one, or after ``patience`` seconds."""
    deadline = monotonic() + patience
    while True:
        after = ProcessUsage.now()
        if (after.threads <= before.threads and after.descriptors <= before.descriptors) or monotonic() > deadline:
            return after
        time.sleep(0.01)


def trim_memory() -> None:
    """Make the allocator return unused memory to the system: many threads leave it fragmented."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# Patterns of errors, for `Fault.evidence`

IN_RECOVERY = "while it connected: .*the database system is (starting up|not (yet )?accepting connections)"
"""All of these are 57P03: the text depends on the progress of the standby."""
ENDED = "server closed the connection|57P0[12]"
"""The text or the SQLSTATE, whichever psycopg2 and libpq report."""
REFUSED = "while it connected: .*Connection refused"
SOCKET_SHUT_DOWN = "broken: no answer within"
"""The pool itself has shut the socket down, as the server does not answer."""
