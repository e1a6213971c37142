"""All rows of the table, in its order."""

from __future__ import annotations

from benchmarks import checkout, churn, collection, contention, killed, spike, traced

ROWS = (
    *checkout.ROWS,
    *traced.ROWS,
    *contention.ROWS,
    *churn.ROWS,
    *spike.ROWS,
    *killed.ROWS,
    *collection.ROWS,
)
