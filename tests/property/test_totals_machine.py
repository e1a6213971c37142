"""Any order of pools that begin, count, end and are dropped, and of readers that ask: what a backend has at the end."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from otel_pgpool.telemetry import metrics, pools_by_name, sdk_internals
from tests.support.totals import CHECKOUTS, TIMEOUTS, Meter, Reader

if TYPE_CHECKING:
    from tests.support.totals import Pool

EXAMPLES = os.environ.get("PROPERTY_EXAMPLES")
"""How many random runs to make; without it, the same 100 each time."""

NAMES = st.sampled_from(["shop", "jobs", "mail", "blog", "news"])
WHICH = st.integers(0, 5)


class Machine(RuleBasedStateMachine):
    """A reader checks by itself, whenever it asks, that no total goes down."""

    @initialize(opaque=st.booleans())
    def begin(self, opaque: bool) -> None:
        self.opaque = opaque
        self.meter = Meter(None, Reader(delta=True), Reader(), Reader(delta=True))
        self.pools: list[Pool] = []
        self.ended: list[Pool] = []
        self.expected: dict[str, Counter[str]] = {TIMEOUTS: Counter(), CHECKOUTS: Counter()}
        self.patches = [
            mock.patch.object(metrics, "monotonic", side_effect=lambda: self.meter.now),
            mock.patch.object(pools_by_name, "MAX_REPORTED", 2),
        ]
        if opaque:
            self.patches.append(mock.patch.object(sdk_internals, "collecting_reader", return_value=None))
        for patch in self.patches:
            patch.start()

    @rule(name=NAMES)
    def make(self, name: str) -> None:
        if all(pool.name != name for pool in self.pools):
            self.pools.append(self.meter.pool(name))

    @precondition(lambda self: self.pools)
    @rule(which=WHICH, timeouts=st.integers(0, 3), served=st.integers(0, 3))
    def count(self, which: int, timeouts: int, served: int) -> None:
        pool = self.pools[which % len(self.pools)]
        pool.timeouts += timeouts
        pool.served += served
        self.expected[TIMEOUTS][pool.name] += timeouts
        self.expected[CHECKOUTS][pool.name] += served

    @precondition(lambda self: self.pools)
    @rule(which=WHICH, kept=st.booleans(), out=st.booleans())
    def close(self, which: int, kept: bool, out: bool) -> None:
        pool = self.pools.pop(which % len(self.pools))
        pool.closed = True
        if kept:
            pool.oldest_hold = float(out)
            self.ended.append(pool)

    @precondition(lambda self: self.pools)
    @rule(which=WHICH)
    def drop(self, which: int) -> None:
        del self.pools[which % len(self.pools)]

    @precondition(lambda self: self.ended)
    @rule(which=WHICH)
    def come_back(self, which: int) -> None:
        pool = self.ended.pop(which % len(self.ended))
        if pool.oldest_hold:
            pool.oldest_hold = 0.0
            pool.timeouts += 1
            self.expected[TIMEOUTS][pool.name] += 1

    @rule(which=WHICH)
    def ask(self, which: int) -> None:
        self.meter.readers[which % len(self.meter.readers)].ask()
        self.meter.pass_on(0.001)

    @rule(seconds=st.sampled_from([5.0, 61.0, 601.0]))
    def pass_on(self, seconds: float) -> None:
        self.meter.pass_on(seconds)

    def teardown(self) -> None:
        if not hasattr(self, "meter"):
            return
        try:
            self.meter.ask()
            for reader in self.meter.readers:
                for metric, names in self.expected.items():
                    told = {name: reader.sum_of(metric, name) for name in names}
                    if self.opaque:  # then the end may be over before a slow reader asks
                        assert all(told[name] <= count for name, count in names.items())
                    else:
                        assert told == names
        finally:
            for patch in self.patches:
                patch.stop()


TestTotals = Machine.TestCase
TestTotals.settings = settings(
    max_examples=int(EXAMPLES or 40),
    stateful_step_count=40,
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
