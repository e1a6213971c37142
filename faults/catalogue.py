"""The faults."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2

from faults import drops, suspension, telemetry
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
    scene.app.stop_at_hold()
    scene.wait_for(lambda: scene.app.holding == MAXCONN)
    scene.wait_for(lambda: len(scene.in_state("idle in transaction")) == MAXCONN)
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
    scene.app.stop_at_hold()
    scene.wait_for(lambda: len(scene.in_state("idle in transaction")) == MAXCONN)
    pids = scene.backends()
    with frozen(*pids):
        scene.app.abandons = True
        scene.app.go_on()
        time.sleep(0.2)  # for them to be waiting for the answer
        scene.app.abandons = False
        scene.ask("select pg_terminate_backend(pid) from unnest(%s) as pid", pids)
    return monotonic()


# 2. The server


def stopped_fast(scene: Scene) -> float:
    scene.server.stop("fast")
    time.sleep(scene.away)
    scene.server.start()
    return monotonic()


def stopped_immediately(scene: Scene) -> float:
    scene.server.stop("immediate")
    time.sleep(scene.away)
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
        time.sleep(scene.away)
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
    time.sleep(scene.away)
    scene.server.stop("fast")
    starting.join()
    standby.unlink()
    scene.server.start()
    return monotonic()


def start_for_nobody(scene: Scene) -> None:
    """Start a server that never says that it is ready, until it is stopped."""
    with suppress(PostgresError):
        scene.server.start()


# 3. Frozen backends


def frozen_while_idle(scene: Scene) -> float:
    """Two of four: whoever is given one waits for it; the others must be served."""
    scene.app.pause()
    with frozen(*scene.backends()[: MAXCONN // 2]):
        scene.app.resume()
        time.sleep(scene.away)
    return monotonic()


def frozen_at_the_return(scene: Scene) -> float:
    scene.app.stop_at_hold()
    scene.wait_for(lambda: len(scene.in_state("idle in transaction")) == MAXCONN)
    with frozen(*scene.backends()[: MAXCONN // 2]):
        scene.app.abandons = True
        scene.app.go_on()
        time.sleep(0.2)
        scene.app.abandons = False
        time.sleep(scene.away)
    return monotonic()


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
    time.sleep(scene.away)
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
    """The primary turns read-only while its sessions live, and the standby is promoted."""
    standby = standby_of(scene)
    execute(scene.server, "alter system set default_transaction_read_only = on")
    execute(scene.server, "select pg_reload_conf()")
    execute(standby, "select pg_promote()")
    mended = monotonic()
    with suppress(AssertionError):
        scene.wait_for(lambda: scene.app.first_good(mended) is not None)
    if left := len(scene.backends()):
        scene.notes.append(f"{left} connections stay on the old primary")
    return mended


# 6. Credentials and certificates


def rotated(scene: Scene) -> float:
    """The old password is refused; the application's secret follows later."""
    secret = scene.ground.options["credentials"]()
    execute(scene.server, f"alter role app password '{NEW_PASSWORD}'")
    scene.kill(scene.backends())
    time.sleep(scene.away)
    secret["password"] = NEW_PASSWORD
    return monotonic()


def unverified(scene: Scene) -> float:
    """The server shows a certificate of a stranger's for a while."""
    proxy, certificates = network(scene), scene.ground.certificates
    proxy.certify(certificates["stranger"])
    proxy.cut()
    time.sleep(scene.away)
    proxy.certify(certificates["trusted"])
    return monotonic()


# 7. Forks

CHILD_PATIENCE = 4.0


def forked_while_held(scene: Scene) -> float:
    """Connections are out."""
    scene.wait_for(lambda: scene.app.holding > 0)
    return forked(scene)


def forked_while_waited_for(scene: Scene) -> float:
    """All connections are out, and the other workers wait for one."""
    scene.app.stop_at_hold()
    scene.wait_for(lambda: scene.app.holding == MAXCONN)
    time.sleep(0.1)  # for them to be waiting
    threading.Timer(0.2, scene.app.go_on).start()
    return forked(scene)


def forked(scene: Scene) -> float:
    """Fork, and let the child work on the pool that it has inherited, and leave by `os._exit`."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            with scene.app.borrow() as conn, conn.cursor() as cursor:
                for _ in range(20):
                    cursor.execute("select 1")
            os._exit(0)
        os._exit(1)
    deadline = monotonic() + CHILD_PATIENCE
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if status:
                scene.notes.append("the child failed")
            return monotonic()
        if monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            scene.notes.append("the child hung")
            return monotonic()
        time.sleep(0.01)


OUTSIDE = {
    "idle-killed": Fault("backends killed while idle", "`pg_terminate_backend` on all four", killed_while_idle),
    "held-killed": Fault(
        "backends killed while held, between two statements", "`pg_terminate_backend` on all four", killed_while_held
    ),
    "statement-killed": Fault("in the middle of a statement", "the same, during `pg_sleep`", killed_in_a_statement),
    "commit-killed": Fault(
        "during a commit", "the same, while a deferred trigger holds the commit up", killed_in_a_commit
    ),
    "rollback-killed": Fault(
        "during the rollback on return", "frozen by SIGSTOP first, so that the rollback waits", killed_in_a_rollback
    ),
    "stopped-fast": Fault("server stopped and started again, fast", "SIGINT, away, start", stopped_fast),
    "stopped-immediate": Fault("the same, immediate", "SIGQUIT, away, start", stopped_immediately),
    "too-many-clients": Fault(
        "`max_connections` taken by others (53300)",
        "ours killed, every place taken by other clients",
        too_many_clients,
        ground=FULL,
    ),
    "in-recovery": Fault(
        "server in recovery (57P03)",
        "restarted as a standby that takes no connections, then as a primary",
        in_recovery,
        ground=RECOVERABLE,
    ),
    "idle-frozen": Fault("two of four backends frozen", "SIGSTOP, later SIGCONT", frozen_while_idle),
    "return-frozen": Fault(
        "two of four frozen at the return", "SIGSTOP while held, then the block raises", frozen_at_the_return
    ),
    "cut": Fault("network cut", "every connection reset", cut, ground=over_a_network),
    "black-hole": Fault("network black-holed", "nothing passes, nothing is said", black_holed, ground=over_a_network),
    "slow": Fault("network 200 ms slower", "100 ms each way", slower, ground=over_a_network),
    "drip": Fault("network passes one byte at a time", "each byte sent by itself", byte_by_byte, ground=over_a_network),
    "connect-reset": Fault(
        "connections reset while they are made",
        "all cut, new ones accepted and reset",
        reset_during_connect,
        ground=over_a_network,
    ),
    "silent-port": Fault(
        "a port that accepts and says nothing",
        "all cut, new ones accepted and never answered",
        silent_port,
        ground=over_a_network,
    ),
    "failover": Fault(
        "primary dies, standby promoted",
        "SIGQUIT, `pg_promote()`; two hosts, `target_session_attrs=read-write`",
        failover,
        ground=primary_and_standby,
    ),
    "demotion": Fault(
        "primary turns read-only while its sessions live (25006)",
        "`default_transaction_read_only`, `pg_promote()`",
        demotion,
        ground=primary_and_standby,
    ),
    "rotated": Fault(
        "password rotated, the application's secret follows",
        "`alter role`, all killed; `credentials` returns the new one later",
        rotated,
        ground=with_a_password,
        ours_alone=True,
    ),
    "unverified": Fault(
        "certificate that does not verify",
        "all cut, another authority's certificate shown for a while; `sslmode=verify-full`",
        unverified,
        ground=over_tls,
    ),
    "forked-holding": Fault(
        "fork with connections out",
        "the child runs 20 statements on the pool that it has inherited, and leaves by `os._exit`",
        forked_while_held,
        beside=MAXCONN,  # the child's own
    ),
    "forked-waiting": Fault(
        "fork while threads wait for a connection",
        "the same, while all are held",
        forked_while_waited_for,
        beside=MAXCONN,  # the child's own
    ),
}
"""What happens to the server, to the network, and to the process."""

FAULTS = {**OUTSIDE, **drops.FAULTS, **suspension.FAULTS, **telemetry.FAULTS}
