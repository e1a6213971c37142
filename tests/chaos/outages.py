"""The server stops, is full, or takes no connections yet."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2

from otel_pgpool.demo.postgres import PostgresError
from tests.chaos.ground import FULL, RECOVERABLE
from tests.chaos.scene import MAXCONN, OUTAGE, Fault
from tests.chaos.symptoms import ENDED, IN_RECOVERY, REFUSED

if TYPE_CHECKING:
    from otel_pgpool.demo.postgres import StopMode
    from tests.chaos.scene import Scene


def stopped_fast(scene: Scene) -> float:
    return stopped(scene, "fast")


def stopped_immediately(scene: Scene) -> float:
    return stopped(scene, "immediate")


def stopped(scene: Scene, mode: StopMode) -> float:
    scene.server.stop(mode)
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


FAULTS = {
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
}
