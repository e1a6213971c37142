"""Every metric, with its kind, its unit and the bounds of its buckets."""

from __future__ import annotations

POOL = "db.client.connection.pool.name"
LEVEL, TOTAL, GAUGE, HISTOGRAM = "level", "total", "gauge", "histogram"
METRICS = {
    "db.client.connection.count": (LEVEL, "{connection}"),
    "db.client.connection.max": (LEVEL, "{connection}"),
    "db.client.connection.idle.min": (LEVEL, "{connection}"),
    "db.client.connection.idle.max": (LEVEL, "{connection}"),
    "db.client.connection.pending_requests": (LEVEL, "{request}"),
    "db.client.connection.timeouts": (TOTAL, "{timeout}"),
    "db.client.connection.wait_time": (HISTOGRAM, "s"),
    "db.client.connection.use_time": (HISTOGRAM, "s"),
    "db.client.connection.create_time": (HISTOGRAM, "s"),
    "otel_pgpool.utilization": (GAUGE, "1"),
    "otel_pgpool.oldest_hold": (GAUGE, "s"),
    "otel_pgpool.checkouts": (TOTAL, "{checkout}"),
    "otel_pgpool.retries": (TOTAL, "{retry}"),
    "otel_pgpool.long_holds": (TOTAL, "{hold}"),
    "otel_pgpool.connections.created": (TOTAL, "{connection}"),
    "otel_pgpool.connections.discarded": (TOTAL, "{connection}"),
    "otel_pgpool.connect_failures": (TOTAL, "{connection}"),
}
FAILURES = "otel_pgpool.connect_failures"
"""The counter that has no value before the first failure."""
OBSERVED = [name for name, (kind, _unit) in METRICS.items() if kind != HISTOGRAM and name != FAILURES]
LEVELS = [name for name, (kind, _unit) in METRICS.items() if kind in {LEVEL, GAUGE}]
TOTALS = [name for name, (kind, _unit) in METRICS.items() if kind == TOTAL and name != FAILURES]
WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30)
BOUNDS = {"wait_time": WAIT_BOUNDS, "create_time": WAIT_BOUNDS, "use_time": (*WAIT_BOUNDS, 60, 300)}
