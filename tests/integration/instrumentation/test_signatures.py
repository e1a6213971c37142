"""Instrumented classes look to a program as they do without the instrumentation."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg2.pool
import psycopg_pool
import pytest
import sqlalchemy

from tests.support.instrumentation import instrumented

if TYPE_CHECKING:
    from tests.support.telemetry import Signals

CLASSES = [
    asyncpg.Pool,
    psycopg2.pool.SimpleConnectionPool,
    psycopg2.pool.ThreadedConnectionPool,
    psycopg_pool.ConnectionPool,
    psycopg_pool.NullConnectionPool,
    psycopg_pool.AsyncConnectionPool,
    psycopg_pool.AsyncNullConnectionPool,
    sqlalchemy.Engine,
    sqlalchemy.QueuePool,
    sqlalchemy.NullPool,
    sqlalchemy.AsyncAdaptedQueuePool,
]


def appearance(owner: type) -> dict[str, tuple[Any, ...]]:
    """Return what frameworks ask about the methods of a class, by name."""
    return {
        name: (
            method.__name__,
            method.__doc__,
            str(inspect.signature(method)),
            inspect.iscoroutinefunction(method),
            inspect.isgeneratorfunction(method),
            inspect.isasyncgenfunction(method),
        )
        for name, method in inspect.getmembers(owner, callable)
        if inspect.isroutine(method) and not name.startswith("__")
    }


@pytest.mark.parametrize("owner", CLASSES, ids=lambda owner: f"{owner.__module__}.{owner.__name__}")
def test_methods_look_the_same(signals: Signals, owner: type) -> None:
    """Names, docstrings, signatures and kinds of methods stay, so that frameworks call and await them as before."""
    before = appearance(owner)
    with instrumented(signals):
        during = appearance(owner)
    assert during == before
