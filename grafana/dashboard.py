"""Grafana's dashboard as code, which ``make dashboard`` writes.

``grafana/dashboards/otel-pgpool.json`` has links into Jaeger, ``grafana/lgtm/otel-pgpool.json`` into Tempo.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard, QueryVariable, Row, TextBoxVariable
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, VariableOption, VariableRefresh, VariableSort

from grafana.panels import PROMETHEUS, graph, heat_map, verdict
from grafana.queries import (
    EACH,
    NAME,
    NAME_AND_INSTANCE,
    POOL,
    increase,
    joined,
    level,
    occurrences,
    quantile,
    quantiles,
    query,
    rate,
    rate_of_sum,
    search,
    slow_query,
)
from grafana.tempo import in_tempo

FILE = Path(__file__).parent / "dashboards" / "otel-pgpool.json"
TEMPO_FILE = Path(__file__).parent / "lgtm" / "otel-pgpool.json"

QUEUED = search("Jaeger: checkouts that queued", "otel_pgpool.path=queued")
TIMED_OUT = search("Jaeger: checkouts that timed out", "otel_pgpool.outcome=timeout")
HELD_LONG = search("Jaeger: long holds", "otel_pgpool.long_hold=true")
BLOCKED = search("Jaeger: holds that waited for a lock", "postgresql.wait_event_type=Lock")
STATE = ("postgresql_state", "postgresql_wait_event_type")
NOT_CONNECTED = search("Jaeger: failed connects", "error=true", "pool.connect")
FAILED = search("Jaeger: checkouts that failed", "error=true")
NEW = search("Jaeger: checkouts that waited for a new connection", "otel_pgpool.path=new")

VERDICTS = (
    verdict(
        "Utilization now",
        "The fullest pool: connections in use / max. From 95 % on, whoever asks for a connection waits. Low while "
        "callers suffer: the pool is not the problem, or it cannot connect. A pool without a limit has none. Holds "
        "that are long by design (expected_hold) do not count.",
        "percentunit",
        level("otel_pgpool_utilization_ratio"),
        QUEUED,
        steps=(0.8, 0.95),
        none="no limit",
        width=4,
    ),
    verdict(
        "Backlog",
        "Callers that wait for a connection at this moment, in the pool where most do. With the verdicts to the right "
        "green, more is asked of the pool than it can serve: shed load, then size the pool. Else look there first: "
        "the queue is what a leak, a connect failure or slow use leads to.",
        "short",
        level("db_client_connection_pending_requests"),
        QUEUED,
        TIMED_OUT,
        steps=(1, 10),
    ),
    verdict(
        "Leak",
        "The oldest hold that is still out. If it grows by a second each second, its connection does not come back: "
        "the log record long_hold has the line that took it. A hold that never ends has no span yet; those that have "
        "ended are in Jaeger. Restart the process that leaks.",
        "s",
        level("otel_pgpool_oldest_hold_seconds"),
        HELD_LONG,
        steps=(10, 60),
    ),
    verdict(
        "Connect failure",
        "Attempts to connect that failed within five minutes. PostgreSQL cannot be reached or refuses: the log record "
        "outage_started and the failed spans have its reason. The pool goes on trying; nothing has to be restarted "
        "when PostgreSQL is back.",
        "short",
        increase("otel_pgpool_connect_failures_total"),
        NOT_CONNECTED,
        steps=(1, 1),
    ),
    verdict(
        "Slow use",
        "95 % of the holds of five minutes were shorter. Orange or red and higher than it was yesterday: callers keep "
        "their connections for longer, because of slow queries, locks, or other work inside the block. The query "
        "spans inside a long hold say which; end one with pg_terminate_backend(pid), of a lock conflict the one that "
        "blocks. none: no hold has ended; see the leak.",
        "s",
        f"{quantile(0.95, 'db_client_connection_use_time_seconds', by=EACH, window='5m')} >= 0",  # NaN if none ended
        HELD_LONG,
        steps=(0.5, 1),
    ),
)

CAPACITY = (
    graph(
        "Utilization",
        "Connections in use / max, for each pool and instance. One instance alone that is high: often a leak. All of "
        "them: more traffic, or slower holds.",
        "percentunit",
        [query(level("otel_pgpool_utilization_ratio"), NAME_AND_INSTANCE)],
        QUEUED,
        steps=(0.8, 0.95),
        width=12,
    ),
    graph(
        "Checkouts",
        "Checkouts served in a second, by path: idle, at once; queued, after a wait for one that came back; new, "
        "after a wait for a new connection. Many of the last two: the pool, or its minconn, is small for this "
        "traffic.",
        "reqps",
        [slow_query(rate("otel_pgpool_checkouts_total", by="otel_pgpool_path"), "{{otel_pgpool_path}}")],
        width=12,
    ),
    graph(
        "Queue length",
        "Callers that wait for a connection. Rises and falls with the traffic: a backlog. Rises and stays: a leak, or "
        "no connection can be made.",
        "short",
        [query(level("db_client_connection_pending_requests"), NAME_AND_INSTANCE)],
        QUEUED,
        width=12,
    ),
    graph(
        "Used, idle, max",
        "All chosen pools together. Used and idle together below max, while callers queue: connections cannot be made.",
        "short",
        [
            query(
                f"sum by (db_client_connection_state) ({level('db_client_connection_count')})",
                "{{db_client_connection_state}}",
            ),
            query(f"sum({level('db_client_connection_max')})", "max"),
        ],
        width=12,
    ),
)

WAITING = (
    heat_map(
        "Wait time",
        "How long checkouts waited, failed ones included. Open an exemplar: its trace has a pool.wait, which links to "
        "the checkouts that stood in the way.",
        "db_client_connection_wait_time_seconds",
    ),
    graph(
        "Wait time, p50 / p95 / p99",
        "From the request to the hand-over, or to the failure. Below a millisecond in a pool that is large enough.",
        "s",
        quantiles("db_client_connection_wait_time_seconds"),
    ),
    graph(
        "Timeouts",
        "Callers that got no connection in time, within five minutes. Each has seen PoolTimeout; the log record "
        "timeout names the longest holders.",
        "short",
        [query(increase("db_client_connection_timeouts_total"), NAME_AND_INSTANCE)],
        TIMED_OUT,
    ),
)

HOLDING = (
    heat_map(
        "Hold time",
        "How long connections were out, of holds that have ended. Open an exemplar in the upper rows: its trace shows "
        "what the holder did, query by query.",
        "db_client_connection_use_time_seconds",
    ),
    graph(
        "Hold time, p50 / p95 / p99",
        "From the hand-over to the return. Risen against yesterday: slow use. A leak is not in it, as it does not end.",
        "s",
        quantiles("db_client_connection_use_time_seconds"),
    ),
    graph(
        "Oldest hold",
        "The age of the oldest hold that is still out, 0 if none. A line that rises with the clock is a leak, or a "
        "very long query.",
        "s",
        [query(level("otel_pgpool_oldest_hold_seconds"), NAME_AND_INSTANCE)],
        HELD_LONG,
        steps=(10, 60),
    ),
    graph(
        "Long holds",
        "Holds that passed the pool's long_hold, within five minutes, whether they have ended or not. Each has left a "
        "log record, which has the line that took the connection.",
        "short",
        [query(increase("otel_pgpool_long_holds_total"), NAME_AND_INSTANCE)],
        HELD_LONG,
        width=12,
    ),
    graph(
        "Why are long holds long?",
        "What PostgreSQL said of the sessions of long holds within five minutes, by state and by what they wait for. "
        "active, Lock: another session blocks them; the span links to it, and the log record database_state names it. "
        "active, alone or with anything else: a slow statement. idle in transaction: the program does something else, "
        "and keeps its locks meanwhile. idle: it only holds the connection. A hold counts again each time its age has "
        "doubled. "
        "The Collector counts the answers, from exported log records. Without these, or with another Collector, the "
        "panel is empty, but the programs' own logs have the records: see If the panel is empty in docs/operations.md.",
        "short",
        [
            query(
                joined(
                    occurrences("otel_pgpool_database_states_total", by=f"job, {POOL}, {', '.join(STATE)}"),
                    "answer",
                    *STATE,
                ),
                f"{{{{answer}}}} · {NAME}",
            )
        ],
        HELD_LONG,
        BLOCKED,
        width=12,
    ),
    graph(
        "Needed connections",
        "The mean number in use, by Little's law: rate of checkouts times mean hold. A pool whose max is not well "
        "above it in the busiest minutes makes callers wait; see Sizing a pool in docs/operations.md. Of holds that "
        "have ended: a leak is not in it, and it is 0 when nothing else comes back.",
        "short",
        [slow_query(rate_of_sum("db_client_connection_use_time_seconds"), NAME_AND_INSTANCE)],
        width=12,
    ),
    graph(
        "Connections by caller",
        "Who has the connections that are out: requests and jobs by their entry span, other code by its file and "
        "function. One caller above all others: its holds are long, or it is called often; the wait and hold times "
        "have the label too. Only of pools with OTEL_PGPOOL_CALLER=1.",
        "short",
        [
            query(
                f"sum by (job, {POOL}, otel_pgpool_caller) ({level('otel_pgpool_connections_held')}) > 0",
                f"{{{{otel_pgpool_caller}}}} · {NAME}",
            )
        ],
        HELD_LONG,
        width=12,
    ),
)

CONNECTING = (
    graph(
        "Connections created",
        "New physical connections in a second. Steadily above zero: churn; the panel beside has the reasons.",
        "cps",
        [slow_query(rate("otel_pgpool_connections_created_total"), NAME_AND_INSTANCE)],
        NEW,
    ),
    graph(
        "Connections discarded",
        "Connections closed within five minutes, by reason. idle: minconn is too low, or max_idle too short; expired: "
        "max_lifetime; broken: the server, or something between, cut them; reset_failed, check_failed: the program's "
        "own reset and check; returned_closed: the program closes them; evict_on: the errors that the pool's option "
        "names.",
        "short",
        [
            query(
                increase("otel_pgpool_connections_discarded_total", by="otel_pgpool_reason"),
                "{{otel_pgpool_reason}}",
            )
        ],
    ),
    graph(
        "Connect failures",
        "Attempts to connect that failed, within five minutes, by error. The log record outage_started has libpq's "
        "reason.",
        "short",
        [
            query(
                increase("otel_pgpool_connect_failures_total", by=f"{EACH}, error_type"),
                f"{{{{error_type}}}} · {NAME_AND_INSTANCE}",
            )
        ],
        NOT_CONNECTED,
    ),
    graph(
        "Create time, p50 / p95 / p99",
        "How long attempts to connect took, failed ones included. Risen: the server, its name resolution or its "
        "authentication is slow, or the server is short of processes.",
        "s",
        quantiles("db_client_connection_create_time_seconds"),
        width=12,
    ),
    graph(
        "Retries",
        "Failed attempts of checkouts within five minutes: dead connections that were replaced, and "
        "connects that were tried again. Where another attempt got through in time, callers saw a wait and no error; "
        "in an outage they time out all the same.",
        "short",
        [query(increase("otel_pgpool_retries_total"), NAME_AND_INSTANCE)],
        FAILED,
        width=12,
    ),
)

OPEN = "sum(last_over_time(db_client_connection_count[90s]))"
MOST = "sum(last_over_time(postgresql_connection_max[90s]))"
FLEET = (
    graph(
        "Fleet against max_connections",
        "All pools of all services, whatever is chosen above: connections that are open, those that there may be if "
        "every pool fills up, and the server's max_connections, as the Collector's postgresql receiver reports it. "
        "What may be above max_connections: one day some will get FATAL: sorry, too many clients already.",
        "short",
        [
            query(OPEN, "open"),
            query("sum(last_over_time(db_client_connection_max[90s]))", "may be open"),
            query(MOST, "max_connections"),
        ],
        width=12,
    ),
    graph(
        "Share of max_connections",
        "Open connections of all pools / max_connections. Administrators, backups and others need the rest.",
        "percentunit",
        [query(f"{OPEN} / {MOST}", "fleet")],
        width=4,
        steps=(0.8, 0.9),
    ),
    graph(
        "Open connections by service",
        "Who has them. Where one service has grown: its processes, or its maxconn?",
        "short",
        [query(f"sum by (job, {POOL}) (last_over_time(db_client_connection_count[90s]))", NAME)],
    ),
)

ROWS = (
    ("Is it the pool? Backlog, leak, connect failure or slow use", VERDICTS),
    ("Capacity", CAPACITY),
    ("Waiting", WAITING),
    ("Holding", HOLDING),
    ("Connecting", CONNECTING),
    ("Fleet", FLEET),
)


def variable(name: str, label: str, values: str) -> QueryVariable:
    """One, several or all of a label's values."""
    return (
        QueryVariable(name)
        .label(label)
        .query(values)
        .datasource(PROMETHEUS)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def jaeger() -> TextBoxVariable:
    """Return the variable with Jaeger's address for a browser.

    A viewer may not open Explore, where a data source would show its traces.
    """
    address = "http://127.0.0.1:16686"
    chosen = VariableOption(selected=True, text=address, value=address)
    return TextBoxVariable("jaeger").label("Jaeger").default_value(address).current(chosen)


def build() -> str:
    """Return the dashboard as JSON."""
    dashboard = (
        Dashboard("otel_pgpool")
        .uid("otel-pgpool")
        .description("psycopg2 connection pools: utilization, waits, holds and connects. Alerts lead here.")
        .tags(["opentelemetry", "postgresql"])
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .with_variable(variable("service", "Service", "label_values(db_client_connection_count, job)"))
        .with_variable(
            variable("instance", "Instance", 'label_values(db_client_connection_count{job=~"$service"}, instance)')
        )
        .with_variable(
            variable(
                "pool",
                "Pool",
                f'label_values(db_client_connection_count{{job=~"$service", instance=~"$instance"}}, {POOL})',
            )
        )
        .with_variable(jaeger())
    )
    ids = count(1)
    for title, panels in ROWS:
        dashboard.with_row(Row(title).id(next(ids)))
        for panel in panels:
            dashboard.with_panel(panel.id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(dashboard.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(build(), encoding="utf-8")
    TEMPO_FILE.write_text(in_tempo(build()), encoding="utf-8")
