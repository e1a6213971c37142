"""Checkouts that nobody ends: their borrower forgets them, dies, or leaves them to the garbage collector."""

from __future__ import annotations

import gc
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from tests.chaos.scene import MAXCONN, Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.scene import Scene


class Knot:
    """Something that only the garbage collector can free."""

    def __init__(self, kept: object) -> None:
        self.kept = kept
        self.itself = self


def borrowed(scene: Scene) -> tuple[Any, Any]:
    """Enter a block without leaving it; return the block and its connection, in a transaction."""
    block = scene.app.borrow()
    conn = block.__enter__()
    with conn.cursor() as cursor:
        cursor.execute("select 1")
    return block, conn


def rows(scene: Scene) -> Iterator[int]:
    """Hold a connection between the rows of a generator."""
    with scene.app.borrow() as conn, conn.cursor() as cursor:
        cursor.execute("select 1")
        yield 1
        yield 2


def begun(scene: Scene) -> Iterator[int]:
    """One that has given a row, and waits to be asked for the next."""
    generator = rows(scene)
    next(generator)
    return generator


def drop_all(scene: Scene, borrow: Callable[[Scene], object]) -> float:
    """Every connection at once, while the workers rest; then they need them."""
    scene.app.pause()
    kept: list[object] = [borrow(scene) for _ in range(MAXCONN)]
    scene.app.resume()
    kept.clear()
    return monotonic()


def dropped(scene: Scene) -> float:
    return drop_all(scene, borrowed)


def dropped_in_cycles(scene: Scene) -> float:
    drop_all(scene, lambda scene: Knot(borrowed(scene)))
    gc.collect()
    return monotonic()


def never_finished(scene: Scene) -> float:
    drop_all(scene, lambda scene: Knot(begun(scene)))
    gc.collect()
    return monotonic()


def holders_die(scene: Scene) -> float:
    """Threads that keep their connection to themselves, as frameworks do, and end."""
    here = threading.local()

    def hold_and_die() -> None:
        here.borrowed = borrowed(scene)

    scene.app.pause()
    threads = [threading.Thread(target=hold_and_die, name=f"holder-{n}") for n in range(MAXCONN)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scene.app.resume()
    return monotonic()


FAULTS = {
    "dropped": Fault(
        "connections dropped without being given back", "the last reference to all four goes", dropped, ours_alone=True
    ),
    "dropped-in-cycles": Fault(
        "the same, in cycles", "the garbage collector finds all four", dropped_in_cycles, ours_alone=True
    ),
    "never-finished": Fault(
        "generators that are never finished",
        "the garbage collector closes four in the middle of a block",
        never_finished,
        ours_alone=True,
    ),
    "holders-died": Fault(
        "threads that end while they hold",
        "four threads, their connections in a `threading.local`",
        holders_die,
        ours_alone=True,
    ),
}
