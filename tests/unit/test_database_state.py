"""The database's side of a hold in words: one line, in which the head of a chain stands first."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from otel_pgpool import BlockingSession, DatabaseState
from otel_pgpool.database_state import MOST_BLOCKERS
from otel_pgpool.pool.checkout import begin
from otel_pgpool.pool.figures import diagnose
from otel_pgpool.stats import Holder, PoolStats

HEAD = BlockingSession(1, "shop/web", "idle in transaction", 1.9, "a" * 32, "web.py:12 pay")
FIRST, SECOND, THIRD = (BlockingSession(pid, state="active") for pid in (2, 3, 4))
HEAD_IN_WORDS = (
    f"pid 1 (idle in transaction, transaction 1.900 s, application 'shop/web', checked out at web.py:12 pay, "
    f"trace {'a' * 32})"
)


def waiting(*blockers: BlockingSession, root: BlockingSession | None = HEAD, held: float = 2.0) -> DatabaseState:
    return DatabaseState(
        held, 9, "active", "Lock", "tuple", blocked_by=blockers, lock_mode="ShareLock", lock_relation="t",
        root_blocker=root,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (waiting(HEAD), f"active, waits for ShareLock on t of {HEAD_IN_WORDS}"),
        (
            waiting(FIRST),
            f"active, waits for ShareLock on t, head of the chain: {HEAD_IN_WORDS}, direct blocker: pid 2 (active)",
        ),
        (
            waiting(FIRST, SECOND, THIRD),
            f"{waiting(FIRST)}, and 2 more ahead of it",
        ),
        (
            waiting(FIRST, HEAD, SECOND),
            f"active, waits for ShareLock on t of {HEAD_IN_WORDS}, and 2 more ahead of it",
        ),
        (waiting(FIRST, root=None), "active, waits for ShareLock on t of pid 2 (active)"),  # a deadlock
        (
            waiting(BlockingSession(0), root=BlockingSession(0)),
            "active, waits for ShareLock on t of a prepared transaction",
        ),
        (
            waiting(*[FIRST] * MOST_BLOCKERS, root=None),
            f"active, waits for ShareLock on t of pid 2 (active), and at least {MOST_BLOCKERS - 1} more ahead of it",
        ),
    ],
)
def test_a_session_that_waits_for_a_lock(state: DatabaseState, text: str) -> None:
    """The head of the chain, one direct blocker, and the number of the others, of which no more than 50 are read."""
    assert str(state) == text


def holder(pid: int, state: DatabaseState | None = None) -> Holder:
    return Holder(pid, pid, f"w{pid}", 2.5, "web.py:8 order", database_state=state)


def test_a_holder_says_how_old_the_answer_is() -> None:
    """Not how long the hold had lasted then."""
    expected = f"2.500 s by thread 'w9' at web.py:8 order (pid 9), in the database 0.5 s ago: {waiting(HEAD)}"
    assert str(holder(9, waiting(HEAD))) == expected
    assert " in the database 0.0 s ago: " in str(holder(9, waiting(HEAD, held=2.6))), "the clock was read before"


def lines_of(*holders: Holder) -> list[str]:
    stats = PoolStats("shop", "critical", 1, 8, 8, 8, 0, 0, 0, 1.0, 2.5)
    waiter = begin(0.0, ())
    holds: list[Any] = [
        SimpleNamespace(holder=lambda _now, each=each: each, thread=threading.Thread(), task=None) for each in holders
    ]
    return str(diagnose("none", stats, holds, since=0.0, now=1.0, retries=0, waiter=waiter)).splitlines()[1:]


def test_a_queue_for_one_row() -> None:
    """A timeout describes each session once; the part that follows a `;` in the log is a holder of its own."""
    queue = [holder(1), *(holder(pid, waiting(FIRST, *[SECOND] * (pid - 3))) for pid in range(3, 9))]
    lines = lines_of(*queue, holder(2, waiting(HEAD)))
    assert [line for line in lines if ";" in line] == []
    assert lines[0] == "  held 2.500 s by thread 'w1' at web.py:8 order (pid 1)"
    assert lines[2].endswith("head of the chain: pid 1, direct blocker: pid 2 (active), and 1 more ahead of it")
    assert lines[5:] == ["  and 3 more holders"]


def test_a_head_that_is_no_holder_of_the_pool() -> None:
    """It is described where it is named first."""
    lines = lines_of(holder(8, waiting(HEAD)), holder(9, waiting(replace(FIRST, pid=8))))
    assert lines[0].endswith(f"of {HEAD_IN_WORDS}")
    assert lines[1].endswith("head of the chain: pid 1, direct blocker: pid 8")
