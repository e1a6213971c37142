"""Ctrl-C at every line of the ways in and out of the pool: nothing is lost.

``INTERRUPTS=instruction`` raises at every instruction instead, some 10,000 times.
"""

from __future__ import annotations

import ast
import gc
import os
import sys
import threading
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

import otel_pgpool
from otel_pgpool import ConnectionPool, _members
from otel_pgpool.cli.postgres import PostgresServer
from tests.integration.helpers import ask, let_lie, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PACKAGE = str(Path(otel_pgpool.__file__).parent)
AT = os.environ.get("INTERRUPTS", "line").replace("instruction", "opcode")
MAXCONN = 2


class Interrupter:
    """Raises `KeyboardInterrupt` at one step inside the package, in the thread that it is used in."""

    def __init__(self, step: int) -> None:
        self._left = step
        self.struck: str | None = None

    def __enter__(self) -> None:
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = AT == "opcode"
        return self._step

    def _step(self, frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
        if event == AT and self.struck is None and not leaves_a_block(frame):
            self._left -= 1
            if self._left < 0:
                self.struck = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt
        return self._step


def leaves_a_block(frame: FrameType) -> bool:
    """Whether the step is the end of a ``with``, before its ``__exit__``, where CPython lets no signal in."""
    if frame.f_lineno not in with_lines(frame.f_code.co_filename):
        return False
    return frame.f_lasti > min(start for start, _end, line in frame.f_code.co_lines() if line == frame.f_lineno)


@cache
def with_lines(path: str) -> set[int]:
    """The lines on which a ``with`` begins."""
    blocks = [node for node in ast.walk(ast.parse(Path(path).read_text())) if isinstance(node, ast.With)]
    return {node.lineno for node in (*blocks, *(item.context_expr for block in blocks for item in block.items))}


def block(pool: ConnectionPool) -> None:
    with pool.connection() as conn:
        ask(conn, "select 1")


def failing_block(pool: ConnectionPool) -> None:
    with suppress(LookupError), pool.connection() as conn:
        ask(conn, "select 1")
        raise LookupError


def by_hand(pool: ConnectionPool) -> None:
    conn = pool.getconn()
    try:
        ask(conn, "select 1")
    finally:
        pool.putconn(conn)


def queued(pool: ConnectionPool) -> None:
    """Both connections are out, and come back while the caller waits, or when it has been interrupted."""
    out, gone = threading.Event(), threading.Event()

    def hold() -> None:
        lent = [pool.getconn() for _ in range(MAXCONN)]
        out.set()
        wait_until(lambda: pool.stats().waiting or gone.is_set())
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
    for slot in list(pool._core.idle):
        os.close(os.dup(slot.conn.fileno()))
        with suppress(psycopg2.Error):
            kill(slot.conn)
    let_lie(pool)
    block(pool)


def kill(conn: Any) -> None:
    """Close the socket's other side: to the client it is as if the backend had died."""
    import socket

    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(settings={"max_connections": 200}) as server:
        yield server


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupt has lost is found at once, and not within seconds."""
    monkeypatch.setattr(_members, "STRAY_AFTER", 0.01)
    monkeypatch.setattr(_members, "LEFT_AFTER", 0.01)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("use", [block, failing_block, by_hand, queued, after_deaths])
def test_an_interrupt_anywhere_loses_nothing(server: PostgresServer, use: Callable[[ConnectionPool], None]) -> None:
    """Whatever line it comes at, all connections can be had again, and the figures agree."""
    with ConnectionPool(MAXCONN, MAXCONN, server.dsn, timeout=5, long_hold=0.01) as pool:
        struck = 0
        for step in count():
            interrupter = Interrupter(step)
            with suppress(KeyboardInterrupt), interrupter:
                use(pool)
            if interrupter.struck is None:
                break
            struck += 1
            gc.collect(0)
            assert wait_until(lambda: not pool.stats().used, 5), (interrupter.struck, pool, pool.holders())
            stats = pool.stats()
            assert stats.waiting == 0, interrupter.struck
            lent = [pool.getconn() for _ in range(MAXCONN)]
            for conn in lent:
                assert ask(conn, "select 1") == 1, interrupter.struck
                pool.putconn(conn)
            del conn, lent
        assert struck > 30
        print(f"{use.__name__}: {struck} interrupts, {pool.stats().discarded}")
