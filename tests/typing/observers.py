"""Observers of a program, with what they get. Type-checked, never run: ``tests/test_typing.py``."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import assert_type

from otel_pgpool import (
    BaseObserver,
    Connect,
    ConnectionPool,
    DatabaseObserver,
    DatabaseState,
    Holder,
    ObservedCheckout,
    ObservedPool,
    ObservedSlot,
    PoolObserver,
    PoolStats,
    Telemetry,
)
from otel_pgpool.types import LevelName, OutcomeName, PathName, ReasonName  # noqa: TC001 - as a program would


class Counting(BaseObserver):
    """An observer that handles some events only."""

    lost = 0

    def attached(self, pool: ObservedPool) -> None:
        assert_type((pool.name, pool.address, pool.port, pool.namespace), tuple[str, str, int | None, str])
        assert_type((pool.long_hold, pool.closed), tuple[float, bool])
        assert_type(pool.held_checkouts(), Sequence[ObservedCheckout])

    def started(self, checkout: ObservedCheckout) -> None:
        checkout.observer_data = self

    def acquired(self, checkout: ObservedCheckout) -> None:
        assert_type(checkout.path, Literal["idle", "queued", "new"] | None)
        assert_type(checkout.acquired - checkout.started, float)
        assert_type((checkout.slot.serial, checkout.slot.pid), tuple[int, int])
        assert_type([blocker.held for blocker in checkout.blockers], list[float])
        assert_type(checkout.thread, threading.Thread)
        assert_type(checkout.holder(checkout.acquired), Holder)
        if checkout.task is not None:
            print(checkout.task.name, checkout.where)

    def released(self, checkout: ObservedCheckout) -> None:
        outcome: OutcomeName = checkout.outcome
        path: PathName = checkout.path or checkout.expected_path
        print(outcome, path, checkout.error_type, checkout.flagged)
        if checkout.outcome == "discarded":
            print([(attempt.error_type, attempt.message) for attempt in checkout.attempts])

    def connect_failed(self, connect: Connect) -> None:
        assert_type(connect.asked_by, ObservedCheckout | None)
        assert_type((connect.error, connect.message), tuple[BaseException | None, str])

    def discarded(
        self,
        slots: Sequence[ObservedSlot],
        reason: ReasonName,
        error: BaseException | None,
        checkout: ObservedCheckout | None,
    ) -> None:
        if reason == "broken":
            self.lost += len(slots)

    def utilization_changed(self, level: LevelName, stats: PoolStats) -> None:
        print(level, stats.utilization)


class Passing(Counting):
    """An observer that passes on what it gets."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()

    def acquired(self, checkout: ObservedCheckout) -> None:
        self.telemetry.acquired(checkout)

    def discarded(
        self,
        slots: Sequence[ObservedSlot],
        reason: ReasonName,
        error: BaseException | None,
        checkout: ObservedCheckout | None,
    ) -> None:
        self.telemetry.discarded(slots, reason, error, checkout)


class Asking(BaseObserver):
    """An observer that is also told what the server says of long holds."""

    def database_state(
        self, checkout: ObservedCheckout, state: DatabaseState, blockers: Sequence[ObservedCheckout]
    ) -> None:
        print(checkout.where, state, [blocker.where for blocker in blockers])


quiet: PoolObserver = BaseObserver()
counting: PoolObserver = Counting()
asking: DatabaseObserver = Asking()
telemetry: DatabaseObserver = Telemetry()
ConnectionPool(1, 2, observer=Passing())


class Mistaken(BaseObserver):
    """Strict mode reports each of these comments that hides no mistake."""

    def released(self, checkout: ObservedCheckout) -> None:
        checkout.started = 0.0  # type: ignore[misc]
        checkout.outcome = "error"  # type: ignore[misc]
        checkout.slot.pid = 0  # type: ignore[misc]
        print(checkout.outcome == "comitted")  # type: ignore[comparison-overlap]
        print(checkout.path == "ready")  # type: ignore[comparison-overlap]

    def discarded(self, slots: Any, reason: Literal["broken"], error: Any, checkout: Any) -> None:  # type: ignore[override]
        print(reason)
