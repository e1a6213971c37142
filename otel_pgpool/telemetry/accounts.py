"""Accounts for the pools of each name: the levels of the pool that is open, the totals of all that there were.

A total may never go down, and must not be lost with its pool. So a pool that is made anew under a name goes on where
the totals of that name ended, and the totals of a name without a pool are reported until every reader has had them.
"""

from __future__ import annotations

import weakref
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any

from otel_pgpool.telemetry.readings import TOTALS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from otel_pgpool._observer import ObservedPool, PoolStats

    Attributes = tuple[tuple[str, str], ...]
    Totals = dict[str, Counter[Attributes]]
    """By metric."""

MOST_UNTOLD = 1_000
"""Names of ended pools that are kept for readers which have not asked since: there may be one that nobody reads."""

MOST_TOLD = 100
"""Names of ended pools that are kept for pools to come, when every reader has exported their end."""


class Reported:
    """A pool that reports its figures. It is held weakly, and leaves its last."""

    def __init__(self, pool: ObservedPool) -> None:
        self.name = pool.name
        self._pool = weakref.ref(pool)
        self.last = pool.last_figures
        self._seen: PoolStats | None = None
        self._missed = False

    @property
    def pool(self) -> ObservedPool | None:
        """The pool, while it lives."""
        return self._pool()

    def stats(self) -> PoolStats | None:
        """Return the pool's figures, or its last ones; None if nobody has seen any."""
        pool = self._pool()
        stats = self.last.stats if pool is None else pool.stats()
        if stats is not None:
            self._seen = stats
        return self._seen

    def is_gone(self) -> bool:
        """Whether it has left its last figures: the collector lets a weak reference go a moment before."""
        if self._pool() is not None:
            return False
        if self.last.stats is None and not self._missed:
            self._missed = True
            return False
        return True

    def start_afresh(self) -> None:
        """Forget figures that another process has seen."""
        self._seen = None


class Account:
    """The pools of one name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._pools: dict[int, Reported] = {}  # by id of what they leave
        self._past = _nothing()  # of pools that are gone
        self.levels: PoolStats | None = None
        """Of the pool that is open, if one is."""
        self.totals = _nothing()
        """All that the pools of this name have counted; never less than was told before."""
        # When a reader was first told of the end; weakly, since one that is removed has every series of the program.
        self._asked: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def enter(self, reported: Reported) -> None:
        """One more pool, or one that introduces itself again."""
        self._pools[id(reported.last)] = reported
        self._asked.clear()

    def merge(self, other: Account) -> None:
        """The pools of another are of this name too."""
        for reported in other._pools.values():
            self.enter(reported)
        for metric, past in other._past.items():
            self._past[metric].update(past)
        self._asked.clear()

    def settle(self) -> None:
        """Keep of pools that are gone the totals alone."""
        for key, reported in [each for each in self._pools.items() if each[1].is_gone()]:
            stats = reported.stats()
            if stats is not None:
                _add(self._past, stats)
            del self._pools[key]

    def is_open(self) -> bool:
        """Whether a pool is."""
        return any(not pool.closed for pool in self._live())

    def goes_on(self) -> bool:
        """Whether a pool is open, or something is still out of one."""
        return any(not pool.closed or _holds(pool.stats()) for pool in self._live())

    def _live(self) -> list[ObservedPool]:
        return [pool for known in self._pools.values() if (pool := known.pool) is not None]

    def read(self) -> None:
        """Take the figures of now."""
        self.levels = None
        counted = {metric: Counter(past) for metric, past in self._past.items()}
        for known in self._pools.values():
            pool, stats = known.pool, known.stats()
            if stats is not None:
                _add(counted, stats)
                if pool is not None and not pool.closed:
                    self.levels = stats
        for metric, counts in counted.items():
            told = self.totals[metric]
            for attributes, value in counts.items():
                told[attributes] = max(told[attributes], value)

    def tell_end(self, reader: object, now: float) -> None:
        """A reader asks, and no pool goes on."""
        self._asked.setdefault(reader, now)

    def has_told(self, reader: object, now: float, kept: float) -> bool:
        """Whether a reader has exported the end, ``kept`` seconds ago or longer."""
        first = self._asked.get(reader, now)
        return first < now and now - first >= kept

    def take_over(self, other: Account) -> None:
        """Count what another has told as its own."""
        for metric, told in other.totals.items():
            self._past[metric].update(told)
        self.read()

    def start_afresh(self, *, forgotten: bool) -> None:
        """In a forked child: count from zero where the SDK has forgotten the parent's totals, otherwise go on there."""
        self._pools = {key: known for key, known in self._pools.items() if known.pool is not None}
        for reported in self._pools.values():
            reported.start_afresh()
        if forgotten:
            self.totals = _nothing()
        self._past = {metric: Counter(told) for metric, told in self.totals.items()}
        self._asked.clear()


def _holds(stats: PoolStats) -> bool:
    """Whether something is out; an instrumented pool that is closed may not count it as used."""
    return bool(stats.used or stats.oldest_hold)


def _nothing() -> Totals:
    return {metric: Counter() for metric in TOTALS}


def _add(totals: Totals, stats: PoolStats) -> None:
    for metric, read in TOTALS.items():
        totals[metric].update({tuple(attributes.items()): value for value, attributes in read(stats)})


class Accounts:
    """All names of one meter.

    Pools report from any thread; everything else happens in a collection, of which the SDK lets one at a time happen.
    There is no lock: the SDK collects under one of its own.
    """

    def __init__(self) -> None:
        self._arrived: dict[int, Account] = {}  # since the last collection, in this order
        self._numbers = count()
        self._room = MOST_UNTOLD
        self._open: dict[str, Account] = {}
        self._ended: dict[str, Account] = {}  # the longest ended first
        self._forgotten = Account("")
        self.shown: list[Account] = []
        """What the present collection reports."""

    def report(self, pool: ObservedPool) -> None:
        """Report a pool from now on."""
        if len(self._arrived) >= self._room:
            self._make_room()
        arrived = Account(pool.name)
        arrived.enter(Reported(pool))
        self._arrived[next(self._numbers)] = arrived

    def _make_room(self) -> None:
        """While nobody collects, keep of pools that are gone one account for each name, of so many names."""
        gone: dict[str, Account] = {}
        for number, arrived in list(self._arrived.items()):
            # Another thread may be taking them too: whoever has popped one has it.
            if not arrived.goes_on() and self._arrived.pop(number, None) is not None:
                gone.setdefault(arrived.name, Account(arrived.name)).merge(arrived)
        for account in list(gone.values())[-MOST_UNTOLD:]:
            account.settle()
            self._arrived[next(self._numbers)] = account
        self._room = 2 * max(MOST_UNTOLD, len(self._arrived))

    def begin(self, reader: object, now: float, kept: float) -> None:
        """A reader collects; it gets the end of each name for ``kept`` seconds, or once."""
        self._enter_arrived()
        for name, account in list(self._open.items()):
            account.settle()
            if not account.goes_on():
                self._ended[name] = self._open.pop(name)
        for account in self._ended.values():
            account.settle()
            account.tell_end(reader, now)
        shown = [account for account in self._ended.values() if not account.has_told(reader, now, kept)]
        self.shown = [*self._open.values(), *shown]
        for account in self.shown:
            account.read()

    def _enter_arrived(self) -> None:
        for number in list(self._arrived):
            arrived = self._arrived.pop(number, None)
            if arrived is not None:
                name = arrived.name
                account = self._open.get(name) or self._ended.pop(name, None) or Account(name)
                self._open[name] = account
                account.merge(arrived)

    def all_that_were(self) -> list[Account]:
        """Return every account, also those that the present collection does not report and that of forgotten names."""
        return [*self._open.values(), *self._ended.values(), self._forgotten]

    def told(self, readers: Collection[object], now: float, kept: float) -> Iterator[str]:
        """The names whose end all these readers have exported, the longest ended first."""
        for name, account in self._ended.items():
            if all(account.has_told(reader, now, kept) for reader in readers):
                yield name

    def surplus(self, readers: Collection[object], now: float, kept: float) -> set[str]:
        """The names that are too many."""
        told = list(self.told(readers, now, kept))
        kept_back = {*told, *(account.name for account in self.shown)}
        untold = [name for name in self._ended if name not in kept_back]
        return {*told[:-MOST_TOLD], *untold[:-MOST_UNTOLD]}

    def forget(self, names: Collection[str]) -> None:
        """Let go of names. The SDK must have forgotten their series: it would see their totals fall."""
        for name in names:
            self._forgotten.take_over(self._ended.pop(name))

    def start_afresh(self, *, forgotten: bool) -> None:
        """In a forked child the parent's totals are not ours, and neither are the pools that ended there."""
        for account in [*self._arrived.values(), *self.all_that_were()]:
            account.start_afresh(forgotten=forgotten)
        self._arrived = {number: arrived for number, arrived in self._arrived.items() if arrived.is_open()}
        if forgotten:
            self._open = {name: account for name, account in self._open.items() if account.is_open()}
            self._ended.clear()
