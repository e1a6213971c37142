"""200 tasks share five connections; a third of them are cancelled while they wait."""

import asyncio
import json
import os
from collections.abc import Callable

from psycopg_pool import AsyncConnectionPool

TASKS = 200
CONNECTIONS = 5


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def main() -> None:
    async with AsyncConnectionPool(
        os.environ["DATABASE_URL"], min_size=CONNECTIONS, max_size=CONNECTIONS, name="crowd"
    ) as pool:
        await pool.wait()
        released = asyncio.Event()

        async def hold() -> None:
            async with pool.connection() as conn:
                await conn.execute("select 1")
                await released.wait()

        async def work() -> None:
            async with pool.connection() as conn:
                await conn.execute("select pg_sleep(0.001)")

        holders = [asyncio.create_task(hold()) for _ in range(CONNECTIONS)]
        await until(lambda: pool.get_stats()["pool_available"] == 0)
        workers = [asyncio.create_task(work()) for _ in range(TASKS - CONNECTIONS)]
        await until(lambda: pool.get_stats().get("requests_waiting") == len(workers))
        for each in workers[::3]:
            each.cancel()
        cancelled = await asyncio.gather(*workers[::3], return_exceptions=True)
        released.set()
        await asyncio.gather(*holders)
        results = await asyncio.gather(*workers, return_exceptions=True)
        await until(lambda: pool.get_stats()["pool_available"] == CONNECTIONS)
        async with pool.connection() as conn:
            await conn.execute("select 1")
        print(
            json.dumps(
                {
                    "cancelled": sum(isinstance(each, asyncio.CancelledError) for each in cancelled),
                    "served": sum(each is None for each in results) + len(holders),
                    "stats": pool.get_stats(),
                }
            )
        )


asyncio.run(main())
