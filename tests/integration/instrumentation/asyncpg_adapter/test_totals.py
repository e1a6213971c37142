"""Totals of asyncpg's pools that are made anew under one name, as readers of deltas and of sums receive them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.asyncpg_pools import run, tracker_of
from tests.support.totals import CHECKOUTS, CREATED, DISCARDED, Readers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.telemetry import Signals


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_one_pool_after_the_other(
    signals: Signals, readers: Readers, instrumentation: None, create: Callable[..., Any], end: str
) -> None:
    """Each ends before it was told all of it; none of the totals is lost, and none goes down."""

    async def live(times: int) -> str:
        async with create() as pool:
            for _ in range(times):
                async with pool.acquire():
                    pass
            if times == 2:
                readers.all[0].ask()
            name = tracker_of(pool).name
            if end == "terminate":
                pool.terminate()
        return name

    names = {run(live(times)) for times in (1, 2, 3)}
    (name,) = names
    assert [readers.told(metric, name) for metric in (CHECKOUTS, CREATED, DISCARDED)] == [6, 3, 3]
