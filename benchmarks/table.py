"""All rows of the table, in order."""

from __future__ import annotations

from benchmarks import (
    application_name,
    checkout,
    churn,
    collection,
    contention,
    hooked,
    hooked_asyncpg,
    hooked_growth,
    hooked_psycopg_async,
    hooked_sqlalchemy_tasks,
    hooked_traced,
    killed,
    spike,
    traced,
)

ROWS = (
    *checkout.ROWS,
    *traced.ROWS,
    *application_name.ROWS,
    *hooked.ROWS,
    *hooked_traced.ROWS,
    *hooked_asyncpg.ROWS,
    *hooked_psycopg_async.ROWS,
    *hooked_sqlalchemy_tasks.ROWS,
    *contention.ROWS,
    *churn.ROWS,
    *spike.ROWS,
    *killed.ROWS,
    *collection.ROWS,
    *hooked_growth.ROWS,
)
