"""A primary and its standby change places."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from tests.chaos.ground import execute, primary_and_standby
from tests.chaos.scene import MAXCONN, OUTAGE, Fault
from tests.chaos.symptoms import ENDED

if TYPE_CHECKING:
    from otel_pgpool.demo.postgres import PostgresServer
    from tests.chaos.scene import Scene


def standby_of(scene: Scene) -> PostgresServer:
    assert scene.ground.standby is not None
    return scene.ground.standby


def failover(scene: Scene) -> float:
    """Stop the primary, and promote the standby."""
    standby = standby_of(scene)
    scene.server.stop("immediate")
    execute(standby, "select pg_promote()")
    return monotonic()


def demotion(scene: Scene) -> float:
    """Make the primary read-only while its sessions continue, and promote the standby.

    The workers rest until all sessions are read-only: a commit in progress would wait for a standby that does not
    replicate any more.
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


FAULTS = {
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
}
