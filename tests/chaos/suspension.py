"""The application's process, suspended: when it goes on, every timeout has run out at once."""

from __future__ import annotations

import os
import subprocess
from time import monotonic
from typing import TYPE_CHECKING

from tests.chaos.scene import MAXCONN, TIMEOUT, Fault

if TYPE_CHECKING:
    from tests.chaos.scene import Scene

SUSPEND = 'kill -STOP "$0"; sleep "$1"; kill -CONT "$0"'


def suspend(seconds: float) -> float:
    """Stop this process for so long; a moment at which it stood still."""
    began = monotonic()
    subprocess.run(["/bin/sh", "-c", SUSPEND, str(os.getpid()), str(seconds)], check=True)
    return began + seconds  # the shell takes a moment to stop it, and far less than so long


def suspended_while_held(scene: Scene) -> float:
    """Half of the workers hold a connection, the others wait for one until after their timeout."""
    scene.hold_all()
    return suspended(scene, TIMEOUT + scene.away)


def suspended_at_work(scene: Scene) -> float:
    """In the middle of whatever the workers are at."""
    scene.app.statement, before = "insert into work select %s from pg_sleep(0.05)", scene.app.statement
    scene.wait_for(lambda: scene.in_state("active", "insert into work select"))
    mended = suspended(scene, TIMEOUT + scene.away)
    scene.app.statement = before
    return mended


def suspended(scene: Scene, seconds: float) -> float:
    """Suspend, let the workers finish, and set their clocks right: the pool cannot serve anybody meanwhile."""
    still = suspend(seconds)
    ended = monotonic()
    scene.app.go_on()
    scene.app.pause()
    for attempt in scene.app.attempts:
        if attempt.began < still < (attempt.acquired or attempt.ended or still):
            attempt.began += seconds
        if attempt.leaving and attempt.leaving < still < (attempt.ended or still):
            attempt.leaving += seconds
    scene.app.resume()
    return ended


FAULTS = {
    "suspended-holding": Fault(
        "application suspended while all connections are held",
        "SIGSTOP for longer than the timeout, SIGCONT; times without the suspension",
        suspended_while_held,
        errors=MAXCONN,
    ),
    "suspended-working": Fault(
        "application suspended at work", "the same, in the middle of statements", suspended_at_work, errors=MAXCONN
    ),
}
