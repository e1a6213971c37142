"""The application's process forks, and the child works on what it has inherited."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from tests.chaos.scene import MAXCONN, WORKERS, Fault

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.chaos.scene import Scene

CHILD_PATIENCE = 4.0


def forked_while_held(scene: Scene) -> float:
    """Fork while connections are checked out."""
    scene.wait_for(scene.app.holding)
    return forked(scene)


def forked_while_waited_for(scene: Scene) -> float:
    """All connections are out, and the other workers wait for one."""
    scene.hold_all()
    scene.wait_for(lambda: len(scene.app.waiting()) == WORKERS - MAXCONN)
    if scene.ours is not None:
        pool = scene.ours.pool
        scene.wait_for(lambda: pool.stats().waiting == WORKERS - MAXCONN)
    return forked(scene)


def forked(scene: Scene) -> float:
    """Fork, and let the child work on the pool that it has inherited, and leave by `os._exit`."""
    parents = scene.backends()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            work(scene, parents)
            os._exit(0)
        os._exit(1)
    scene.app.go_on()
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


def work(scene: Scene, parents: Collection[int]) -> None:
    """Use the pool in the child; the answers must come from server processes that are not the parent's."""
    with scene.app.borrow() as conn, conn.cursor() as cursor:
        for number in range(20):
            cursor.execute("select %s::int, pg_backend_pid()", (number,))
            answer, backend = cursor.fetchone()
            assert answer == number
            assert backend not in parents


FAULTS = {
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
