"""Ctrl-C at every line of the ways in and out of the pool: nothing is lost."""

from __future__ import annotations

import ast
import gc
import os
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from textwrap import wrap
from time import monotonic
from typing import TYPE_CHECKING, Any

import otel_pgpool
from faults.document import WIDTH
from faults.quiet import silenced
from otel_pgpool import ConnectionPool, PoolTimeout, _members
from otel_pgpool.cli.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PACKAGE = str(Path(otel_pgpool.__file__).parent)
MAXCONN = 2
PATIENCE = 5.0
"""Seconds within which all must be as before."""
IMPATIENCE = 0.01
"""Seconds after which the pool takes for lost what is in nobody's hands: it would give it longer, for a slow thread."""


class Interrupter:
    """Raises `KeyboardInterrupt` at one line inside the package, in the thread that it is used in."""

    def __init__(self, step: int) -> None:
        self._left = step
        self.struck: str | None = None

    def __enter__(self) -> None:
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        return self._step if frame.f_code.co_filename.startswith(PACKAGE) and not is_finalizer(frame) else None

    def _step(self, frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        if event == "line" and self.struck is None and not leaves_a_block(frame):
            self._left -= 1
            if self._left < 0:
                self.struck = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt
        return self._step


def is_finalizer(frame: FrameType | None) -> bool:
    """Whether it belongs to the callback of a weak reference: what is raised there, Python only prints."""
    while frame is not None and frame.f_code.co_name != "_dropped":
        frame = frame.f_back
    return frame is not None


def leaves_a_block(frame: FrameType) -> bool:
    """Whether the step is the end of a ``with``, before its ``__exit__``, where CPython lets no signal in."""
    if frame.f_lineno not in with_lines(frame.f_code.co_filename):
        return False
    return frame.f_lasti > min(start for start, _end, line in frame.f_code.co_lines() if line == frame.f_lineno)


@cache
def with_lines(path: str) -> set[int]:
    """The lines on which a ``with`` begins."""
    blocks = [node for node in ast.walk(ast.parse(Path(path).read_text())) if isinstance(node, ast.With)]
    return {block.lineno for block in blocks} | {item.context_expr.lineno for block in blocks for item in block.items}


# The ways in and out


def use(conn: Any) -> None:
    """One statement."""
    with conn.cursor() as cursor:
        cursor.execute("select 1")


def block(pool: ConnectionPool) -> None:
    """A block that ends well."""
    with pool.connection() as conn:
        use(conn)


def failing_block(pool: ConnectionPool) -> None:
    """A block that raises."""
    with suppress(LookupError), pool.connection() as conn:
        use(conn)
        raise LookupError


def by_hand(pool: ConnectionPool) -> None:
    """Lent and given back by hand."""
    conn = pool.getconn()
    try:
        use(conn)
    finally:
        pool.putconn(conn)


def queued(pool: ConnectionPool) -> None:
    """All connections are out, and come back while the caller waits, or when it has been interrupted."""
    out, gone = threading.Event(), threading.Event()

    def hold() -> None:
        lent = [pool.getconn() for _ in range(MAXCONN)]
        out.set()
        while not (pool.stats().waiting or gone.is_set()):
            time.sleep(0.001)
        while lent:
            pool.putconn(lent.pop())

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        out.wait()
        block(pool)
    finally:
        gone.set()
        holder.join()


def after_deaths(pool: ConnectionPool) -> None:
    """All idle connections are dead, and have been idle for long enough to be looked at."""
    for slot in list(pool._core.idle):  # noqa: SLF001 - no program can make time pass for them
        if slot.conn is not None:
            with suppress(Exception), socket.socket(fileno=os.dup(slot.conn.fileno())) as sock:
                sock.shutdown(socket.SHUT_RDWR)
        slot.seen -= 1
        slot.returned -= 1
    block(pool)


WAYS = (block, failing_block, by_hand, queued, after_deaths)


# Striking


@dataclass(frozen=True)
class Struck:
    """What came of many interrupts."""

    interrupts: int
    lines_struck: int
    """Different ones."""
    discarded: dict[str, int]
    violations: list[str]

    def lines(self) -> Iterator[str]:
        """For docs/reliability.md."""
        yield "### Interrupts"
        yield ""
        lost = ", ".join(f"{number:,} {reason}" for reason, number in sorted(self.discarded.items()))
        yield from wrap(
            f"{self.interrupts:,} times a KeyboardInterrupt is raised inside the pool, at each of {self.lines_struck} "
            f"lines that a checkout and its return may run through, waits, dead connections and failing blocks among "
            f"them. Each time, all {MAXCONN} connections can be had again afterwards, and nothing is out or waiting. "
            f"Connections replaced: {lost}. Lost: {len(self.violations)}.",
            WIDTH,
        )


@contextmanager
def impatient() -> Iterator[None]:
    """What an interrupt has lost is found at once, and not within seconds."""
    before = _members.STRAY_AFTER, _members.LEFT_AFTER
    _members.STRAY_AFTER = _members.LEFT_AFTER = IMPATIENCE
    try:
        yield
    finally:
        _members.STRAY_AFTER, _members.LEFT_AFTER = before


def strike(pool: ConnectionPool, way: Callable[[ConnectionPool], None]) -> Iterator[tuple[str, str | None]]:
    """Interrupt one way at each of its lines in turn; where, and what was wrong afterwards."""
    for step in count():
        interrupter = Interrupter(step)
        here = copy_context()
        with suppress(KeyboardInterrupt), interrupter:
            here.run(way, pool)
        if interrupter.struck is None:
            return
        gc.collect(0)
        yield interrupter.struck, wrong_with(pool)


def wrong_with(pool: ConnectionPool) -> str | None:
    """What has been lost, if anything."""
    deadline = monotonic() + PATIENCE
    while pool.stats().used and monotonic() < deadline:
        time.sleep(0.001)
    if (stats := pool.stats()).used or stats.waiting:
        return f"{stats.used} out and {stats.waiting} waiting"
    while (used := pool._core.used) and monotonic() < deadline:  # noqa: SLF001 - the figures hide what is below zero
        time.sleep(0.001)
    if used:
        return f"{used} out"
    with ExitStack() as lent:
        try:
            for _ in range(MAXCONN):
                use(lent.enter_context(pool.connection()))
        except PoolTimeout as error:
            return str(error)
    return None


def play(interrupts: int = 10_000, dsn: str | None = None) -> Struck:
    """Interrupt all ways at each of their lines, again and again, at least so many times."""
    with ExitStack() as stage:
        stage.enter_context(silenced())
        stage.enter_context(impatient())
        dsn = dsn or stage.enter_context(PostgresServer()).dsn
        pool = stage.enter_context(ConnectionPool(MAXCONN, MAXCONN, dsn, timeout=PATIENCE, long_hold=IMPATIENCE))
        struck: list[str] = []
        violations: list[str] = []
        while not violations and (not struck or len(struck) < interrupts):
            for way in WAYS:
                for place, wrong in strike(pool, way):
                    struck.append(place)
                    if wrong is not None:
                        violations.append(f"{way.__name__}, {place}: {wrong}")
        return Struck(len(struck), len(set(struck)), dict(pool.stats().discarded), violations)
