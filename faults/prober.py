"""How often a herd may knock at a server that is away, by the pool's design and by chance."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
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
    coming_back: float
    """Processes whose prober gets through in one second, when it is back."""


@cache
def bounds(processes: int, away: float) -> Bounds:
    """Those of a herd of so many processes, whose server is away for so long."""
    chance = random.Random(0)  # noqa: S311 - the same bounds for each herd
    seconds = int(away) + 1
    most, later, back = [0] * seconds, 0, 0
    for _ in range(HERDS):
        knocks, returns = Counter[int](), Counter[int]()
        for _ in range(processes):
            *tried, succeeded = probe(chance, away)
            knocks.update(map(int, tried))
            returns[int(succeeded - away)] += 1
        most = [max(most[second], knocks[second]) for second in range(seconds)]
        later = max(later, sum(number for second, number in knocks.items() if second >= UNRULY))
        back = max(back, *returns.values())
    return Bounds([number * MARGIN for number in most], later * MARGIN, back * MARGIN)


def probe(chance: random.Random, away: float) -> Iterator[float]:
    """When one process knocks; the last time somebody is there."""
    now = chance.uniform(0, NOTICED)
    yield from (now,) * AT_ONCE
    pause = FIRST_PAUSE
    while now < away:
        now += chance.uniform(0, pause)
        yield now
        pause = min(LONGEST_PAUSE, 2 * pause)
