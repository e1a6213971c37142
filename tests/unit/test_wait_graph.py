"""The wait graph: the head of a chain, cycles, and the checkouts of this process among the blockers."""

from __future__ import annotations

import pytest

from otel_pgpool.pool.checkout import Checkout, Slot, begin
from otel_pgpool.pool.session_query import Session
from otel_pgpool.pool.wait_graph import WaitGraph

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def session(pid: int, *blockers: int, name: str = "") -> Session:
    return Session(pid, blockers, name, "active", "Lock" if blockers else "", "tuple", 1.0, 1.0, "ShareLock", "orders")


def graph(*sessions: Session, holds: dict[int, Checkout] | None = None) -> WaitGraph:
    return WaitGraph({each.pid: each for each in sessions}, (holds or {}).get)


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


def test_the_blocker_on_the_way_to_the_head_is_first() -> None:
    """Of those in front of a session in a queue; the others keep their order."""
    queue = [session(1), session(2, 1), session(3, 2), session(4, 3, 2), session(5, 4, 3, 2)]
    described = graph(*queue).state_of(queue[-1], 1.0)
    assert [blocker.pid for blocker in described.blocked_by] == [2, 4, 3]


def test_holds_of_this_process() -> None:
    """A blocker that is a checkout of this process is found once, with its call site."""
    first, second, third = session(1, 2, 3), session(2, 3), session(3)
    holds = {2: hold(2), 3: hold(3)}
    found = graph(first, second, third, holds=holds)
    assert found.blockers_of(first) == list(holds.values())
    assert [each.checked_out_at is not None for each in found.state_of(first, 1.0).blocked_by] == [True, True]


def test_the_trace_of_another_process() -> None:
    """It is read from the session's name; another name contains none."""
    for name, trace in ((TRACEPARENT, "a" * 32), ("shop", None), (TRACEPARENT.upper(), None)):
        state = graph(session(1, 2), session(2, name=name)).state_of(session(1, 2), 1.0)
        assert [(each.trace_id, each.checked_out_at) for each in state.blocked_by] == [(trace, None)]
