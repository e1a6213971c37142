"""Every name that telemetry uses. Dashboards and alerts depend on them; no other module contains one."""

from __future__ import annotations

from opentelemetry.semconv._incubating.attributes import db_attributes, thread_attributes
from opentelemetry.semconv._incubating.metrics import db_metrics
from opentelemetry.semconv.attributes import code_attributes, error_attributes, server_attributes
from opentelemetry.semconv.schemas import Schemas

SCOPE = "otel_pgpool"
SCHEMA_URL: str | None = getattr(getattr(Schemas, "V1_44_0", None), "value", None)

# Spans and their events

SPAN_CHECKOUT = "pool.checkout"
SPAN_WAIT = "pool.wait"
SPAN_CONNECT = "pool.connect"

EVENT_ACQUIRED = "pool.acquired"
EVENT_RETRY = "pool.retry"
EVENT_LONG_HOLD = "pool.long_hold"
EVENT_DATABASE_STATE = "pool.database_state"

# Attributes of the semantic conventions

ATTR_DB_SYSTEM_NAME = "db.system.name"
VALUE_POSTGRESQL = "postgresql"
ATTR_DB_NAMESPACE = db_attributes.DB_NAMESPACE
ATTR_POOL_NAME = db_attributes.DB_CLIENT_CONNECTION_POOL_NAME
ATTR_CONNECTION_STATE = db_attributes.DB_CLIENT_CONNECTION_STATE
VALUE_USED = db_attributes.DbClientConnectionStateValues.USED.value
VALUE_IDLE = db_attributes.DbClientConnectionStateValues.IDLE.value
ATTR_SERVER_ADDRESS = server_attributes.SERVER_ADDRESS
ATTR_SERVER_PORT = server_attributes.SERVER_PORT
ATTR_ERROR_TYPE = error_attributes.ERROR_TYPE
ATTR_THREAD_NAME = thread_attributes.THREAD_NAME
ATTR_CODE_FILE_PATH = code_attributes.CODE_FILE_PATH
ATTR_CODE_LINE_NUMBER = code_attributes.CODE_LINE_NUMBER
ATTR_CODE_FUNCTION_NAME = code_attributes.CODE_FUNCTION_NAME
ATTR_CODE_STACKTRACE = code_attributes.CODE_STACKTRACE

# Attributes of this package

ATTR_WAIT_TIME = "otel_pgpool.wait_time"
ATTR_HOLD_TIME = "otel_pgpool.hold_time"
ATTR_RETRIES = "otel_pgpool.retries"
ATTR_PATH = "otel_pgpool.path"
ATTR_LONG_HOLD = "otel_pgpool.long_hold"
ATTR_OUTCOME = "otel_pgpool.outcome"
ATTR_CONNECTION_ID = "otel_pgpool.connection.id"
ATTR_CONNECTION_PID = "otel_pgpool.connection.pid"
ATTR_CONNECTION_PIDS = "otel_pgpool.connection.pids"
ATTR_ATTEMPT = "otel_pgpool.attempt"
ATTR_DELAY = "otel_pgpool.delay"
ATTR_LONG_HOLD_THRESHOLD = "otel_pgpool.long_hold.threshold"
ATTR_HELD = "otel_pgpool.held"
ATTR_BLOCKER_HELD = "otel_pgpool.blocker.held"
ATTR_BLOCKER_PID = "otel_pgpool.blocker.connection.pid"
ATTR_BLOCKER_CHECKED_OUT_AT = "otel_pgpool.blocker.checked_out_at"
ATTR_BLOCKER_TRACE_ID = "otel_pgpool.blocker.trace_id"
ATTR_BLOCKER_COUNT = "otel_pgpool.blocker.count"
ATTR_TRANSACTION_STATUS = "otel_pgpool.transaction.status"
ATTR_CHECKED_OUT_AT = "otel_pgpool.checked_out_at"
ATTR_BLOCKS_INSIDE = "otel_pgpool.blocks_inside"
ATTR_EXPECTED_HOLD = "otel_pgpool.expected_hold"
ATTR_PROXY_WAIT = "otel_pgpool.proxy_wait"
ATTR_TASK_NAME = "otel_pgpool.task.name"
ATTR_REASON = "otel_pgpool.reason"
ATTR_CALLER = "otel_pgpool.caller"

# Attributes of the database's side of a hold. Those of PostgreSQL are named as the Collector's receiver names them.

ATTR_STATE = "postgresql.state"
ATTR_WAIT_EVENT_TYPE = "postgresql.wait_event_type"
ATTR_WAIT_EVENT = "postgresql.wait_event"
ATTR_TRANSACTION_AGE = "otel_pgpool.transaction.age"
ATTR_QUERY_AGE = "otel_pgpool.query.age"
ATTR_BLOCKING_PIDS = "postgresql.blocking.pids"
ATTR_BLOCKING_LOCK_MODE = "postgresql.blocking.lock.mode"
ATTR_BLOCKING_LOCK_RELATION = "postgresql.blocking.lock.relation"
ATTR_BLOCKING_TRACES = "otel_pgpool.blocking.traces"
ATTR_BLOCKING_CHECKED_OUT_AT = "otel_pgpool.blocking.checked_out_at"
ATTR_BLOCKING_APPLICATIONS = "otel_pgpool.blocking.applications"
ATTR_BLOCKING_STATES = "otel_pgpool.blocking.states"
ATTR_BLOCKING_ROOT_PID = "otel_pgpool.blocking.root.pid"
ATTR_BLOCKING_ROOT_TRACE = "otel_pgpool.blocking.root.trace"
ATTR_BLOCKING_ROOT_CHECKED_OUT_AT = "otel_pgpool.blocking.root.checked_out_at"
ATTR_BLOCKING_ROOT_APPLICATION = "otel_pgpool.blocking.root.application"
ATTR_BLOCKING_ROOT_STATE = "otel_pgpool.blocking.root.state"
ATTR_RELATION = "otel_pgpool.relation"
VALUE_BLOCKED_BY = "blocked_by"

DIGITS = 6
"""Decimal digits of a duration in seconds: clocks are not exact beyond microseconds."""

# Metrics of the semantic conventions

METRIC_COUNT = db_metrics.DB_CLIENT_CONNECTION_COUNT
METRIC_MAX = db_metrics.DB_CLIENT_CONNECTION_MAX
METRIC_IDLE_MIN = db_metrics.DB_CLIENT_CONNECTION_IDLE_MIN
METRIC_IDLE_MAX = db_metrics.DB_CLIENT_CONNECTION_IDLE_MAX
METRIC_PENDING_REQUESTS = db_metrics.DB_CLIENT_CONNECTION_PENDING_REQUESTS
METRIC_TIMEOUTS = db_metrics.DB_CLIENT_CONNECTION_TIMEOUTS
METRIC_WAIT_TIME = db_metrics.DB_CLIENT_CONNECTION_WAIT_TIME
METRIC_USE_TIME = db_metrics.DB_CLIENT_CONNECTION_USE_TIME
METRIC_CREATE_TIME = db_metrics.DB_CLIENT_CONNECTION_CREATE_TIME

# Metrics of this package

METRIC_UTILIZATION = "otel_pgpool.utilization"
METRIC_OLDEST_HOLD = "otel_pgpool.oldest_hold"
METRIC_RETRIES = "otel_pgpool.retries"
METRIC_CHECKOUTS = "otel_pgpool.checkouts"
METRIC_LONG_HOLDS = "otel_pgpool.long_holds"
METRIC_CREATED = "otel_pgpool.connections.created"
METRIC_DISCARDED = "otel_pgpool.connections.discarded"
METRIC_CONNECT_FAILURES = "otel_pgpool.connect_failures"
METRIC_HELD = "otel_pgpool.connections.held"

# Attributes of log records, some of which share their name with a metric

ATTR_SIZE = "otel_pgpool.size"
ATTR_USED = "otel_pgpool.used"
ATTR_IDLE = "otel_pgpool.idle"
ATTR_CONNECTING = "otel_pgpool.connecting"
ATTR_WAITING = "otel_pgpool.waiting"
ATTR_MAX = "otel_pgpool.max"
ATTR_UTILIZATION = METRIC_UTILIZATION
ATTR_OLDEST_HOLD = METRIC_OLDEST_HOLD
ATTR_HOLDERS = "otel_pgpool.holders"
ATTR_LEFT_OUT = "otel_pgpool.left_out"
ATTR_ATTEMPTS = "otel_pgpool.attempts"
ATTR_DURATION = "otel_pgpool.duration"
ATTR_CONNECTIONS = "otel_pgpool.connections"
ATTR_CALLBACK = "otel_pgpool.callback"
