"""Which orders are run: all of two threads, all up to a bound of preemptions, a random sample, or a given one."""

from __future__ import annotations

import gc
import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

from tests.interleaving.scheduler import EVERY_BYTECODE, Scheduler, Step
from tests.interleaving.shared import MUTABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Choose = Callable[[tuple[int, ...], int], int]
    Scenario = Callable[[], "Case"]


Places = dict[Any, list[int]]
"""The numbers of the steps that have touched a place, by its name."""


@dataclass
class Case:
    """One run of a scenario: the operations on a new pool, and what must hold."""

    actions: list[Callable[[], object]]
    check: Callable[[], None]
    rest: Callable[[Scheduler], object]
    interrupt_at: int = -1
    stuck: Callable[[int], None] = lambda _waiting: None


@dataclass
class Failure:
    """An order in which something went wrong."""

    switches: str
    text: str
    options: str = ""  # of the command that runs it again


@dataclass
class Result:
    """What an exploration has found."""

    orders: int = 0
    steps: int = 0
    most_switches: int = 0
    failures: list[Failure] = field(default_factory=list)
    outcomes: set[Any] = field(default_factory=set)
    was_interrupted: bool = False
    is_complete: bool = True
    seconds: float = 0.0

    def add(self, other: Result) -> None:
        """Add another exploration's."""
        self.orders += other.orders
        self.steps += other.steps
        self.most_switches = max(self.most_switches, other.most_switches)
        self.failures += other.failures
        self.outcomes |= other.outcomes
        self.seconds += other.seconds
        self.is_complete &= other.is_complete


class Given:
    """Follows an order as far as it goes, and then stays with the thread that ran last."""

    def __init__(self, order: list[int]) -> None:
        self._order = order
        self._at = 0

    def __call__(self, enabled: tuple[int, ...], last: int) -> int:
        at, self._at = self._at, self._at + 1
        if at >= len(self._order):
            return stay(enabled, last)
        if self._order[at] not in enabled:
            raise OrderError(f"step {at}: thread {self._order[at]} cannot run, only {enabled}")
        return self._order[at]


class OrderError(RuntimeError):
    """An order that does not fit the scenario: the scenario is not deterministic, or another one."""


def stay(enabled: tuple[int, ...], last: int) -> int:
    """Go on with the thread that ran last, or else with the first one."""
    return last if last in enabled else enabled[0]


def play(
    scenario: Scenario,
    choose: Choose,
    mode: str = EVERY_BYTECODE,
    *,
    steps: Search | None = None,
    describes: bool = False,
) -> tuple[Scheduler, BaseException | None, object]:
    """Run one order; return its steps, what went wrong, and how it ended."""
    case = scenario()
    scheduler = Scheduler(choose, case.check, mode, describes=describes)
    if steps is not None:
        steps.steps = scheduler.steps
    scheduler.on_stuck = case.stuck
    scheduler.run(case.actions, case.interrupt_at)
    failure, outcome = scheduler.failure, None
    try:
        if failure is None:
            outcome = case.rest(scheduler)
    except Exception as error:  # noqa: BLE001 - reported with its order
        failure = error
    return scheduler, failure, outcome


def switches_of(steps: Iterable[Step]) -> str:
    """Write an order as a list of switches: the thread, and the number of steps for which it runs."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and parts[-1][0] == step.thread:
            parts[-1][1] += 1
        else:
            parts.append([step.thread, 1])
    return " ".join(f"{thread}x{count}" for thread, count in parts)


def order_of(switches: str) -> list[int]:
    """Read an order as `switches_of` writes it."""
    order: list[int] = []
    for part in switches.split():
        thread, _, count = part.partition("x")
        order += [int(thread)] * int(count)
    return order


def note(result: Result, scheduler: Scheduler, failure: BaseException | None, outcome: object) -> None:
    """Add one order to a result."""
    result.orders += 1
    result.outcomes.add(outcome)
    result.steps += len(scheduler.steps)
    pairs = zip(scheduler.steps, scheduler.steps[1:], strict=False)
    result.most_switches = max(result.most_switches, sum(a.thread != b.thread for a, b in pairs))
    if scheduler.runners[0].was_interrupted:
        result.was_interrupted = True
    if failure is not None:
        text = f"{type(failure).__name__}: {failure}".split("\nassert")[0]
        result.failures.append(Failure(switches_of(scheduler.steps), text))


@dataclass
class Node:
    """A state on the present order: what runs in it, and what else has to."""

    chosen: int
    enabled: tuple[int, ...]
    asleep: dict[int, Step]
    done: dict[int, Step] = field(default_factory=dict)
    due: set[int] = field(default_factory=set)


class Search:
    """Runs one order of each class of equivalent ones, without a bound of preemptions.

    Two orders are equivalent if one becomes the other by exchanging neighbouring steps that do not conflict: no place
    is written by one of them and touched by the other. This is dynamic partial-order reduction (Flanagan and Godefroid,
    2005) with sleep sets. For each step, the last conflicting step of each other thread that does not have to come
    before it is found, and an order in which the two are exchanged is run too.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.steps: list[Step] = []  # of the present order; the last one is complete when `choose` is called
        self.at = 0
        self.is_redundant = False

    def begin(self) -> None:
        """Begin the next order."""
        self.at, self.is_redundant = 0, False

    def choose(self, enabled: tuple[int, ...], last: int) -> int:
        """Choose the thread of the next step: as the search says, then the last one unless it is asleep."""
        at, self.at = self.at, self.at + 1
        if at < len(self.nodes):
            chosen = self.nodes[at].chosen
            if chosen not in enabled:
                raise OrderError(f"step {at}: thread {chosen} cannot run, only {enabled}")
            return chosen
        if self.is_redundant:
            return stay(enabled, last)
        asleep = self._asleep(at)
        awake = tuple(thread for thread in enabled if thread not in asleep)
        if not awake:
            self.is_redundant = True
            return stay(enabled, last)
        chosen = stay(awake, last)
        self.nodes.append(Node(chosen, enabled, asleep))
        return chosen

    def _asleep(self, at: int) -> dict[int, Step]:
        """Return the threads whose next step was run before in an equivalent state."""
        if at == 0:
            return {}
        node, step = self.nodes[at - 1], self.steps[at - 1]
        before = {**node.asleep, **node.done}
        return {thread: each for thread, each in before.items() if thread != node.chosen and not each.conflicts(step)}

    def find_races(self) -> None:
        """Note in which states another thread has to run too."""
        count = 1 + max(step.thread for step in self.steps)
        # The last step of each thread that comes before another one in every equivalent order: before its next step,
        # and before each step so far.
        now = [[-1] * count for _ in range(count)]
        before: list[list[int]] = []
        written: list[Places] = [{} for _ in range(count)]
        touched: list[Places] = [{} for _ in range(count)]
        for number, step in enumerate(self.steps[: len(self.nodes)]):
            me = step.thread
            seen = now[me]
            for other in range(count):
                if other != me:
                    earlier = [*_at(touched[other], step.writes), *_at(written[other], step.reads)]
                    self._note_race(step, earlier, now[me][other])
                    for steps in earlier:
                        seen = list(map(max, seen, before[steps[-1]]))
            now[me] = [number if thread == me else seen[thread] for thread in range(count)]
            before.append(now[me])
            for place in step.writes:
                written[me].setdefault(place, []).append(number)
            for place in step.writes | step.reads:
                touched[me].setdefault(place, []).append(number)

    def _note_race(self, step: Step, earlier: list[list[int]], known: int) -> None:
        """Note the last of the earlier steps, each of which conflicts with ``step``, that the two can be exchanged."""
        race = known
        for steps in earlier:
            for each in reversed(steps):
                if each <= race:
                    break
                if self.steps[each].may_be_swapped_with(step):
                    race = each
                    break
        if race > known:
            node = self.nodes[race]
            node.due.update({step.thread} if step.thread in node.enabled else node.enabled)

    def next(self) -> bool:
        """Go back to the last state in which another thread has to run; return False if there is none."""
        while self.nodes:
            at = len(self.nodes) - 1
            node = self.nodes[at]
            node.done[node.chosen] = self.steps[at]
            left = node.due - node.done.keys() - node.asleep.keys()
            if left:
                node.chosen = min(left)
                return True
            self.nodes.pop()
        return False


def _at(places: Places, names: set[Any]) -> Iterator[list[int]]:
    """Iterate over the numbers of the steps at some places, which are in order for each place."""
    for name in names:
        steps = places.get(name)
        if steps:
            yield steps


@contextmanager
def without_collections(result: Result) -> Iterator[Callable[[], None]]:
    """Keep the garbage collector from running within an order, where it would be a step that depends on the past."""

    def now_and_then() -> None:
        if result.orders % 200 == 0:
            gc.collect()

    gc.disable()
    try:
        yield now_and_then
    finally:
        gc.enable()


def learning(explore: Callable[..., Result]) -> Callable[..., Result]:
    """Repeat an exploration until no further attribute turns out to be changed by an operation."""

    @wraps(explore)
    def learns(*args: Any, **kwargs: Any) -> Result:
        while True:
            MUTABLE.has_grown = False
            result = explore(*args, **kwargs)
            if not MUTABLE.has_grown:
                return result

    return learns


@learning
def all_orders(scenario: Scenario, mode: str = EVERY_BYTECODE, limit: int = 1_000_000) -> Result:
    """Run all orders, as `Search` does; stop at the first failure or after ``limit`` orders."""
    result, search = Result(), Search()
    with without_collections(result) as collect:
        while True:
            search.begin()
            scheduler, failure, outcome = play(scenario, search.choose, mode, steps=search)
            if not search.is_redundant:
                note(result, scheduler, failure, outcome)
            search.find_races()
            if result.orders >= limit or not search.next():
                result.is_complete = result.orders < limit
                return result
            if MUTABLE.has_grown:
                return result
            collect()


@learning
def bounded_orders(scenario: Scenario, bound: int, mode: str = EVERY_BYTECODE, limit: int = 1_000_000) -> Result:
    """Run every order with at most so many preemptions: switches from a thread that could have gone on."""
    result = Result()
    pending: list[tuple[list[int], int]] = [([], bound)]
    with without_collections(result) as collect:
        while pending and result.orders < limit:
            order, left = pending.pop()
            scheduler, failure, outcome = play(scenario, Given(order), mode)
            note(result, scheduler, failure, outcome)
            steps = scheduler.steps
            taken = [step.thread for step in steps]
            for at in range(len(order), len(steps)):
                last = taken[at - 1] if at else -1
                for other in steps[at].alternatives:
                    costs = int(last in steps[at].alternatives and other != last)
                    if other != taken[at] and costs <= left:
                        pending.append(([*taken[:at], other], left - costs))
            if MUTABLE.has_grown:
                return result
            collect()
    result.is_complete = not pending
    return result


@learning
def sampled_orders(scenario: Scenario, seed: str, count: int, mode: str = EVERY_BYTECODE) -> Result:
    """Run a random sample of orders, of any number of threads."""
    result = Result()
    with without_collections(result) as collect:
        for number in range(count):
            dice = random.Random(f"{seed} {number}")
            rate = dice.choice((0.02, 0.05, 0.1, 0.3))

            def choose(enabled: tuple[int, ...], last: int, dice: Any = dice, rate: float = rate) -> int:
                return last if last in enabled and dice.random() > rate else dice.choice(enabled)

            scheduler, failure, outcome = play(scenario, choose, mode)
            note(result, scheduler, failure, outcome)
            if MUTABLE.has_grown:
                return result
            collect()
    return result
