"""The server is away: one prober with jitter, callers that wait for their timeout, recovery without errors."""

from __future__ import annotations

import itertools
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from otel_pgpool import ConnectionFailed, PoolTimeout
from otel_pgpool.pool import backoff
from tests.support.database import ask
from tests.support.pools import Recorder, let_lie, make, pid_of_a_checkout
from tests.support.servers import ClonedServer
from tests.support.waiting import PATIENCE, in_thread, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_pgpool.demo.postgres import PostgresServer

FIRST, LONGEST = 0.1, 5.0  # seconds: what the prober's delay doubles from, and to


@pytest.fixture(scope="module")
def restartable() -> Iterator[PostgresServer]:
    with ClonedServer() as server:
        yield server


@pytest.fixture
def own_server(restartable: PostgresServer) -> PostgresServer:
    """Provide the module's own server, running whatever the test before did."""
    restartable.start()
    return restartable


def test_one_prober_with_jitter(own_server: PostgresServer) -> None:
    """However many wait, one attempt at a time, each after a random delay that doubles; then all are served."""
    recorder = Recorder()
    with make(0, 8, own_server.dsn, observer=recorder, timeout=30) as pool:
        own_server.stop()
        callers = [in_thread(pid_of_a_checkout, pool)]
        assert wait_until(lambda: recorder.calls("connect_failed"))
        callers += [in_thread(pid_of_a_checkout, pool) for _ in range(7)]
        assert wait_until(lambda: len(recorder.calls("connect_failed")) >= 5)
        assert pool.stats().status == "unreachable"
        assert pool.stats().connecting <= 1
        own_server.start()
        assert all(caller.result(PATIENCE) for caller in callers)
        failed = [connect for (connect,) in recorder.calls("connect_failed")]
        assert [connect.attempt for connect in failed] == list(range(1, len(failed) + 1))
        attempts = max((checkout.attempts for (checkout,) in recorder.calls("acquired")), key=len)  # the first caller's
        for number, attempt in enumerate(attempts):
            assert 0 <= attempt.delay <= min(LONGEST, FIRST * 2**number)
        for before, after, attempt in zip(failed, failed[1:], attempts, strict=False):
            assert after.began - before.ended >= attempt.delay - 0.01, "one after the other, after the delay"
        assert len({attempt.delay for attempt in attempts}) == len(attempts), "drawn by chance"
        assert len(recorder.calls("outage_started")) == 1
        assert wait_until(lambda: recorder.calls("outage_ended"))
        ((ended, duration),) = recorder.calls("outage_ended")
        assert ended == len(failed)
        assert duration > 0
        assert pool.stats().status == "ok"


def test_retries_of_a_checkout(own_server: PostgresServer) -> None:
    """`retries` counts the failed connects that happened during a checkout; it carries no error when it succeeds."""
    recorder = Recorder()
    with make(0, 2, own_server.dsn, observer=recorder, timeout=30) as pool:
        own_server.stop()
        early = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: len(recorder.calls("connect_failed")) >= 2)
        late = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: pool.stats().waiting == 2)
        before = len(recorder.calls("connect_failed"))
        assert wait_until(lambda: len(recorder.calls("connect_failed")) > before + 1)  # one may have been on its way
        own_server.start()
        assert early.result(PATIENCE)
        assert late.result(PATIENCE)
        failed = len(recorder.calls("connect_failed"))
        retries = sorted(checkout.retries for (checkout,) in recorder.calls("released"))
        assert retries[1] == failed
        assert 1 <= retries[0] <= failed - 1
        assert pool.stats().retries == sum(retries)
        assert {checkout.error_type for (checkout,) in recorder.calls("released")} == {None}


def test_timeout_during_an_outage(own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the caller's time is up, not after three tries, and says why: the connect's error."""
    monkeypatch.setattr(backoff, "LONGEST_DELAY", 0.05)
    with make(1, 2, own_server.dsn) as pool:
        own_server.stop()
        let_lie(pool)
        began = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=2)
        assert 2 <= time.monotonic() - began < PATIENCE
        assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
        assert caught.value.retries > 3
        assert pool.stats().timeouts == 1
        assert pool.stats().waiting == 0


@pytest.mark.parametrize("limit", [{"max_retries": 0}, {"max_retries": 1}, {"max_attempts": 1}, {"max_attempts": 3}])
def test_max_attempts(own_server: PostgresServer, limit: dict[str, int]) -> None:
    """A checkout gives up after so many failures, at least one, long before its timeout."""
    recorder = Recorder()
    with make(0, 2, own_server.dsn, timeout=60, **limit, observer=recorder) as pool:
        own_server.stop()
        began = time.monotonic()
        with pytest.raises(PoolTimeout, match=r"^gave up after max_attempts=[13] .* failed attempts?\)") as caught:
            pool.getconn()
        assert time.monotonic() - began < 20
        assert type(caught.value) is ConnectionFailed
        assert caught.value.retries == max(1, *limit.values())
        assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
        ((checkout, error),) = recorder.calls("failed")
        assert error is caught.value
        assert (checkout.outcome, checkout.error_type) == ("error", "OperationalError")
        assert (pool.stats().timeouts, pool.stats().errors) == (0, 1)


def test_prober_goes_on_until_the_server_is_reached(own_server: PostgresServer) -> None:
    """Though the one who waited has given up: alone, at its pace, and it ends with the outage."""
    recorder = Recorder()
    with make(0, 2, own_server.dsn, observer=recorder) as pool:
        own_server.stop()

        def gives_up_after_a_failure() -> bool:
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.2)
            return bool(recorder.calls("connect_failed"))

        assert wait_until(gives_up_after_a_failure)
        assert wait_until(lambda: len(recorder.calls("connect_failed")) >= 5)
        failed = [connect for (connect,) in recorder.calls("connect_failed")]
        assert all(after.began >= before.ended for before, after in itertools.pairwise(failed))
        own_server.start()
        assert wait_until(lambda: pool.stats().status == "ok")
        assert wait_until(lambda: pool.stats().connecting == 0)
        assert pool.stats().size <= 1


def test_outage_ends_though_nobody_waits(own_server: PostgresServer) -> None:
    """Once connections serve again the pool does not call the server unreachable."""
    with make(1, 2, own_server.dsn) as pool:
        own_server.stop()
        let_lie(pool)
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.3)
        assert wait_until(lambda: pool.stats().status == "unreachable")
        own_server.start()
        assert pid_of_a_checkout(pool, PATIENCE)
        assert wait_until(lambda: pool.stats().status == "ok")


def test_failed_connect_that_nobody_needed(dsn: str) -> None:
    """One connect fails, a return serves the caller: the pool is well again, and later errors do not blame it."""
    refuse = [False]

    def credentials() -> dict[str, str]:
        if refuse[0]:
            raise LookupError("not now")
        return {}

    with make(1, 2, dsn, credentials=credentials, timeout=PATIENCE) as pool:
        held = pool.getconn()
        refuse[0] = True
        waiting = in_thread(pool.getconn)
        assert wait_until(lambda: pool.stats().status == "unreachable")
        pool.putconn(held)
        assert waiting.result(PATIENCE) is held
        refuse[0] = False
        assert wait_until(lambda: pool.stats().status == "ok")
        pool.putconn(held)


def test_failed_open_strands_nobody(own_server: PostgresServer) -> None:
    """A caller that queued while `open()` failed is served as soon as the server is back."""
    with closing(make(1, 2, own_server.dsn, open=False, timeout=PATIENCE)) as pool:
        own_server.stop()
        caller = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: pool.stats().waiting == 1)
        with pytest.raises(psycopg2.OperationalError):
            pool.wait()
        own_server.start()
        assert caller.result(PATIENCE)


def test_minimum_comes_back_by_itself(own_server: PostgresServer) -> None:
    """After the outage the pool is full again without a caller."""
    with make(3, 3, own_server.dsn) as pool:
        own_server.stop()
        pool.check()
        assert wait_until(lambda: pool.stats().idle == 0)
        own_server.start()
        assert wait_until(lambda: pool.stats().idle == 3, 20)


def test_broken_in_use_during_an_outage(own_server: PostgresServer) -> None:
    """Those lent when the server goes fail as they must; their places are free, and the next wait it out."""
    with make(2, 2, own_server.dsn, timeout=30) as pool:
        conns = [pool.getconn() for _ in range(2)]
        own_server.stop("immediate")
        for conn in conns:
            with pytest.raises(psycopg2.Error):
                ask(conn, "select 1")
            pool.putconn(conn)
        assert pool.stats().used == 0
        waiting = in_thread(pid_of_a_checkout, pool)
        assert wait_until(lambda: pool.stats().waiting == 1)
        own_server.start()
        assert waiting.result(PATIENCE)


def test_close_during_an_outage(own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for the prober's delay."""
    monkeypatch.setattr(backoff, "FIRST_DELAY", 1000.0)
    monkeypatch.setattr(backoff, "LONGEST_DELAY", 1000.0)
    pool = make(0, 2, own_server.dsn, timeout=30)
    own_server.stop()
    waiting = in_thread(pid_of_a_checkout, pool)
    assert wait_until(lambda: pool.stats().retries >= 1)
    began = time.monotonic()
    pool.close(2 * PATIENCE)
    assert time.monotonic() - began < PATIENCE
    error: Any = waiting.exception(PATIENCE)
    assert type(error).__name__ == "PoolClosed"
