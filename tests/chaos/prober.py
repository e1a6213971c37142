"""How often a herd may knock at a server that is away, by the pool's design and by chance."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE = 3
"""Connects of one process that are under way when it learns that the server is away."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds: what the ceiling of the one prober's random pauses doubles from, and to."""
NOTICED = 0.2
"""Seconds until each process knows."""
HERDS = 2_000
"""How many are drawn."""
MARGIN = 1.25
"""On top of the most of them: chance alone does not exceed it in a lifetime, and three probers would by far."""
UNRULY = 2
"""Seconds in which the pauses are short yet: how many come is left to chance, more than later."""


class Bounds(NamedTuple):
    """The most that a herd may do."""

    in_a_second: list[float]
    """Connects in each second while the server is away."""
    later: float
    """Connects in all, from the third second on."""
    coming_back: int
    """Processes whose prober gets through in one second, when it is back; with a margin, that would be all."""
    silence: float
    """Seconds without a connect, from the third on: where all paused alike there would be longer ones."""


@cache
def bounds(processes: int, away: float) -> Bounds:
    """Those of a herd of so many processes, whose server is away for so long."""
    chance = random.Random(0)  # nosec B311
    seconds = int(away) + 1
    most, later, back, silence = [0] * seconds, 0, 0, 0.0
    for _ in range(HERDS):
        herd = [list(probe(chance, away)) for _ in range(processes)]
        knocks = sorted(knock for *tried, _ in herd for knock in tried)
        curve = Counter(map(int, knocks))
        most = [max(most[second], curve[second]) for second in range(seconds)]
        later = max(later, sum(knock >= UNRULY for knock in knocks))
        back = max(back, *Counter(int(succeeded - away) for *_, succeeded in herd).values())
        silence = max(silence, longest_silence(knocks))
    return Bounds([number * MARGIN for number in most], later * MARGIN, back, silence * MARGIN)


def longest_silence(knocks: list[float]) -> float:
    """Seconds between two of them, at most, from the third second on."""
    return max((later - sooner for sooner, later in pairwise(knocks) if sooner >= UNRULY), default=0.0)


def probe(chance: random.Random, away: float) -> Iterator[float]:
    """When one process knocks; the last time somebody is there."""
    now = chance.uniform(0, NOTICED)
    yield from (now,) * AT_ONCE
    pause = FIRST_PAUSE
    while now < away:
        now += chance.uniform(0, pause)
        yield now
        pause = min(LONGEST_PAUSE, 2 * pause)
