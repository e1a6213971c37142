"""Backends ended by an administrator, at every station of a checkout."""

from __future__ import annotations

import time
from time import monotonic
from typing import TYPE_CHECKING

from tests.chaos.application import QUICK, SLOW_COMMIT, SLOW_STATEMENT
from tests.chaos.frozen import frozen
from tests.chaos.scene import MAXCONN, Fault
from tests.chaos.symptoms import ENDED

if TYPE_CHECKING:
    from tests.chaos.scene import Scene


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


FAULTS = {
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
}
