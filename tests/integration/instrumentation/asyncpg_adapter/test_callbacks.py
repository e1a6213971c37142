"""Callbacks of the program that raise, and arguments with which no connect can begin: the server is not the cause."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.support.asyncpg_pools import TIMEOUTS, backend, run, tracker_of, until
from tests.support.database import kill, refused_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg2.extensions import connection

    from tests.support.telemetry import Record, Signals

pytestmark = pytest.mark.usefixtures("instrumentation")

USED, MADE, HANDED_OUT = (
    "a new connection cannot be used",
    "no connection can be made",
    "a connection cannot be handed out",
)

SINCE_0_30 = pytest.mark.skipif(asyncpg.__version__ < "0.30", reason="asyncpg has `connect` and `reset` since 0.30")


async def raises(*_args: Any, **_kwargs: Any) -> Any:
    raise ValueError("secret-word")


async def raises_of_network(*_args: Any) -> Any:
    raise ConnectionResetError("secret-word")


async def raises_of_asyncpg(*_args: Any) -> Any:
    raise asyncpg.InterfaceError("secret-word")


def raises_at_once() -> Any:
    raise OSError("secret-word")


async def fails_in_sql(conn: Any) -> None:
    await conn.execute("select * from secret_word")


async def another_object(*_args: Any, **_kwargs: Any) -> Any:
    return object()


async def fails_after_connect(*args: Any, **kwargs: Any) -> Any:
    conn = await asyncpg.connect(*args, **kwargs)
    try:
        await conn.execute("select * from secret_word")
    finally:
        await conn.close()


CASES = [
    ({"init": raises}, (USED, "init", "ValueError")),
    ({"init": raises_of_network}, (USED, "init", "ConnectionResetError")),
    ({"init": raises_of_asyncpg}, (USED, "init", "InterfaceError")),
    ({"init": fails_in_sql}, (USED, "init", "42P01")),
    ({"setup": raises}, (HANDED_OUT, "setup", "ValueError")),
    ({"password": raises_at_once}, (MADE, "password", "OSError")),
    ({"password": partial(int, "secret-word")}, (MADE, "password", "ValueError")),
    ({"password": raises}, (MADE, "password", "ValueError")),
    ({"no_such_option": 1}, (MADE, "connect", "TypeError")),
    ({"target_session_attrs": "none"}, (MADE, "connect", "ClientConfigurationError")),
    pytest.param({"connect": raises}, (MADE, "connect()", "ValueError"), marks=SINCE_0_30),
    pytest.param({"connect": another_object}, (MADE, "connect()", "InterfaceError"), marks=SINCE_0_30),
    pytest.param({"connect": fails_after_connect}, (USED, "connect()", "42P01"), marks=SINCE_0_30),
]


def the_record(signals: Signals) -> Record:
    (record,) = signals.logged("program_error")
    return record


@pytest.mark.parametrize(("options", "cause"), CASES)
def test_callback(
    signals: Signals, create: Callable[..., Any], options: dict[str, Any], cause: tuple[str, str, str]
) -> None:
    """The program gets its error; one record names the pool, the callback and the error; no outage, no refusal."""
    effect, callback, error_type = cause

    async def main() -> None:
        async with create(**options) as pool:
            for _ in range(2):
                with pytest.raises((ValueError, TypeError, OSError, asyncpg.InterfaceError, asyncpg.PostgresError)):
                    await backend(pool)
            stats = tracker_of(pool).stats()
            assert (stats.errors, stats.status) == (2, "ok")
            record = the_record(signals)
            assert record.record.getMessage().startswith(f"pool {tracker_of(pool).name}: {effect}: ")

    run(main())
    record = the_record(signals)
    assert record.attributes["otel_pgpool.callback"] == callback
    assert record.attributes["error.type"] == error_type
    text = record.record.getMessage()
    assert error_type in text
    assert callback == "connect" or f"the callback {callback} raised " in text
    assert not signals.logged("outage_started")
    assert not signals.logged("connect_refused")
    assert "secret" not in signals.everything().replace("secret_word does not exist", "").replace("secret_word", "")
    assert "secret-word" not in signals.everything()


def test_refusal_after_an_error_of_a_callback(signals: Signals, url: str, create: Callable[..., Any]) -> None:
    """The record about a callback does not keep back the one about a server that refuses."""

    async def main() -> None:
        async with create(init=raises) as pool:
            with pytest.raises(ValueError, match="secret"):
                await backend(pool)
            pool.set_connect_args(url, user="nobody_here")
            with pytest.raises(asyncpg.PostgresError):
                await backend(pool)

    run(main())
    assert the_record(signals).attributes["otel_pgpool.callback"] == "init"
    (refused,) = signals.logged("connect_refused")
    assert refused.attributes["error.type"] in ("28P01", "28000")


@pytest.mark.parametrize("way", ["by itself", pytest.param("by the program", marks=SINCE_0_30)])
def test_outage(signals: Signals, create: Callable[..., Any], way: str) -> None:
    """A server that cannot be reached is an outage, and no error of a callback that was called in vain."""

    async def main(port: int) -> None:
        place = {"host": "127.0.0.1", "port": port, "user": "postgres"}

        async def connects(*_args: Any, **kwargs: Any) -> Any:
            return await asyncpg.connect(**place, loop=kwargs["loop"])

        async with create(init=raises, **({} if way == "by itself" else {"connect": connects})) as pool:
            if way == "by itself":
                pool.set_connect_args(**place, password=str)
            with pytest.raises(OSError, match="Connect call failed"):
                await backend(pool)
            assert tracker_of(pool).stats().status == "unreachable"

    with refused_port() as port:
        run(main(port))
    assert signals.logged("outage_started")
    assert not signals.logged("program_error")


@pytest.mark.parametrize("callback", ["init", "setup"])
def test_connection_that_is_lost(
    signals: Signals, admin: connection, create: Callable[..., Any], callback: str
) -> None:
    """A callback whose connection is lost is not what failed."""

    async def lose(conn: Any) -> None:
        kill(admin, [conn.get_server_pid()])
        with suppress(asyncpg.PostgresError):
            await conn.execute("select 1")
        await conn.execute("select 1")

    async def main() -> None:
        async with create(**{callback: lose}) as pool:
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                await backend(pool)
            await until(lambda: pool.get_size() == 0)

    run(main())
    assert not signals.logged("program_error")


def test_cancelled(signals: Signals, create: Callable[..., Any]) -> None:
    """A callback that is cancelled is not what failed."""
    begun: list[Any] = []

    async def waits(conn: Any) -> None:
        begun.append(conn)
        await asyncio.sleep(60)

    async def main() -> None:
        async with create(init=waits) as pool:
            task = asyncio.create_task(backend(pool))
            await until(lambda: begun)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())
    assert not signals.logged("program_error")
    assert not signals.logged("outage_started")


@SINCE_0_30
def test_reset_that_raises(signals: Signals, create: Callable[..., Any]) -> None:
    """The record of the connection that is lost says that the reset failed, and with which error."""

    async def main() -> None:
        async with create(reset=raises) as pool:
            with pytest.raises(ValueError, match="secret"):
                await backend(pool)

    run(main())
    (lost,) = signals.logged("connection_lost")
    assert "reset_failed (ValueError)" in lost.record.getMessage()
    assert lost.attributes["error.type"] == "ValueError"
    assert "secret" not in signals.everything()


def test_setup_that_times_out(signals: Signals, create: Callable[..., Any]) -> None:
    """A timeout inside `setup` is an error of the program: nobody has waited for the pool."""

    async def times_out(_conn: Any) -> None:
        raise asyncio.TimeoutError

    async def main() -> None:
        async with create(setup=times_out) as pool:
            with pytest.raises(TIMEOUTS):
                await pool.acquire(timeout=30)
            stats = tracker_of(pool).stats()
            assert (stats.timeouts, stats.errors) == (0, 1)

    run(main())
    assert signals.checkout().attributes["otel_pgpool.outcome"] == "error"
    assert not signals.logged("timeout")
