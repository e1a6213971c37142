"""Every name that telemetry uses. Dashboards and alerts are built on them; none is spelled anywhere else."""

from __future__ import annotations

from opentelemetry.semconv._incubating.attributes import code_attributes, db_attributes, thread_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.semconv.schemas import Schemas

SCOPE = "otel_pgpool"
SCHEMA_URL: str | None = getattr(getattr(Schemas, "V1_44_0", None), "value", None)

# Spans and their events

CHECKOUT = "pool.checkout"
WAIT = "pool.wait"
CONNECT = "pool.connect"

ACQUIRED = "pool.acquired"
RETRY = "pool.retry"
LONG_HOLD_EVENT = "pool.long_hold"

# Attributes of the semantic conventions

DB_SYSTEM_NAME = "db.system.name"
POSTGRESQL = "postgresql"
DB_NAMESPACE = db_attributes.DB_NAMESPACE
POOL_NAME = db_attributes.DB_CLIENT_CONNECTION_POOL_NAME
CONNECTION_STATE = db_attributes.DB_CLIENT_CONNECTION_STATE
SERVER_ADDRESS = server_attributes.SERVER_ADDRESS
SERVER_PORT = server_attributes.SERVER_PORT
ERROR_TYPE = error_attributes.ERROR_TYPE
THREAD_NAME = thread_attributes.THREAD_NAME
CODE_STACKTRACE = code_attributes.CODE_STACKTRACE

# Attributes of this package

WAIT_TIME = "otel_pgpool.wait_time"
HOLD_TIME = "otel_pgpool.hold_time"
RETRIES = "otel_pgpool.retries"
PATH = "otel_pgpool.path"
LONG_HOLD = "otel_pgpool.long_hold"
OUTCOME = "otel_pgpool.outcome"
CONNECTION_ID = "otel_pgpool.connection.id"
CONNECTION_PID = "otel_pgpool.connection.pid"
ATTEMPT = "otel_pgpool.attempt"
DELAY = "otel_pgpool.delay"
THRESHOLD = "otel_pgpool.long_hold.threshold"
HELD = "otel_pgpool.held"
BLOCKER_HELD = "otel_pgpool.blocker.held"
BLOCKER_PID = "otel_pgpool.blocker.connection.pid"
BLOCKER_CHECKED_OUT_AT = "otel_pgpool.blocker.checked_out_at"
BLOCKER_TRACE_ID = "otel_pgpool.blocker.trace_id"
BLOCKER_COUNT = "otel_pgpool.blocker.count"
TRANSACTION_STATUS = "otel_pgpool.transaction.status"
CHECKED_OUT_AT = "otel_pgpool.checked_out_at"
REASON = "otel_pgpool.reason"

DIGITS = 6
"""Decimal digits of a duration in seconds: clocks are not exact beyond microseconds."""

# Metrics of the semantic conventions

COUNT = db_metrics.DB_CLIENT_CONNECTION_COUNT
MAX = db_metrics.DB_CLIENT_CONNECTION_MAX
IDLE_MIN = db_metrics.DB_CLIENT_CONNECTION_IDLE_MIN
IDLE_MAX = db_metrics.DB_CLIENT_CONNECTION_IDLE_MAX
PENDING_REQUESTS = db_metrics.DB_CLIENT_CONNECTION_PENDING_REQUESTS
TIMEOUTS = db_metrics.DB_CLIENT_CONNECTION_TIMEOUTS
WAIT_TIME_METRIC = db_metrics.DB_CLIENT_CONNECTION_WAIT_TIME
USE_TIME_METRIC = db_metrics.DB_CLIENT_CONNECTION_USE_TIME
CREATE_TIME_METRIC = db_metrics.DB_CLIENT_CONNECTION_CREATE_TIME

# Metrics of this package; two share their name with an attribute

UTILIZATION = "otel_pgpool.utilization"
OLDEST_HOLD = "otel_pgpool.oldest_hold"
CHECKOUTS = "otel_pgpool.checkouts"
LONG_HOLDS = "otel_pgpool.long_holds"
CREATED = "otel_pgpool.connections.created"
DISCARDED = "otel_pgpool.connections.discarded"

# Log records

EVENT = "otel_pgpool.event"
SIZE = "otel_pgpool.size"
USED = "otel_pgpool.used"
IDLE = "otel_pgpool.idle"
CONNECTING = "otel_pgpool.connecting"
WAITING = "otel_pgpool.waiting"
MAXIMUM = "otel_pgpool.max"
HOLDERS = "otel_pgpool.holders"
LEFT_OUT = "otel_pgpool.left_out"
ATTEMPTS = "otel_pgpool.attempts"
DURATION = "otel_pgpool.duration"
CONNECTIONS = "otel_pgpool.connections"
