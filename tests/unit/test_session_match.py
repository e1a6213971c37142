"""The match between sessions and holds: what proves that a session is a hold's, and what refutes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from otel_pgpool.pool.checkout import Checkout, Slot, begin
from otel_pgpool.pool.monitor_source import PoolHolds
from otel_pgpool.pool.session_match import Place, SessionMatch
from otel_pgpool.pool.session_query import Answer, Session

if TYPE_CHECKING:
    from otel_pgpool.pool.monitor_source import Server

HERE, ELSEWHERE = ("db", 5432), ("replica", 5432)
NAME, OTHER = (f"00-{letter * 32}-{letter * 16}-01" for letter in "ab")
ASKED = 1000.0


def hold(
    pid: int, *, held: float = 10.0, port: int = 0, name: str = "", opened: float | None = None, connect: float = 0.0
) -> Checkout:
    """Return a hold. ``opened`` is the age of its connection, whose connect has taken ``connect`` seconds."""
    checkout: Any = begin(ASKED - held, ())
    checkout.slot, checkout.acquired, checkout.trace_name = Slot(), ASKED - held, name or None
    checkout.slot.pid, checkout.slot.local_port = pid, port
    if opened is not None:
        checkout.slot.opened, checkout.slot.connect_began = ASKED - opened, ASKED - opened - connect
    return checkout  # type: ignore[no-any-return]


def session(pid: int, *, age: float | None = 100.0, port: int = 0, name: str = "", state: str = "active") -> Session:
    return Session(pid, (), name, state, "", "", None, None, "", "", age, port)


def matched(
    *sessions: Session, holds: list[Checkout], server: Server = HERE, is_direct: bool = False, is_proxy: bool = False
) -> SessionMatch:
    place = Place(HERE, ASKED, is_proxy, is_direct)
    return SessionMatch(
        Answer(99, {each.pid: each for each in sessions}), place, [PoolHolds(lambda _slot: server, holds)]
    )


@pytest.mark.parametrize(
    ("of_session", "of_hold", "place", "fits"),
    [
        ({}, {}, {}, True),
        ({"age": 9.9}, {}, {}, True),  # connected for this hold
        ({"age": 3.0}, {}, {}, False),  # a later session that has got the process id
        ({"age": None}, {}, {}, True),  # not shown to this login
        ({"port": 40001}, {"port": 40001}, {"is_direct": True}, True),
        ({"port": 40002}, {"port": 40001}, {"is_direct": True}, False),  # another server behind one name
        ({"port": 40002}, {"port": 40001}, {}, True),  # addresses are translated
        ({"port": -1}, {"port": 0}, {}, True),  # a Unix socket
        ({"age": 3.0, "port": 40001}, {"port": 40001}, {}, True),  # the server's clock was set forward
        ({"age": 100.0}, {"opened": 99.0, "connect": 1.0}, {}, True),
        ({"age": 100.0}, {"opened": 50.0, "connect": 1.0}, {}, False),  # another server's session
        ({"age": 40.0}, {"opened": 50.0, "connect": 1.0}, {}, False),  # a later session with the process id
    ],
)
def test_the_session_of_a_hold(
    of_session: dict[str, Any], of_hold: dict[str, Any], place: dict[str, bool], fits: bool
) -> None:
    """A process id is no proof if the session is younger than the hold, or has another port."""
    held, listed = hold(7, **of_hold), session(7, **of_session)
    found = matched(listed, holds=[held], **place)
    assert found.session_of(held) == (listed if fits else None)
    assert found.hold_of(7) == (held if fits else None)


def test_a_pool_that_names_the_server_otherwise() -> None:
    """Its hold is found by the port of the connection, and not by the process id alone."""
    held = hold(7, port=40001)
    assert matched(session(7, port=40001), holds=[held], server=ELSEWHERE).hold_of(7) is held
    assert matched(session(7, port=40002), holds=[held], server=ELSEWHERE).hold_of(7) is None
    assert matched(session(7), holds=[held], server=ELSEWHERE).hold_of(7) is None


def test_a_pool_that_uses_the_socket() -> None:
    """Its hold is found by the age of its connection, although the monitor uses another name of the server."""
    held = hold(7, opened=100.0)
    assert matched(session(7, age=100.2, port=-1), holds=[held], server=ELSEWHERE).hold_of(7) is held
    assert matched(session(7, age=150.0, port=-1), holds=[held], server=ELSEWHERE).hold_of(7) is None
    assert matched(session(7, age=100.2, port=40002), holds=[held], server=ELSEWHERE).hold_of(7) is None


def test_unknown_process_ids() -> None:
    """0 is a prepared transaction among the sessions, and an unknown process id among the holds."""
    held = hold(0)
    found = matched(session(0), holds=[held])
    assert found.session_of(held) is None
    assert found.hold_of(0) is None
    assert found.hold_of(8) is None


@pytest.mark.parametrize(
    ("sessions", "pid", "blocking"),
    [
        ([], None, []),
        ([session(1, name=NAME)], 1, [1]),
        ([session(1, name=NAME, state="idle"), session(2, name=NAME)], 2, [2]),  # the name that a client has left
        ([session(1, name=NAME), session(2, name=NAME)], None, []),
        ([session(1, name=NAME, state="idle")], 1, []),
        ([session(7), session(1, name=OTHER)], None, []),
        ([session(1, name=NAME, state="")], 1, [1]),
    ],
)
def test_behind_a_proxy(sessions: list[Session], pid: int | None, blocking: list[int]) -> None:
    """The process id says nothing. The name is proof if one session that is not idle has it."""
    held = hold(7, name=NAME)
    found = matched(*sessions, holds=[held], is_proxy=True)
    listed = found.session_of(held)
    assert (None if listed is None else listed.pid) == pid
    assert [each.pid for each in sessions if found.hold_of(each.pid) is held] == blocking


def test_a_direct_session_is_not_found_by_its_name() -> None:
    """Another session may have copied it; as a blocker it is, since its pool may use a proxy."""
    held = hold(7, name=NAME)
    assert matched(session(1, name=NAME), holds=[held]).session_of(held) is None
    assert matched(session(1, name=NAME), holds=[held]).hold_of(1) is held
