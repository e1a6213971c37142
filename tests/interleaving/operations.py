"""What one thread does to a pool: the operations, and the scenario of two or three of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from otel_pgpool import PoolClosed, PoolTimeout
from tests.interleaving.explorer import Case
from tests.interleaving.scheduler import Interrupted, Scheduler
from tests.interleaving.world import NOW, FakeThread, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHORT = 1.0


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        prepare: called with the world before the threads start; returns the function that the thread runs.
        held: connections that it needs to hold at the start.
        room: connections that it needs to be able to open.
        idle: connections that it needs to be idle at the start.
    """

    prepare: Callable[[World], Callable[[], object]]
    held: int = 0
    room: int = 0
    idle: int = 0


def acquire(world: World) -> Callable[[], object]:
    """Check a connection out, and wait for it however long it takes."""
    return world.enter


def time_out(world: World) -> Callable[[], object]:
    """Check a connection out, with a limit that may pass at any time."""
    return lambda: world.enter(SHORT)


def release(world: World) -> Callable[[], object]:
    """Leave a block: the connection goes to the first waiter or stays idle."""
    block = world.again = world.contexts.pop()
    return lambda: world.leave(block)


def hand_over(world: World) -> Callable[[], object]:
    """Release a connection while a caller waits for it, and let the caller take it."""
    block = world.contexts.pop()
    record, waiter = world.queue_up()

    def act() -> None:
        world.leave(block)
        world.settle(record, waiter)

    return act


def use(world: World) -> Callable[[], object]:
    """Check a connection out and release it."""
    return lambda: world.leave(world.enter())


def discard(world: World) -> Callable[[], object]:
    """Release a connection and close it, as `putconn(conn, close=True)` does."""
    block = world.contexts.pop()

    def act() -> None:
        world.forget(block)
        world.parts.releaser.release_by_hand(block.checkout, block.conn, close=True)

    return act


def drop(world: World) -> Callable[[], object]:
    """Reclaim a connection whose holder has dropped it."""
    ref = world.drop(world.contexts.pop())

    def act() -> None:
        world.parts.maintenance._dropped = [ref]
        world.parts.maintenance._reclaim(NOW)

    return act


def late_release(world: World) -> Callable[[], object]:
    """Release, from a generator that is being collected, the connection that the maintenance reclaims."""
    record, conn = world.dropped
    world.dropped = None
    world.most += 1  # the pool does not know any more that this connection is open

    def act() -> None:
        world.parts.releaser.release_by_hand(record, conn, close=False)
        with world.core.lock:  # after the reclaim, if that came first
            is_lost = record.slot not in world.core.members
        if is_lost:
            conn.close()

    return act


def release_again(world: World) -> Callable[[], object]:
    """Release the same connection from another thread."""
    record, conn = world.again.checkout, world.again.conn
    return lambda: world.parts.releaser.release_by_hand(record, conn, close=False)


def shrink(world: World) -> Callable[[], object]:
    """Make the pool smaller by one connection."""
    return lambda: world.parts.lifecycle.resize(0, max(1, world.maxconn - 1))


def grow(world: World) -> Callable[[], object]:
    """Make the pool larger by one connection."""
    world.most += 1
    return lambda: world.parts.lifecycle.resize(0, world.maxconn + 1)


def drain(world: World) -> Callable[[], object]:
    """Replace every connection."""
    return world.parts.lifecycle.drain


def close(world: World) -> Callable[[], object]:
    """Close the pool, without waiting for its holders."""
    return world.parts.lifecycle.close


def suspend(world: World) -> Callable[[], object]:
    """Let checkouts wait."""
    return lambda: world.core.suspend(NOW)


def resume(world: World) -> Callable[[], object]:
    """Serve the waiters of a suspended pool again."""
    world.begins_suspended = True
    return world.parts.lifecycle.resume


def retime(world: World) -> Callable[[], object]:
    """Change the timeout, after which each waiter waits on with the new one."""
    return world.core.renew_waits


def park(world: World) -> Callable[[], object]:
    """Make a pass of the maintenance, which parks its thread if it can."""
    world.parts.maintenance._handed_out = sum(world.core.checkouts().values())
    return world.parts.maintenance.run_once


def wake(world: World) -> Callable[[], object]:
    """Check a connection out while the maintenance is parked, and release it."""
    world.core.parked = world.began_parked = True
    return use(world)


def deliver(world: World) -> Callable[[], object]:
    """Run a connector: it opens the connections that are wanted."""
    return connector(world)


def miss(world: World) -> Callable[[], object]:
    """Run a connector whose connect fails, once; the next one succeeds."""
    return connector(world, fails=True)


def connector(world: World, *, fails: bool = False) -> Callable[[], object]:
    """Return what a connector thread does for a connection that is wanted."""
    connectors = world.parts.connectors
    thread: Any = FakeThread(lambda: None, "connector")
    thread.start()
    thread.has_run = True
    with world.core.lock:
        connectors._threads.add(thread)
        world.core.growth_requested = 1 + len(world.core.opening)  # type: ignore[assignment]
        slot = world.core.reserve_slot(NOW)

    def act() -> None:
        world.server.failures = int(fails)
        connectors._connect(slot, None)
        connectors._leave(thread)

    return act


def evict(world: World) -> Callable[[], object]:
    """Evict connections that have been idle for too long."""

    def act() -> None:
        for reason, slots in world.core.evict_expired(NOW, 0.0).items():
            world.parts.maintenance._discarder.discard(slots, reason)

    return act


def check(world: World) -> Callable[[], object]:
    """Check every idle connection."""
    return world.parts.liveness.check_all


def look(world: World) -> Callable[[], object]:
    """Read the pool's figures twice, as the metrics do."""

    def act() -> None:
        figures = [world.core.stats() for _ in range(2)]
        for each in figures:
            levels = each.used, each.idle, each.waiting, each.connecting, each.hold_seconds
            assert min(*levels, *each.checkouts.values()) >= 0
        first, second = figures
        for path, count in first.checkouts.items():
            assert second.checkouts[path] >= count, "a total has decreased"
        for reason, count in first.discarded.items():
            assert second.discarded[reason] >= count, "a total has decreased"
        assert second.hold_seconds >= first.hold_seconds, "a total has decreased"

    return act


OPERATIONS: dict[str, Operation] = {
    "acquire": Operation(acquire),
    "time out": Operation(time_out),
    "use": Operation(use),
    "release": Operation(release, held=1),
    "hand over": Operation(hand_over, held=1),
    "discard": Operation(discard, held=1),
    "reclaim": Operation(drop, held=1),
    "shrink": Operation(shrink, held=1),
    "grow": Operation(grow),
    "drain": Operation(drain),
    "close": Operation(close),
    "suspend": Operation(suspend),
    "resume": Operation(resume),
    "retime": Operation(retime),
    "park": Operation(park),
    "wake": Operation(wake),
    "deliver": Operation(deliver, room=1),
    "miss": Operation(miss, room=1),
    "evict": Operation(evict),
    "check": Operation(check),
    "look": Operation(look),
    "release again": Operation(release_again),
    "late release": Operation(late_release),
}
ERRORS = (PoolClosed, PoolTimeout, Interrupted)


MAINTENANCE = {"reclaim", "park", "evict"}
"""What the maintenance thread does, one after the other."""


def pairs() -> list[tuple[str, str]]:
    """Return every pair of operations that two threads may do at once."""
    names = [name for name in OPERATIONS if name not in {"late release", "release again"}]
    every = combinations_with_replacement(names, 2)
    return [pair for pair in every if not MAINTENANCE.issuperset(pair)] + [
        ("reclaim", "late release"),
        ("release", "release again"),
    ]


def scenario(names: Sequence[str], idle: int = 0, interrupt_at: int = -1) -> Callable[[], Case]:
    """Return the scenario of some operations at once, on a pool with so many idle connections.

    ``interrupt_at`` is the number of the access of the first thread before which it is interrupted.
    """
    operations = [OPERATIONS[name] for name in names]
    held, room = sum(each.held for each in operations), sum(each.room for each in operations)
    if held + room + idle == 0:
        room = 1

    def begin() -> Case:
        world = World(idle=idle, held=held, room=room)
        world.may_be_interrupted = interrupt_at >= 0
        actions = [each.prepare(world) for each in operations]
        world.end_setup()

        def rest(scheduler: Scheduler) -> object:
            for runner in scheduler.runners:
                if runner.error is not None and not isinstance(runner.error, ERRORS):
                    raise runner.error
                if isinstance(runner.error, PoolClosed):
                    assert "close" in names
            return world.rest(was_interrupted=scheduler.runners[0].was_interrupted)

        return Case(actions, world.check, rest, interrupt_at, world.stuck)

    return begin
