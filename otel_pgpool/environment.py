"""The environment variables that this package reads. libpq, the SDK and its exporters read others of their own."""

from __future__ import annotations

from typing import NamedTuple


class Variable(NamedTuple):
    """An environment variable."""

    name: str
    option: str
    """The option whose default the variable is, or the function that reads the variable."""
    default: str
    """The value that an unset or empty variable stands for; empty for none."""
    description: str


TIMEOUT = Variable(
    "OTEL_PGPOOL_TIMEOUT", "timeout", "", "default of `timeout`, in seconds; not set: `DB_CONNECTION_TIMEOUT`"
)
FALLBACK_TIMEOUT = Variable("DB_CONNECTION_TIMEOUT", "timeout", "30", "the same, if `OTEL_PGPOOL_TIMEOUT` is not set")
LONG_HOLD = Variable("OTEL_PGPOOL_LONG_HOLD", "long_hold", "1.0", "default of `long_hold`, in seconds; 0: never")
SPANS = Variable(
    "OTEL_PGPOOL_SPANS",
    "spans",
    "always",
    "`always`; `parent`: only inside a recording span; `slow`; `off`. Metrics and logs are not affected",
)
SLOW = Variable(
    "OTEL_PGPOOL_SLOW",
    "slow",
    "0.1",
    "with `slow`: a checkout leaves a span only if it waited or held for this many seconds, failed, had a retry, "
    "became a long hold or was reclaimed",
)
HISTOGRAMS = Variable(
    "OTEL_PGPOOL_HISTOGRAMS",
    "histograms",
    "wait_time,use_time,create_time",
    "the histograms to record; `none` for none",
)
CALLER = Variable(
    "OTEL_PGPOOL_CALLER",
    "caller",
    "0",
    "`1`: waits, holds and the connections in use are reported by the caller; `0`: they are not",
)
APPLICATION_NAME = Variable(
    "OTEL_PGPOOL_APPLICATION_NAME",
    "ConnectionPool",
    "off",
    "`trace`: a sampled checkout sets `application_name` on its connection to the `traceparent` of its span, and the "
    "release restores it; `off`",
)
STACK_SKIP = Variable(
    "OTEL_PGPOOL_STACK_SKIP",
    "stack_skip",
    "",
    "comma-separated packages of servers and frameworks that a long hold's stack leaves out, in addition to the known "
    "ones",
)
WAIT_TIMEOUT = Variable(
    "OTEL_PGPOOL_WAIT_TIMEOUT",
    "wait_timeout",
    "",
    "longest wait in seconds for a connection of an exhausted, instrumented `ThreadedConnectionPool`; not set: it "
    "raises at once",
)
POOLS = Variable(
    "OTEL_PGPOOL_POOLS",
    "pools",
    "",
    "comma-separated kinds of pools to instrument: `psycopg2`, `psycopg_pool`, `sqlalchemy`, `asyncpg`; not set: all",
)
FORK_REPAIR = Variable(
    "OTEL_PGPOOL_FORK_REPAIR",
    "fork_repair",
    "0",
    "`1`: in a forked child, an instrumented pool of `psycopg_pool` or `asyncpg` begins anew; `0`: its use "
    "there is only reported",
)

DATABASE_STATE = Variable(
    "OTEL_PGPOOL_DATABASE_STATE",
    "ConnectionPool",
    "on",
    "whether the server is asked about long holds over a connection of its own: `on`: for those of `ConnectionPool`; "
    "`all`: for those of instrumented pools too; `off`: never",
)

DATABASE_URL = Variable(
    "DATABASE_URL",
    "ConnectionPool.from_env",
    "",
    "`from_env()`: the database, as a URL or in libpq's form; not set: libpq's own variables (`PGHOST`, ...)",
)
MINCONN = Variable("OTEL_PGPOOL_MINCONN", "minconn", "1", "`from_env()`: `minconn`")
MAXCONN = Variable("OTEL_PGPOOL_MAXCONN", "maxconn", "10", "`from_env()`: `maxconn`")
NAME = Variable("OTEL_PGPOOL_NAME", "name", "", "`from_env()`: `name`")
MAX_WAITING = Variable("OTEL_PGPOOL_MAX_WAITING", "max_waiting", "", "`from_env()`: `max_waiting`")
MAX_ATTEMPTS = Variable("OTEL_PGPOOL_MAX_ATTEMPTS", "max_attempts", "", "`from_env()`: `max_attempts`")
MAX_LIFETIME = Variable(
    "OTEL_PGPOOL_MAX_LIFETIME", "max_lifetime", "", "`from_env()`: `max_lifetime`, in seconds; `inf`: no limit"
)
MAX_IDLE = Variable("OTEL_PGPOOL_MAX_IDLE", "max_idle", "", "`from_env()`: `max_idle`, in seconds; `inf`: never")
KEEPALIVE = Variable("OTEL_PGPOOL_KEEPALIVE", "keepalive", "", "`from_env()`: `keepalive`, in seconds; `inf`: never")
RECONNECT_TIMEOUT = Variable(
    "OTEL_PGPOOL_RECONNECT_TIMEOUT", "reconnect_timeout", "", "`from_env()`: `reconnect_timeout`, in seconds"
)

SDK_DISABLED = Variable("OTEL_SDK_DISABLED", "configure", "false", "`true`: `configure()` exports nothing")
EXPORTERS = {
    signal: Variable(
        f"OTEL_{signal.upper()}_EXPORTER",
        "configure",
        "otlp",
        f"comma-separated exporters of `configure()` for {signal}: `otlp`, `console`, "
        f"{'`prometheus` ' if signal == 'metrics' else ''}and others that are installed; `none` for none",
    )
    for signal in ("traces", "metrics", "logs")
}
"""Variables of the three signals, by signal."""

PROTOCOL = Variable(
    "OTEL_EXPORTER_OTLP_PROTOCOL", "configure", "grpc", "the protocol of `configure()`: `grpc` or `http/protobuf`"
)
PROTOCOLS = {
    signal: Variable(
        f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL",
        "configure",
        "",
        f"the same for {signal} alone; takes precedence",
    )
    for signal in EXPORTERS
}
"""Variables of the three signals, by signal."""

CONFIG_FILE = "OTEL_CONFIG_FILE"
"""The variable that names a file of OpenTelemetry's declarative configuration, which the SDK reads."""

ENVIRONMENT = (
    TIMEOUT,
    FALLBACK_TIMEOUT,
    LONG_HOLD,
    SPANS,
    SLOW,
    HISTOGRAMS,
    CALLER,
    APPLICATION_NAME,
    STACK_SKIP,
    WAIT_TIMEOUT,
    POOLS,
    FORK_REPAIR,
    DATABASE_STATE,
    DATABASE_URL,
    MINCONN,
    MAXCONN,
    NAME,
    MAX_WAITING,
    MAX_ATTEMPTS,
    MAX_LIFETIME,
    MAX_IDLE,
    KEEPALIVE,
    RECONNECT_TIMEOUT,
    SDK_DISABLED,
    *EXPORTERS.values(),
    PROTOCOL,
    *PROTOCOLS.values(),
)
"""All of the above, in the order of the documentation."""
