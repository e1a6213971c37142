"""The verdict of `health()`, on a core without a database and with a clock set by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg2
import pytest

from otel_pgpool import TooManyRequests
from otel_pgpool.pool import core
from otel_pgpool.pool.checkout import Attempt
from otel_pgpool.pool.core import Core
from otel_pgpool.pool.health import health_of
from otel_pgpool.stats import PoolHealth
from otel_pgpool.types import HealthStatus
from tests.support.fakes import Desk, filled, lent_out

if TYPE_CHECKING:
    from otel_pgpool.pool.checkout import Slot

AT = 'connection to server at "127.0.0.1", port 5432 failed: '


def verdict(desk: Desk) -> PoolHealth:
    return health_of(desk.core, desk.now)


def test_a_pool_at_work() -> None:
    """It is ok with idle connections, while it connects, and while all are in use and nobody waits."""
    desk = Desk(2, 2, name="shop")
    assert verdict(desk) == PoolHealth("shop", HealthStatus.OK, (), None)
    waiter = desk.join()
    assert verdict(desk).is_ok, "it waits for a connect"
    desk.connect(2)
    conn = desk.accept(waiter)
    desk.hold()
    assert verdict(desk).is_ok, "nobody waits"
    assert conn is not None
    desk.give_back(waiter.checkout, conn)
    assert verdict(desk).is_ok


def test_a_pool_that_is_not_open_yet() -> None:
    """Its first checkout opens it."""
    assert health_of(Core(1, 2), 0.0).is_ok


def test_saturated_since_the_oldest_waiter_queued() -> None:
    """The duration is that of the present oldest waiter, and ends with it."""
    desk, checkout, conn = lent_out()
    first = desk.join()
    desk.now += 2.0
    desk.join()
    desk.now += 1.0
    health = verdict(desk)
    assert (health.status, health.duration, health.is_ok) == ("saturated", 3.0, False)
    assert health.reasons == ("no connection is free: 1 of 1 in use; 2 waiting, the first for 3.000 s",)
    desk.give_back(checkout, conn)
    assert first.conn is not None
    assert verdict(desk).duration == 1.0


def test_saturated_after_maxconn_was_lowered() -> None:
    """More connections are in use than the pool may have."""
    desk = filled(2, 2)
    held = [desk.hold(), desk.hold()]
    desk.core.resize(0, 1)
    desk.join()
    assert verdict(desk).status == "saturated"
    assert verdict(desk).reasons[0].startswith("no connection is free: 2 of 1 in use")
    desk.give_back(*held[0])
    assert verdict(desk).reasons[0].startswith("no connection is free: 1 of 1 in use")


def test_a_full_queue() -> None:
    """Further callers are refused, even if connections are being opened for those that wait."""
    desk = Desk(0, 3, max_waiting=2)
    desk.join()
    assert verdict(desk).is_ok
    desk.now += 1.0
    desk.join()
    health = verdict(desk)
    assert (health.status, health.duration) == ("saturated", 1.0)
    assert health.reasons == ("the queue is full, further callers are refused: 2 waiting (max_waiting=2)",)
    with pytest.raises(TooManyRequests):
        desk.join()


def test_several_reasons() -> None:
    """The worst is the status, its duration is that of the verdict, and all are told."""
    desk = Desk(0, 2, max_waiting=1)
    desk.join()
    slot = desk.claim()
    assert slot is not None
    desk.now += 5.0
    desk.miss(slot)
    desk.now += 1.0
    health = verdict(desk)
    assert (health.status, health.duration) == ("unreachable", 1.0)
    assert [reason.partition(":")[0] for reason in health.reasons] == [
        "no connection can be opened",
        "no connection is free",
        "the queue is full, further callers are refused",
    ]


def test_unreachable() -> None:
    """Since the first failed attempt, until the server is reached; the error's text is left out."""
    desk = Desk(1, 2)
    for _ in range(2):
        slot = desk.claim()
        assert slot is not None
        desk.miss(slot, OSError('connection to server at "10.0.0.5" failed'))
        desk.now += 1.5
    health = verdict(desk)
    assert (health.status, health.duration) == ("unreachable", 3.0)
    assert health.reasons == ("no connection can be opened: OSError; 2 failed attempts within 3.000 s",)
    desk.connect()
    assert verdict(desk).is_ok


@pytest.mark.parametrize("has_connection", [False, True])
def test_refused(has_connection: bool) -> None:
    """While the server refuses new connections, such as for a changed password, those that the pool has serve on."""
    desk = filled(int(has_connection), 2)
    desk.core.resize(2, 2)
    slot = desk.claim()
    assert slot is not None
    desk.core.connect_failed(slot, Attempt(desk.now, "28P01", 0.5), OSError(), is_refusal=True)
    desk.now += 2.0
    health = verdict(desk)
    if has_connection:
        assert health.is_ok
    else:
        assert (health.status, health.duration) == ("unreachable", 2.0)
        assert health.reasons == (
            "the server is up, but no connection can be used: OSError; 1 failed attempt within 2.000 s",
        )


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        (f"{AT}FATAL:  sorry, too many clients already\n", ("ok", "saturated", "unreachable")),
        (
            f"{AT}FATAL:  d\u00e9sol\u00e9, trop de clients sont d\u00e9j\u00e0 connect\u00e9s\n",
            ("ok", "saturated", "unreachable"),
        ),
        (f"{AT}FATAL:  the database system is starting up\n", ("unreachable",) * 3),
        (f"{AT}timeout expired\n", ("unreachable",) * 3),
    ],
    ids=["full", "full in another language", "starting", "no answer"],
)
def test_a_server_that_opens_no_further_connection(text: str, verdicts: tuple[str, ...]) -> None:
    """If it is full, the connections that the pool has still serve: it is not unreachable while it has one."""
    desk = filled(1, 3)
    desk.core.resize(2, 3)
    checkout, conn = desk.hold()
    slot = desk.claim()
    assert slot is not None
    desk.miss(slot, psycopg2.OperationalError(text))
    assert verdict(desk).status == verdicts[0]
    assert desk.core.stats().status == "unreachable", "no connection can be opened"
    waiter = desk.join()
    assert verdict(desk).status == verdicts[1], "the pool cannot grow"
    desk.give_back(checkout, conn)
    assert waiter.conn is not None
    assert verdict(desk).status == verdicts[0]
    desk.give_back(waiter.checkout, desk.accept(waiter), "broken")  # type: ignore[arg-type]  # it was served
    assert verdict(desk).status == verdicts[2]


def test_a_server_that_does_not_answer_a_connect() -> None:
    """A connect in progress shows it after 1 s, before its `connect_timeout`, even if nobody waits just now."""
    desk = filled(2, 4)
    for _ in range(2):
        desk.hold()
    first = desk.join()
    for _ in range(2):
        desk.join()
        assert desk.claim()
        desk.now += 0.5
    assert verdict(desk).is_ok
    desk.now += 1.0
    health = verdict(desk)
    assert (health.status, health.duration) == ("saturated", 2.0)
    assert health.reasons == (
        "no connection is free: 2 of 4 in use, 2 being opened, the first for 2.000 s; 3 waiting, the first for 2.000 s",
    )
    for waiter in list(desk.core.queue.values()):
        desk.core.leave(waiter.checkout, waiter)
    assert verdict(desk).reasons == ("no connection is free: 2 of 4 in use, 2 being opened, the first for 2.000 s",)
    desk.join(first.checkout)
    assert verdict(desk).status == "saturated", "nor if its wait has just begun"


@pytest.mark.parametrize("what", ["connect", "ping"])
def test_a_server_that_has_not_answered_yet(what: str) -> None:
    """Without another connection, a connect or a ping in progress shows it after 1 s, although nobody waits."""
    desk = Desk(1, 2) if what == "connect" else filled(1, 2)
    slot: Slot | None = None
    if what == "connect":
        slot = desk.claim()
    else:
        desk.idle[0].ping_after = 0.0
        slot = desk.core.begin_ping(desk.now)
    assert slot is not None
    desk.now += 1.0
    assert verdict(desk).is_ok
    desk.now += 0.5
    health = verdict(desk)
    assert (health.status, health.duration) == ("unreachable", 1.5)
    done = "opened" if what == "connect" else "checked"
    assert health.reasons == (f"the server has not answered yet: 1 being {done}, the first for 1.500 s",)
    if what == "connect":
        desk.deliver(slot)
    else:
        desk.core.ping_passed(slot, desk.now)
    assert verdict(desk).is_ok


def test_a_caller_that_waits_although_the_pool_may_grow() -> None:
    """Such as when no thread can be started to connect: saturated after 1 s."""
    desk = Desk(0, 2)
    desk.join()
    desk.now += 1.0
    assert verdict(desk).is_ok
    desk.now += 0.5
    health = verdict(desk)
    assert (health.status, health.duration) == ("saturated", 1.5)
    assert health.reasons == ("no connection is free: 0 of 2 in use; 1 waiting, the first for 1.500 s",)


def test_the_first_words_of_a_reason() -> None:
    """They are the same at each call, so that they can be the key of an alert."""
    desk = Desk(1, 1, max_waiting=1)
    desk.join()
    seen = []
    for _ in range(3):
        slot = desk.claim()
        assert slot is not None
        desk.now += 2.0
        desk.miss(slot)
        seen.append([reason.partition(":")[0] for reason in verdict(desk).reasons])
    assert seen[0] == seen[1] == seen[2]


def test_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since the first close, and whatever else is wrong."""
    desk, _checkout, _conn = lent_out()
    desk.join()
    monkeypatch.setattr(core, "monotonic", lambda: desk.now)
    desk.core.close()
    desk.now += 4.0
    desk.core.close()
    health = verdict(desk)
    assert (health.status, health.reasons, health.duration) == ("closed", ("the pool is closed",), 4.0)


def test_as_json() -> None:
    """All fields as plain values."""
    desk, _checkout, _conn = lent_out()
    desk.join()
    desk.now += 0.25
    told = verdict(desk).as_dict()
    assert type(told["status"]) is str
    assert json.loads(json.dumps(told)) == {
        "name": "",
        "status": "saturated",
        "reasons": ["no connection is free: 1 of 1 in use; 1 waiting, the first for 0.250 s"],
        "duration": 0.25,
    }
