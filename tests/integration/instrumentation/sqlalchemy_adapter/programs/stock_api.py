"""A web API over a stock: an order takes a piece out of it, and a reader gets the pieces one by one."""

import os
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
engine = create_async_engine(url, pool_size=2, max_overflow=0, pool_timeout=0.5)
sessions = async_sessionmaker(engine)
app = FastAPI()


async def take(session: AsyncSession, item: int) -> None:
    await session.execute(text("update stock set pieces = pieces - 1 where item = :item"), {"item": item})


@app.post("/orders/{item}")
async def order(item: int) -> dict[str, int]:
    async with sessions() as session, session.begin():
        backend = (await session.execute(text("select pg_backend_pid()"))).scalar_one()
        await take(session, item)
        return {"worker": os.getpid(), "backend": backend}


@app.get("/stock")
async def stock() -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        async with engine.connect() as conn:
            for (count,) in await conn.execute(text("select pieces from stock order by item")):
                yield f"{count}\n"

    return StreamingResponse(pieces())


@app.exception_handler(PoolTimeout)
async def refuse(_request: Request, error: PoolTimeout) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=503)
