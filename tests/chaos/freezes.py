"""Backends that neither answer nor end: whatever the pool asks them is bounded."""

from __future__ import annotations

import threading
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE as ACTIVE

from otel_pgpool import ConnectionPool
from otel_pgpool.driver.session import PING_AFTER
from tests.chaos.application import Abandoned
from tests.chaos.frozen import frozen
from tests.chaos.scene import MAXCONN, RETURN, TIMEOUT, Fault
from tests.chaos.symptoms import CUT_LOOSE
from tests.chaos.verdict import GRACE

if TYPE_CHECKING:
    from psycopg2.extensions import connection

    from tests.chaos.scene import Scene

SLACK = 2.0
"""Seconds for which the backends stay frozen after the bound, so that who keeps none is found out."""
CLOSING = 1.0
"""Seconds that `close` is given."""


def frozen_while_idle(scene: Scene) -> float:
    """Two of four: whoever is given one waits for it; the others must be served."""
    scene.app.pause()
    if scene.ours is not None:
        for slot in [*scene.ours.pool._parts.core.idle]:
            slot.seen -= PING_AFTER
    with frozen(*scene.backends()[: MAXCONN // 2]):
        scene.app.resume()
        threading.Event().wait(max(scene.away, TIMEOUT + SLACK))
    return monotonic()


def frozen_at_the_return(scene: Scene) -> float:
    """Two of four, until these have been given back, or could have been twice."""
    held = scene.hold_all()
    with frozen(*scene.backends()[: MAXCONN // 2]):
        scene.app.abandons = True
        scene.app.go_on()
        scene.wait_for(lambda: all(each.leaving for each in held))
        scene.app.abandons = False
        scene.comes(lambda: all(each.ended for each in held), max(scene.away, RETURN + SLACK))
    return monotonic()


def frozen_at_the_close(scene: Scene) -> float:
    """Close a second pool with one holder in a statement, one that returns its connection, and two idle connections."""
    name = "closed while frozen"
    pool = ConnectionPool(MAXCONN, MAXCONN, **{**scene.ground.dsn, "application_name": name}, observer=None)
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
    closing = threading.Thread(target=pool.close, args=(CLOSING,))
    for thread in threads:
        thread.start()
    scene.wait_for(lambda: len(held) == len(threads))
    with frozen(*scene.ask("select pid from pg_stat_activity where application_name = %s", name)):
        go.set()
        scene.wait_for(lambda: all(conn.get_transaction_status() == ACTIVE for conn in held))
        began = monotonic()
        closing.start()
        closing.join(CLOSING + SLACK)
        scene.took.append(("close() of frozen connections", monotonic() - began, CLOSING))
    for thread in (*threads, closing):
        thread.join()
    return monotonic()


FAULTS = {
    "idle-frozen": Fault(
        "two of four backends frozen while idle",
        f"SIGSTOP, after they have been idle for over {PING_AFTER:g} s, so that they are asked; later SIGCONT",
        frozen_while_idle,
        meets=(CUT_LOOSE,),
    ),
    "return-frozen": Fault(
        "two of four frozen at the return",
        "SIGSTOP while held, then the block raises",
        frozen_at_the_return,
        meets=(CUT_LOOSE,),
    ),
    "close-frozen": Fault(
        "all of another pool frozen at its close",
        f"SIGSTOP: one in a statement, one at its return, two idle; `close({CLOSING:g})` has {CLOSING + GRACE:g} s",
        frozen_at_the_close,
        ours_alone=True,
    ),
}
