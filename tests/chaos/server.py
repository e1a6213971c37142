"""Faults of the server: killed and frozen backends, outages, and a failover."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE as ACTIVE

from otel_pgpool import ConnectionPool
from otel_pgpool.demo.postgres import PostgresError
from otel_pgpool.driver.session import PING_AFTER
from tests.chaos.application import QUICK, SLOW_COMMIT, SLOW_STATEMENT, Abandoned
from tests.chaos.checks import ENDED, IN_RECOVERY, REFUSED, SOCKET_SHUT_DOWN
from tests.chaos.environment import FULL_SERVER, RECOVERABLE_SERVER, execute, primary_and_standby
from tests.chaos.runner import GRACE, MAXCONN, OUTAGE, RELEASE, TIMEOUT, Fault
from tests.support.internals import core_of
from tests.support.processes import frozen

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from otel_pgpool.demo.postgres import PostgresServer, StopMode
    from tests.chaos.runner import FaultRun


def killed_while_idle(run: FaultRun) -> float:
    run.app.pause()
    time.sleep(0.1)  # a connection used within the last 50 ms is not checked
    run.kill(run.backends())
    run.app.resume()
    return monotonic()


def killed_while_held(run: FaultRun) -> float:
    run.hold_all()
    run.kill(run.backends())
    run.app.go_on()
    return monotonic()


def killed_during(run: FaultRun, work: str, query: str) -> float:
    """Let the workers do slow work, and kill all backends while they run a query."""
    run.app.statement = work
    run.wait_for(lambda: len(run.in_state("active", query)) == MAXCONN)
    run.app.statement = QUICK
    run.kill(run.backends())
    return monotonic()


def killed_in_a_rollback(run: FaultRun) -> float:
    """Freeze held backends, so that the rollback at the release waits; then kill them."""
    run.hold_all()
    pids = run.backends()
    with frozen(*pids):
        run.app.abandons = True
        run.app.go_on()
        run.wait_for(lambda: len(run.app.releasing()) == MAXCONN)
        run.app.abandons = False
        run.ask("select pg_terminate_backend(pid) from unnest(%s) as pid", pids)
    return monotonic()


KILLS = {
    "idle-killed": Fault(
        "backends killed while idle", "`pg_terminate_backend` on all four", killed_while_idle, evidence=(ENDED,)
    ),
    "held-killed": Fault(
        "backends killed while held, between two statements",
        "`pg_terminate_backend` on all four",
        killed_while_held,
        evidence=(f"in the commit: .*({ENDED})",),
        errors=MAXCONN,
    ),
    "statement-killed": Fault(
        "in the middle of a statement",
        "the same, during `pg_sleep`",
        partial(killed_during, work=SLOW_STATEMENT, query="insert into work select"),
        evidence=(f"in the block: .*({ENDED})",),
        errors=MAXCONN,
    ),
    "commit-killed": Fault(
        "during a commit",
        "the same, while a deferred trigger delays the commit",
        partial(killed_during, work=SLOW_COMMIT, query="commit"),
        evidence=(f"in the commit: .*({ENDED})",),
        errors=MAXCONN,
    ),
    "rollback-killed": Fault(
        "during the rollback at the release",
        "frozen by SIGSTOP first, so that the rollback waits",
        killed_in_a_rollback,
        evidence=(ENDED,),
    ),
}


def stopped(run: FaultRun, mode: StopMode) -> float:
    run.server.stop(mode)
    run.stay_away()
    run.server.start()
    return monotonic()


def too_many_clients(run: FaultRun) -> float:
    with ExitStack() as others:
        run.app.pause()
        pids = run.backends()
        admin = run.admin()
        others.callback(admin.close)
        with admin.cursor() as cursor:
            cursor.execute("select pg_terminate_backend(pid, 5000) from unnest(%s) as pid", (pids,))
        with suppress(psycopg2.OperationalError):
            while True:
                others.callback(psycopg2.connect(run.server.dsn, application_name="others").close)
        run.app.resume()
        run.stay_away()
    return monotonic()


def in_recovery(run: FaultRun) -> float:
    run.ask("alter system set hot_standby = off")
    data = Path(run.server.socket_dir, "data")
    run.server.stop("fast")
    standby = data / "standby.signal"
    standby.touch()
    os.chown(standby, data.stat().st_uid, data.stat().st_gid)
    starting = threading.Thread(target=start_in_vain, args=(run,))
    starting.start()
    run.stay_away()
    run.server.stop("fast")
    starting.join()
    standby.unlink()
    run.server.start()
    return monotonic()


def start_in_vain(run: FaultRun) -> None:
    """Start a server that does not become ready before it is stopped."""
    with suppress(PostgresError):
        run.server.start()


OUTAGES = {
    "stopped-fast": Fault(
        "server stopped and started again, fast",
        "SIGINT, outage, start",
        partial(stopped, mode="fast"),
        evidence=(ENDED, REFUSED),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "stopped-immediate": Fault(
        "the same, immediate",
        "SIGQUIT, outage, start",
        partial(stopped, mode="immediate"),
        evidence=(ENDED, REFUSED),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "too-many-clients": Fault(
        "`max_connections` used by others (53300)",
        "the pool's backends killed, every slot of the server used by other clients",
        too_many_clients,
        environment=FULL_SERVER,
        evidence=("while it connected: .*too many clients already",),
        shut_out=True,
        within=OUTAGE,
    ),
    "in-recovery": Fault(
        "server in recovery (57P03)",
        "restarted as a standby that refuses connections, then as a primary",
        in_recovery,
        environment=RECOVERABLE_SERVER,
        evidence=(IN_RECOVERY,),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
}


SLACK = 2.0
"""Seconds for which the backends stay frozen after the bound, to show which pools have no bound."""
CLOSE_TIMEOUT = 1.0
"""The timeout of `close`, in seconds."""


def frozen_while_idle(run: FaultRun) -> float:
    """Freeze two of four idle backends: callers that get one wait for it, the others must be served."""
    run.app.pause()
    if run.ours is not None:
        for slot in [*core_of(run.ours.pool).idle]:
            slot.seen -= PING_AFTER
    with frozen(*run.backends()[: MAXCONN // 2]):
        run.app.resume()
        threading.Event().wait(max(run.away, TIMEOUT + SLACK))
    return monotonic()


def frozen_at_the_release(run: FaultRun) -> float:
    """Freeze two of four held backends, until they are released or the bound of a release has passed."""
    held = run.hold_all()
    with frozen(*run.backends()[: MAXCONN // 2]):
        run.app.abandons = True
        run.app.go_on()
        run.wait_for(lambda: all(each.leaving for each in held))
        run.app.abandons = False
        run.happens(lambda: all(each.ended for each in held), max(run.away, RELEASE + SLACK))
    return monotonic()


def frozen_at_the_close(run: FaultRun) -> float:
    """Close a second pool with one holder in a statement, one that releases its connection, and two idle ones."""
    name = "closed while frozen"
    pool = ConnectionPool(MAXCONN, MAXCONN, **{**run.environment.dsn, "application_name": name}, observer=None)
    held: list[connection] = []
    go = threading.Event()

    def hold(*, abandon: bool) -> None:
        with suppress(Abandoned), pool.connection() as conn, conn.cursor() as cursor:
            cursor.execute("select 1")
            held.append(conn)
            go.wait()
            if abandon:
                raise Abandoned
            cursor.execute("select 2")

    threads = [threading.Thread(target=hold, kwargs={"abandon": abandon}) for abandon in (False, True)]
    closing = threading.Thread(target=pool.close, args=(CLOSE_TIMEOUT,))
    for thread in threads:
        thread.start()
    run.wait_for(lambda: len(held) == len(threads))
    with frozen(*run.ask("select pid from pg_stat_activity where application_name = %s", name)):
        go.set()
        run.wait_for(lambda: all(conn.get_transaction_status() == ACTIVE for conn in held))
        began = monotonic()
        closing.start()
        closing.join(CLOSE_TIMEOUT + SLACK)
        run.took.append(("close() of frozen connections", monotonic() - began, CLOSE_TIMEOUT))
    for thread in (*threads, closing):
        thread.join()
    return monotonic()


FREEZES = {
    "idle-frozen": Fault(
        "two of four backends frozen while idle",
        f"SIGSTOP, after they have been idle for over {PING_AFTER:g} s, so that the pool sends a ping; later SIGCONT",
        frozen_while_idle,
        evidence=(SOCKET_SHUT_DOWN,),
    ),
    "return-frozen": Fault(
        "two of four backends frozen at the release",
        "SIGSTOP while held, then the block raises",
        frozen_at_the_release,
        evidence=(SOCKET_SHUT_DOWN,),
    ),
    "close-frozen": Fault(
        "all backends of another pool frozen at its close",
        "SIGSTOP: one in a statement, one at its release, two idle; "
        f"`close({CLOSE_TIMEOUT:g})` has {CLOSE_TIMEOUT + GRACE:g} s",
        frozen_at_the_close,
        ours_alone=True,
    ),
}


def standby_of(run: FaultRun) -> PostgresServer:
    assert run.environment.standby is not None
    return run.environment.standby


def failover(run: FaultRun) -> float:
    """Stop the primary, and promote the standby."""
    standby = standby_of(run)
    run.server.stop("immediate")
    execute(standby, "select pg_promote()")
    return monotonic()


def demotion(run: FaultRun) -> float:
    """Make the primary read-only while its sessions continue, and promote the standby.

    The workers rest until all sessions are read-only: a commit in progress would wait for a standby that does not
    replicate any more.
    """
    standby = standby_of(run)
    run.app.pause()
    execute(run.server, "alter system set default_transaction_read_only = on")
    execute(run.server, "select pg_reload_conf()")
    run.wait_for(lambda: run.ask("show default_transaction_read_only") == ["on"])
    run.app.resume()
    execute(standby, "select pg_promote()")
    mended = monotonic()
    run.happens(lambda: run.app.first_good(mended) is not None)
    run.happens(lambda: not run.backends(), 2.0)  # a connection is closed at its next use, which may follow
    if left := len(run.backends()):
        run.notes.append(f"{left} connections stay on the old primary")
    return mended


FAILOVERS = {
    "failover": Fault(
        "primary dies, standby promoted",
        "SIGQUIT, `pg_promote()`; two hosts, `target_session_attrs=read-write`",
        failover,
        environment=primary_and_standby,
        evidence=(ENDED,),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "demotion": Fault(
        "primary becomes read-only while its sessions continue (25006)",
        "`default_transaction_read_only`, `pg_promote()`",
        demotion,
        environment=primary_and_standby,
        evidence=("in the block: 25006",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
}
