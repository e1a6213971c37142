"""The properties of every monitoring connection, whatever its driver; independent of any driver."""

from __future__ import annotations

APPLICATION_NAME = "otel_pgpool monitor"

TIME_LIMIT = 2.0
"""Seconds for a connect to each host, and for a query."""

READ_ONLY = "SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = 1000; "
"""The beginning of each query. It sets nothing for the session, which a proxy may share with other clients."""
