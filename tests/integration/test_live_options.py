"""Options that are changed while the pool works: at once for waiters, holds and idle connections."""

from __future__ import annotations

import math
import time
from contextlib import closing
from typing import Any

import pytest

from otel_pgpool import ConnectionPool, PoolTimeout, TooManyRequests
from tests.support.internals import core_of
from tests.support.pools import fill, let_lie, make, pid_of_a_checkout
from tests.support.processes import in_child
from tests.support.telemetry import Signals, until
from tests.support.waiting import PATIENCE, in_thread, wait_until

OPTIONS = ("timeout", "long_hold", "max_idle", "max_lifetime")
NEVER = ("long_hold", "max_idle", "max_lifetime")


def test_values_of_the_constructor(dsn: str) -> None:
    """They are read as given, or as their defaults; what is switched off is infinite."""
    with make(0, 1, dsn, timeout=3, long_hold=0, max_idle=None) as pool:
        assert [getattr(pool, option) for option in OPTIONS] == [3.0, math.inf, math.inf, 3600.0]
    with make(0, 1, dsn) as pool:
        assert [getattr(pool, option) for option in OPTIONS] == [30.0, 1.0, 600.0, 3600.0]


@pytest.mark.parametrize("option", OPTIONS)
def test_what_was_read_may_be_assigned(dsn: str, option: str) -> None:
    """So a value can be changed for a while and put back."""
    with make(0, 1, dsn, **{option: math.inf}) as pool:
        before = getattr(pool, option)
        setattr(pool, option, 7)
        assert getattr(pool, option) == 7.0
        setattr(pool, option, before)
        assert getattr(pool, option) == math.inf


@pytest.mark.parametrize("option", NEVER)
def test_none_switches_it_off(dsn: str, option: str) -> None:
    """As in the constructor."""
    with make(0, 1, dsn) as pool:
        setattr(pool, option, None)
        assert getattr(pool, option) == math.inf


def test_none_is_the_default_timeout(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the constructor: what the environment says now, or 30 s."""
    with make(0, 1, dsn, timeout=3) as pool:
        pool.timeout = None
        assert pool.timeout == 30.0
        monkeypatch.setenv("OTEL_PGPOOL_TIMEOUT", "4")
        pool.timeout = None
        assert pool.timeout == 4.0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(option, value) for option in OPTIONS for value in (-1, math.nan, True, "5")],
        *[("max_idle", 0)],
    ],
)
def test_an_invalid_value_changes_nothing(dsn: str, option: str, value: Any) -> None:
    """The error names the option and the value."""
    with make(0, 1, dsn) as pool:
        before = getattr(pool, option)
        with pytest.raises(ValueError, match=f"^{option} must be .*not {value!r}"):
            setattr(pool, option, value)
        assert getattr(pool, option) == before


FIXED = ("max_waiting", "keepalive", "reentrant", "max_attempts", "evict_on", "dsn", "observer", "maxconn", "min_size")


@pytest.mark.parametrize("name", [*FIXED, "name", "tiemout", "max_wating", "maxcon", "longhold", "timeouts"])
def test_no_other_option_can_be_assigned(name: str) -> None:
    """The error names what can be changed; a misspelled name is not taken for one of the program's own."""
    with closing(ConnectionPool(0, 1, "host=db", open=False)) as pool:
        with pytest.raises(AttributeError, match=f"'{name}'.*: assign timeout, .*, or call resize") as caught:
            setattr(pool, name, 3)
        assert ("did you mean 'timeout'" in str(caught.value)) == (name in ("tiemout", "timeouts"))
        assert name not in vars(pool)


def test_attributes_of_the_program() -> None:
    """Other names are free; a method may be replaced for a test, and a subclass may use any name."""

    class ShopPool(ConnectionPool):
        def __init__(self, **options: Any) -> None:
            self.dsn = options["dsn"]
            super().__init__(0, 1, open=False, **options)
            self.keepalive = 5

    with closing(ConnectionPool(0, 1, "host=db", open=False)) as pool:
        for name, value in {"tenant": "acme", "_keepalive": 5, "check": print}.items():
            setattr(pool, name, value)
            assert getattr(pool, name) == value
    with closing(ShopPool(dsn="host=db")) as own:
        assert (own.dsn, own.keepalive) == ("host=db", 5)


# timeout


def test_a_longer_timeout_for_a_waiter(dsn: str) -> None:
    """A caller that would have timed out waits on, and is served; it counts as queued once."""
    with make(1, 1, dsn, timeout=0.3) as pool:
        held = pool.getconn()
        waiting = in_thread(pool.getconn)
        assert wait_until(lambda: pool.stats().waiting == 1)
        pool.timeout = PATIENCE
        time.sleep(0.4)
        assert not waiting.done()
        pool.putconn(held)
        assert waiting.result(PATIENCE) is held
        assert (pool.stats().queued, pool.stats().timeouts) == (1, 0)
        pool.putconn(held)


def test_a_shorter_timeout_for_waiters(dsn: str) -> None:
    """Callers that have waited for so long time out now, but not one with a timeout of its own."""
    with make(1, 1, dsn, timeout=PATIENCE) as pool:
        held = pool.getconn()
        waiting = [in_thread(pool.getconn) for _ in range(3)]
        own = in_thread(pid_of_a_checkout, pool, PATIENCE)
        assert wait_until(lambda: pool.stats().waiting == 4)
        time.sleep(0.02)
        pool.timeout = 0.01
        for waiter in waiting:
            with pytest.raises(PoolTimeout, match=r"no connection within 0\.01 s"):
                waiter.result(PATIENCE)
        assert pool.stats().waiting == 1
        pool.putconn(held)
        assert own.result(PATIENCE) == held.info.backend_pid


def test_the_queue_stays_full(dsn: str) -> None:
    """A caller that comes right after a change is refused if the queue was full before."""
    with make(1, 1, dsn, timeout=PATIENCE, max_waiting=1) as pool:
        held = pool.getconn()
        waiter = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: pool.stats().waiting == 1)
        for later in range(20):
            pool.timeout = PATIENCE + later
            with pytest.raises(TooManyRequests):
                pool.getconn()
        pool.putconn(held)
        assert waiter.result(PATIENCE) == held.info.backend_pid


def test_waiters_keep_their_turn(dsn: str) -> None:
    """They are served in the order in which they asked, also after a change, and nobody is refused."""
    served: list[int] = []

    def ask(number: int) -> None:
        with pool.connection():
            served.append(number)

    with make(1, 1, dsn, timeout=PATIENCE, max_waiting=4) as pool:
        held = pool.getconn()
        callers = []
        for number in range(4):
            callers.append(in_thread(ask, number))
            assert wait_until(lambda: pool.stats().waiting == len(callers))
        for seconds in (10, 20, 15):
            pool.timeout = seconds
        assert wait_until(lambda: pool.stats().waiting == 4)
        pool.putconn(held)
        for caller in callers:
            caller.result(PATIENCE)
        assert served == [0, 1, 2, 3]


# long_hold


def test_a_lower_long_hold(dsn: str) -> None:
    """A hold that is past it is reported at once, with the new threshold."""
    with Signals() as signals, signals.pool(1, 1, dsn, long_hold=60) as pool:
        with pool.connection():
            time.sleep(0.06)
            pool.long_hold = 0.05
            until(lambda: pool.stats().long_holds == 1)
        (event,) = [event for event in signals.checkout().events if event.name == "pool.long_hold"]
        assert (event.attributes or {})["otel_pgpool.long_hold.threshold"] == 0.05
        assert pool.stats().long_holds == 1


def test_a_higher_long_hold(dsn: str) -> None:
    """A hold in progress has longer; the release of a short one, after a change to less than it, reports it."""
    with make(1, 1, dsn, long_hold=0.05) as pool:
        with pool.connection():
            pool.long_hold = None
            time.sleep(0.06)
        assert pool.stats().long_holds == 0
        pool.long_hold = 1e-6
        pid_of_a_checkout(pool)
        assert pool.stats().long_holds == 1


# max_idle, max_lifetime


def test_a_shorter_max_idle(dsn: str) -> None:
    """What has been idle for longer is closed now, down to the minimum."""
    with make(1, 3, dsn) as pool:
        fill(pool, 3)
        assert wait_until(lambda: core_of(pool).parked)
        let_lie(pool, 10)
        pool.max_idle = 5
        assert wait_until(lambda: pool.stats().size == 1)
        assert pool.stats().discarded == {"idle": 2}


def test_a_longer_max_idle(dsn: str) -> None:
    """What is idle stays for longer."""
    with make(0, 1, dsn, max_idle=0.3) as pool:
        fill(pool, 1)
        pool.max_idle = None
        time.sleep(0.5)
        assert pool.stats().idle == 1


def test_a_shorter_max_lifetime(dsn: str) -> None:
    """Idle connections that are older are replaced now, and one that is in use at its release."""
    with make(2, 3, dsn) as pool:
        fill(pool, 3)
        held = pool.getconn()
        pool.max_lifetime = 0.01
        assert wait_until(lambda: pool.stats().discarded.get("expired", 0) >= 2)
        assert held.closed == 0
        pool.max_lifetime = 60  # the held one is young again, and those opened from now on are
        pool.putconn(held)
        assert not held.closed
        assert wait_until(lambda: pool.stats().idle >= 2 and pool.stats().connecting == 0)
        held = pool.getconn()
        pool.max_lifetime = 1e-6  # shorter than the time since the connect, however recent
        pool.putconn(held)
        assert held.closed


def test_a_longer_max_lifetime(dsn: str) -> None:
    """A connection that was to be replaced stays; the new value, too, is shortened by 10 % at most."""
    with make(1, 1, dsn, max_lifetime=0.5) as pool:
        pid = pid_of_a_checkout(pool)
        pool.max_lifetime = 100
        time.sleep(0.6)
        assert pid_of_a_checkout(pool) == pid
        (slot,) = core_of(pool).members
        assert 90 <= slot.expires - slot.opened <= 100


# Every state of the pool


def test_a_pool_that_is_not_open(dsn: str) -> None:
    """The values are taken over, and no thread is started."""
    with closing(make(1, 1, dsn, open=False)) as pool:
        change_all(pool)
        assert pool.stats().status == "new"
        pool.open()
        assert [getattr(pool, option) for option in OPTIONS] == [5.0, 6.0, 7.0, 8.0]
    change_all(pool)  # of a closed pool: has no effect


def change_all(pool: ConnectionPool) -> None:
    pool.timeout, pool.long_hold, pool.max_idle, pool.max_lifetime = 5, 6, 7, 8


def test_a_forked_child_has_the_values_of_the_fork(dsn: str) -> None:
    """Not those of the constructor."""
    with make(1, 1, dsn) as pool:
        change_all(pool)

        def values() -> list[float]:
            assert pid_of_a_checkout(pool)
            (slot,) = core_of(pool).members
            assert slot.expires - slot.opened <= 8
            return [getattr(pool, option) for option in OPTIONS]

        assert in_child(values) == "[5.0, 6.0, 7.0, 8.0]"
