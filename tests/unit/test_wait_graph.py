"""The wait graph: the head of a chain, cycles, and the checkouts of this process among the blockers."""

from __future__ import annotations

import json

import pytest

from otel_pgpool.pool import session_query
from otel_pgpool.pool.checkout import Checkout, Slot, begin
from otel_pgpool.pool.session_query import Session, read_answer, statement_for
from otel_pgpool.pool.wait_graph import WaitGraph

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def session(pid: int, *blockers: int, name: str = "") -> Session:
    return Session(pid, blockers, name, "active", "Lock" if blockers else "", "tuple", 1.0, 1.0, "ShareLock", "orders")


def graph(*sessions: Session, holds: dict[int, Checkout] | None = None, **names: Checkout) -> WaitGraph:
    return WaitGraph({each.pid: each for each in sessions}, holds or {}, names)


def hold(pid: int) -> Checkout:
    checkout = begin(0.0, (hold.__code__, 0))
    checkout.slot = Slot()
    checkout.slot.pid = pid
    return checkout


@pytest.mark.parametrize(
    ("edges", "root"),
    [
        ({1: ()}, None),
        ({1: (2,), 2: ()}, 2),
        ({1: (2,), 2: (3,), 3: ()}, 3),
        ({1: (2,)}, 2),  # the blocker has ended since
        ({1: (2,), 2: (1,)}, None),  # a deadlock that the server has not found yet
        ({1: (2, 3), 2: (1,), 3: (4,), 4: ()}, 4),
        ({1: (0,)}, 0),  # a prepared transaction
    ],
)
def test_the_head_of_the_chain(edges: dict[int, tuple[int, ...]], root: int | None) -> None:
    """It is the nearest session that waits for nobody; none in a cycle."""
    sessions = [session(pid, *blockers) for pid, blockers in edges.items()]
    assert graph(*sessions).root_of(sessions[0]) == root
    described = graph(*sessions).state_of(sessions[0], 1.0).root_blocker
    assert (None if described is None else described.pid) == root


def test_holds_of_this_process() -> None:
    """A blocker is found by process id, or by the traceparent that is its name, once each."""
    direct, named = hold(2), hold(3)
    first, second, third = session(1, 2, 3), session(2, 3), session(3, name=TRACEPARENT)
    found = graph(first, second, third, holds={2: direct}, **{TRACEPARENT: named})
    assert found.blockers_of(first) == [direct, named]
    assert [each.checked_out_at is not None for each in found.state_of(first, 1.0).blocked_by] == [True, True]


def test_the_trace_of_another_process() -> None:
    """It is read from the session's name; another name contains none."""
    for name, trace in ((TRACEPARENT, "a" * 32), ("shop", None), (TRACEPARENT.upper(), None)):
        state = graph(session(1, 2), session(2, name=name)).state_of(session(1, 2), 1.0)
        assert [(each.trace_id, each.checked_out_at) for each in state.blocked_by] == [(trace, None)]


def test_nothing_but_a_traceparent_enters_the_statement() -> None:
    """A name that is none is left out, as is the process id 0 of an unknown session."""
    statement = statement_for([7, 0], [TRACEPARENT, "'; drop table orders; --"])
    assert f"ARRAY['{TRACEPARENT}']" in statement
    assert "ARRAY[7]" in statement
    assert "drop" not in statement


def test_an_answer_is_bounded() -> None:
    """Of a long queue the first sessions are kept, and texts are one printable line."""
    row = dict.fromkeys(Session._fields)
    row |= {"pid": 1, "blockers": [*range(2, 500)], "application_name": "two\nlines"}
    answer = read_answer(json.dumps({"backend": 5, "sessions": [row]}))
    assert answer.sessions[1].blockers == tuple(range(2, 2 + session_query.MOST_BLOCKERS))
    assert "\n" not in answer.sessions[1].application_name
    assert str(graph(answer.sessions[1]).state_of(answer.sessions[1], 1.0)).endswith("and of 47 more")
