"""Pools of asyncpg on the shared server."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.support.urls import url_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def url(dsn: str) -> str:
    return url_of(dsn)


@pytest.fixture
def create(url: str) -> Callable[..., Any]:
    """Provide a function that makes a pool of two connections at most, none of which is open."""

    def create(**options: Any) -> Any:
        return asyncpg.create_pool(url, **{"min_size": 0, "max_size": 2, **options})

    return create


@pytest.fixture(autouse=True)
def no_pool_left() -> Iterator[None]:
    """Collect a test's pools, which would be found by the next instrumentation."""
    yield
    gc.collect()
