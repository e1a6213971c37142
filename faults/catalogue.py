"""The faults."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2

from faults import drops, forks, freezes, suspension, telemetry
from faults.application import QUICK, SLOW_COMMIT, SLOW_STATEMENT
from faults.frozen import frozen
from faults.ground import (
    FULL,
    NEW_PASSWORD,
    RECOVERABLE,
    execute,
    over_a_network,
    over_tls,
    primary_and_standby,
    with_a_password,
)
from faults.proxy import Proxy, Weather
from faults.scene import MAXCONN, Fault
from otel_pgpool.cli.postgres import PostgresError

if TYPE_CHECKING:
    from faults.scene import Scene
    from otel_pgpool.cli.postgres import PostgresServer

# 1. Backends killed


def killed_while_idle(scene: Scene) -> float:
    scene.app.pause()
    time.sleep(0.1)  # a connection used within the last 50 ms is not looked at
    scene.kill(scene.backends())
    scene.app.resume()
    return monotonic()


def killed_while_held(scene: Scene) -> float:
    scene.hold_all()
    scene.kill(scene.backends())
    scene.app.go_on()
    return monotonic()


def killed_in_a_statement(scene: Scene) -> float:
    return killed_during(scene, SLOW_STATEMENT, "insert into work select")


def killed_in_a_commit(scene: Scene) -> float:
    return killed_during(scene, SLOW_COMMIT, "commit")


def killed_during(scene: Scene, work: str, query: str) -> float:
    """Let the workers do slow work, and kill all when they are at one query of it."""
    scene.app.statement = work
    scene.wait_for(lambda: len(scene.in_state("active", query)) == MAXCONN)
    scene.app.statement = QUICK
    scene.kill(scene.backends())
    return monotonic()


def killed_in_a_rollback(scene: Scene) -> float:
    """Frozen while held, so that the rollback on return waits; then killed."""
    scene.hold_all()
    pids = scene.backends()
    with frozen(*pids):
        scene.app.abandons = True
        scene.app.go_on()
        scene.wait_for(lambda: len(scene.app.returning()) == MAXCONN)
        scene.app.abandons = False
        scene.ask("select pg_terminate_backend(pid) from unnest(%s) as pid", pids)
    return monotonic()


# 2. The server


def stopped_fast(scene: Scene) -> float:
    scene.server.stop("fast")
    scene.stay_away()
    scene.server.start()
    return monotonic()


def stopped_immediately(scene: Scene) -> float:
    scene.server.stop("immediate")
    scene.stay_away()
    scene.server.start()
    return monotonic()


def too_many_clients(scene: Scene) -> float:
    with ExitStack() as others:
        scene.app.pause()
        pids = scene.backends()
        admin = scene.admin()
        others.callback(admin.close)
        with admin.cursor() as cursor:
            cursor.execute("select pg_terminate_backend(pid, 5000) from unnest(%s) as pid", (pids,))
        with suppress(psycopg2.OperationalError):
            while True:
                others.callback(psycopg2.connect(scene.server.dsn, application_name="others").close)
        scene.app.resume()
        scene.stay_away()
    return monotonic()


def in_recovery(scene: Scene) -> float:
    scene.ask("alter system set hot_standby = off")
    data = Path(scene.server.socket_dir, "data")
    scene.server.stop("fast")
    standby = data / "standby.signal"
    standby.touch()
    os.chown(standby, data.stat().st_uid, data.stat().st_gid)
    starting = threading.Thread(target=start_for_nobody, args=(scene,))
    starting.start()
    scene.stay_away()
    scene.server.stop("fast")
    starting.join()
    standby.unlink()
    scene.server.start()
    return monotonic()


def start_for_nobody(scene: Scene) -> None:
    """Start a server that never says that it is ready, until it is stopped."""
    with suppress(PostgresError):
        scene.server.start()


# 4. The network


def network(scene: Scene) -> Proxy:
    assert scene.ground.proxy is not None
    return scene.ground.proxy


def cut(scene: Scene) -> float:
    network(scene).cut()
    return monotonic()


def under(scene: Scene, weather: Weather, *, cut_first: bool = False) -> float:
    proxy = network(scene)
    proxy.weather = weather
    if cut_first:
        proxy.cut()
    scene.stay_away()
    scene.wait_for(lambda: proxy.struck[weather])
    proxy.weather = Weather.FAIR
    if weather in (Weather.SILENT, Weather.BLACK_HOLE):
        proxy.cut()  # who was never answered will not be
    return monotonic()


def black_holed(scene: Scene) -> float:
    return under(scene, Weather.BLACK_HOLE)


def slower(scene: Scene) -> float:
    return under(scene, Weather.SLOW)


def byte_by_byte(scene: Scene) -> float:
    return under(scene, Weather.DRIP)


def reset_during_connect(scene: Scene) -> float:
    return under(scene, Weather.RESETTING, cut_first=True)


def silent_port(scene: Scene) -> float:
    return under(scene, Weather.SILENT, cut_first=True)


# 5. Failover


def standby_of(scene: Scene) -> PostgresServer:
    assert scene.ground.standby is not None
    return scene.ground.standby


def failover(scene: Scene) -> float:
    """The primary dies, and the standby is promoted."""
    standby = standby_of(scene)
    scene.server.stop("immediate")
    execute(standby, "select pg_promote()")
    return monotonic()


def demotion(scene: Scene) -> float:
    """The primary turns read-only while its sessions live, and the standby is promoted.

    The workers rest until all sessions know: a commit still under way would wait for a standby that listens no more.
    """
    standby = standby_of(scene)
    scene.app.pause()
    execute(scene.server, "alter system set default_transaction_read_only = on")
    execute(scene.server, "select pg_reload_conf()")
    scene.wait_for(lambda: scene.ask("show default_transaction_read_only") == ["on"])
    scene.app.resume()
    execute(standby, "select pg_promote()")
    mended = monotonic()
    scene.comes(lambda: scene.app.first_good(mended) is not None)
    if left := len(scene.backends()):
        scene.notes.append(f"{left} connections stay on the old primary")
    return mended


# 6. Credentials and certificates


def rotated(scene: Scene) -> float:
    """The old password is refused; the application's secret follows later."""
    secret = scene.ground.options["credentials"]()
    execute(scene.server, f"alter role app password '{NEW_PASSWORD}'")
    scene.kill(scene.backends())
    scene.stay_away()
    secret["password"] = NEW_PASSWORD
    return monotonic()


def unverified(scene: Scene) -> float:
    """The server shows a certificate of a stranger's for a while."""
    proxy, certificates = network(scene), scene.ground.certificates
    proxy.certify(certificates["stranger"])
    proxy.cut()
    scene.stay_away()
    proxy.certify(certificates["trusted"])
    return monotonic()


IN_RECOVERY = "while it connected: .*the database system is (starting up|not (yet )?accepting connections)"
"""All of these are 57P03; which of them it is depends on how far the standby has come."""
ENDED = "server closed the connection|57P0[12]"
"""By whatever psycopg2 and libpq make of the server's last word."""
REFUSED = "while it connected: .*Connection refused"
OUTAGE = 7.0
"""Seconds: the prober pauses for up to 5 s while no connection can be made."""

OUTSIDE = {
    "idle-killed": Fault(
        "backends killed while idle", "`pg_terminate_backend` on all four", killed_while_idle, meets=(ENDED,)
    ),
    "held-killed": Fault(
        "backends killed while held, between two statements",
        "`pg_terminate_backend` on all four",
        killed_while_held,
        meets=(f"in the commit: .*({ENDED})",),
        errors=MAXCONN,
    ),
    "statement-killed": Fault(
        "in the middle of a statement",
        "the same, during `pg_sleep`",
        killed_in_a_statement,
        meets=(f"in the block: .*({ENDED})",),
        errors=MAXCONN,
    ),
    "commit-killed": Fault(
        "during a commit",
        "the same, while a deferred trigger holds the commit up",
        killed_in_a_commit,
        meets=(f"in the commit: .*({ENDED})",),
        errors=MAXCONN,
    ),
    "rollback-killed": Fault(
        "during the rollback on return",
        "frozen by SIGSTOP first, so that the rollback waits",
        killed_in_a_rollback,
        meets=(ENDED,),
    ),
    "stopped-fast": Fault(
        "server stopped and started again, fast",
        "SIGINT, away, start",
        stopped_fast,
        meets=(ENDED, REFUSED),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "stopped-immediate": Fault(
        "the same, immediate",
        "SIGQUIT, away, start",
        stopped_immediately,
        meets=(ENDED, REFUSED),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "too-many-clients": Fault(
        "`max_connections` taken by others (53300)",
        "ours killed, every place taken by other clients",
        too_many_clients,
        ground=FULL,
        meets=("while it connected: .*too many clients already",),
        shut_out=True,
        within=OUTAGE,
    ),
    "in-recovery": Fault(
        "server in recovery (57P03)",
        "restarted as a standby that takes no connections, then as a primary",
        in_recovery,
        ground=RECOVERABLE,
        meets=(IN_RECOVERY,),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    **freezes.FAULTS,
    "cut": Fault(
        "network cut",
        "every connection reset",
        cut,
        ground=over_a_network,
        meets=(ENDED,),
        errors=MAXCONN,
    ),
    "black-hole": Fault(
        "network black-holed",
        "nothing passes, nothing is said",
        black_holed,
        ground=over_a_network,
        errors=MAXCONN,
        shut_out=True,
    ),
    "slow": Fault("network 200 ms slower", "100 ms each way", slower, ground=over_a_network),
    "drip": Fault("network passes one byte at a time", "each byte sent by itself", byte_by_byte, ground=over_a_network),
    "connect-reset": Fault(
        "connections reset while they are made",
        "all cut, new ones accepted and reset",
        reset_during_connect,
        ground=over_a_network,
        meets=("while it connected: .*(reset by peer|closed the connection)",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "silent-port": Fault(
        "a port that accepts and says nothing",
        "all cut, new ones accepted and never answered",
        silent_port,
        ground=over_a_network,
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "failover": Fault(
        "primary dies, standby promoted",
        "SIGQUIT, `pg_promote()`; two hosts, `target_session_attrs=read-write`",
        failover,
        ground=primary_and_standby,
        meets=(ENDED,),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "demotion": Fault(
        "primary turns read-only while its sessions live (25006)",
        "`default_transaction_read_only`, `pg_promote()`",
        demotion,
        ground=primary_and_standby,
        meets=("in the block: 25006",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "rotated": Fault(
        "password rotated, the application's secret follows",
        "`alter role`, all killed; `credentials` returns the new one later",
        rotated,
        ground=with_a_password,
        ours_alone=True,
        meets=("while it connected: .*password authentication failed",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    "unverified": Fault(
        "certificate that does not verify",
        "all cut, another authority's certificate shown for a while; `sslmode=verify-full`",
        unverified,
        ground=over_tls,
        meets=("while it connected: .*certificate verify failed",),
        errors=MAXCONN,
        shut_out=True,
        within=OUTAGE,
    ),
    **forks.FAULTS,
}
"""What happens to the server, to the network, and to the process."""

FAULTS = {**OUTSIDE, **drops.FAULTS, **suspension.FAULTS, **telemetry.FAULTS}
